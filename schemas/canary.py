"""A challenger on trial: the share of requests that it answers, and by what it is judged."""

from __future__ import annotations

import hashlib
from typing import Annotated

from msgspec import Meta, Struct

DAY_MS = 86_400_000
LOOKS = 4
_ALL = 2**64


class CanaryTerms(Struct, frozen=True, kw_only=True):
    """How long a challenger answers a share of the requests before it is made current, or withdrawn.

    It is compared with the current version on requests that both answered, once `pairs` of them have their
    label, and again at 2, 4 and 8 times as many; `trainers.canary` says by which rule.
    """

    share: Annotated[float, Meta(gt=0, le=0.5, description="of requests that the canary answers")]
    pairs: Annotated[int, Meta(ge=2, description="labelled requests at the first look")]
    longest_ms: Annotated[int, Meta(gt=0, description="since it was published: then it is withdrawn")]

    def looks(self) -> tuple[int, ...]:
        """Of how many labelled requests each look is."""
        return tuple(self.pairs * 2**look for look in range(LOOKS))


def in_share(request: str, *, name: str, version: int, share: float) -> bool:
    """Whether a canary answers the request: a hash of its id, so each asker says the same, at any time.

    Another version of the model has another share of the ids.

    Args:
        request: the id of a request, or of the event that is asked about.
        name: of the model; `version` is the canary's.
    """
    digest = hashlib.blake2b(f"{name}/{version}/{request}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) < share * _ALL
