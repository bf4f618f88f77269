"""What a service would not take, and why: said once for each version and kind of error."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict

from ..model import AdoptionRefused, Manifest

log = logging.getLogger(__name__)

_MOST_REMEMBERED = 1_000
"""A forger may send any number of versions; what was said of the oldest of them is then said again."""


class Refusals:
    """The refusals of one model, or of its canaries.

    One that is tried again, since a key or a store may be there by then, is refused again: among others that
    were refused meanwhile, too, that is no news.
    """

    def __init__(self, name: str, *, service: str, canary: bool = False) -> None:
        self.last: AdoptionRefused | None = None
        self._name, self._service, self._canary = name, service, canary
        self._said: OrderedDict[tuple[int, str], None] = OrderedDict()

    def of(self, manifest: Manifest, error: Exception, *, kept_version: int | None) -> AdoptionRefused | None:
        """The event to announce, which is `last` from then on; None: it was announced before."""
        kind = type(error).__name__
        is_news = (manifest.version, kind) not in self._said
        level = logging.WARNING if is_news else logging.INFO
        what = f"canary {self._name}" if self._canary else self._name
        log.log(level, "%s version %s is not taken: %s", what, manifest.version, error)
        self._said[manifest.version, kind] = None
        self._said.move_to_end((manifest.version, kind))
        if len(self._said) > _MOST_REMEMBERED:
            self._said.popitem(last=False)
        if not is_news:
            return None
        self.last = AdoptionRefused(
            name=self._name,
            service=self._service,
            version=manifest.version,
            sha256=manifest.artifact.sha256,
            kept_version=kept_version,
            reason=f"{kind}: {error}"[:2000],
            refused_ms=int(time.time() * 1000),
            canary=self._canary,
        )
        return self.last
