"""Hold a model's canary beside its current version: the same checks, and never in that one's way."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from aiokafka import ConsumerRecord

from .. import topics
from ..canary import in_share
from ..envelope import NotAnAnnouncement, contract_of, open_record, unwrap
from ..errors import Rejected, Retryable
from ..model import CanaryPromoted, CanaryPublished, CanaryWithdrawn, Manifest, ModelAdopted
from ..signature import SignatureRefused, SignerUnknown, TrustedKeys
from .download import Downloader
from .fit import Inputs, check_fit
from .links import Links
from .load import LoadedModel, check_kind, import_libraries, load
from .memory import write_durably
from .refusals import Refusals
from .vouch import Claim, claimed, vouched

log = logging.getLogger(__name__)

_FILE = "over.json"
_AGAIN_AFTER_S = (1.0, 2.0, 5.0, 15.0, 30.0)


class CanaryFollower:
    """Holds the canary that is on trial, if it is newer than the current version and its trial is not over.

    A trial is over once the trainer says so, once a newer version is current, or once the time that the
    signed manifest gives it has passed. Which one was over is kept in the folder: said again, it is refused.

    Args:
        name: of the model.
        service: who we are, as our events say it.
        links: the service's connections.
        folder: downloads are kept here.
        trusted: who may sign; None: whoever may write to the cluster is trusted.
        inputs: the columns that this service can give; None: no model is refused for that.
        max_bytes: an artifact that claims to be larger is refused unseen.
        current_version: gives the version that is current here; 0: none.
    """

    topic = topics.MODELS_CANARIES.name
    confirm_every_s = math.inf

    def __init__(
        self,
        name: str,
        *,
        service: str,
        links: Links,
        folder: Path,
        trusted: TrustedKeys | None,
        inputs: Inputs | None,
        max_bytes: int,
        current_version: Callable[[], int],
    ) -> None:
        self.name = name
        self._refusals = Refusals(name, service=service, canary=True)
        self._service, self._links = service, links
        self._trusted, self._inputs = trusted, inputs
        self._downloader = Downloader(links.stores, folder, max_bytes=max_bytes, turns=links.downloads)
        self._file = folder / _FILE
        self._current_version = current_version
        self._newest: Manifest | None = None
        self._unknown_signer: bytes | None = None
        self._model: LoadedModel | None = None
        self._over = 0
        self._caught_up = False
        self._considering = asyncio.Lock()
        self._poked = asyncio.Event()

    @property
    def model(self) -> LoadedModel | None:
        """The canary, if one is on trial and held."""
        if self._model is not None and not self._is_on_trial(self._model.manifest):
            self._model = None
        return self._model

    def of(self, requests: Sequence[str]) -> tuple[LoadedModel, list[int]] | None:
        """The canary and the places of the requests that are its share; None: there are none."""
        canary = self.model
        if canary is None or canary.manifest.canary is None:
            return None
        version, share = canary.version, canary.manifest.canary.share
        places = [
            place
            for place, request in enumerate(requests)
            if in_share(request, name=self.name, version=version, share=share)
        ]
        return (canary, places) if places else None

    def confirmed(self, asked_s: float) -> None:  # noqa: ARG002
        """All that the log held at that moment was taken: for `ModelLog`."""
        self._caught_up = True

    async def take(self, record: ConsumerRecord[Any, Any]) -> None:
        """A record about this model's canary: for `ModelLog`."""
        try:
            envelope = open_record(record.key, record.value, record.headers)
            if contract_of(envelope) is CanaryPublished:
                await self._consider(envelope.data)
                return
            event = unwrap(envelope)
        except (NotAnAnnouncement, msgspec.DecodeError, UnicodeDecodeError) as error:
            log.warning("a record about a canary of %s is passed over: %s", self.name, error)
            return
        match event:
            case CanaryWithdrawn(version=version) | CanaryPromoted(canary_version=version):
                self._end(version)
            case _:
                pass

    def _is_on_trial(self, manifest: Manifest | Claim) -> bool:
        if manifest.canary is None or manifest.version <= max(self._over, self._current_version()):
            return False
        return time.time() * 1000 < manifest.published_ms + manifest.canary.longest_ms

    async def _consider(self, event: bytes) -> None:
        """Make it the newest, if it is wanted and signed as it must be.

        Raises:
            msgspec.DecodeError, UnicodeDecodeError: it breaks the contract of a canary.
        """
        async with self._considering:
            claim = claimed(event)
            known = 0 if self._newest is None else self._newest.version
            if claim.name != self.name or claim.version <= known or not self._is_on_trial(claim):
                return
            try:
                # What was published before we began is read in one go with what ended it.
                at_once = not self._caught_up
                manifest = await vouched(event, self._trusted, CanaryPublished, at_once=at_once)
            except (SignatureRefused, SignerUnknown) as error:
                self._refuse(msgspec.json.decode(event, type=CanaryPublished).manifest, error)
                if isinstance(error, SignerUnknown):
                    self._unknown_signer = event
                return
            self._newest, self._unknown_signer = manifest, None
            self._poked.set()

    def _end(self, version: int) -> None:
        """Its trial is over. Of one that a trusted key signed, that is kept: a forged number must not be."""
        if version <= self._over:
            return
        self._over = version
        if self._model is not None and self._model.version <= version:
            log.info("the trial of canary %s version %s is over", self.name, version)
            self._model = None
        if self._newest is not None and self._newest.version == version:
            self._keep(version)

    def _keep(self, version: int) -> None:
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_durably(self._file, msgspec.json.encode(version))
        except OSError as error:
            log.warning("which canary is over cannot be kept in %s: %s", self._file, error)

    def _recall(self) -> int:
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=int)
        except FileNotFoundError:
            return 0
        except (OSError, msgspec.DecodeError) as error:
            log.warning("which canary is over cannot be read from %s: %s", self._file, error)
            return 0

    async def begin(self) -> None:
        """Know which trials were over; before the first record is taken."""
        self._over = max(self._over, await asyncio.to_thread(self._recall))

    async def run(self) -> None:
        """Take each canary up as it comes, until cancelled."""
        await asyncio.to_thread(import_libraries)
        failures, pause_s, tried = 0, None, 0
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._poked.wait()
            self._poked.clear()
            if (waiting := self._unknown_signer) is not None:
                await self._consider(waiting)
                self._poked.clear()
            manifest = self._newest
            pause_s = None if self._unknown_signer is None else _AGAIN_AFTER_S[1]
            if manifest is None or manifest.version <= tried or not self._is_on_trial(manifest):
                continue
            if not self._current_version():  # which it is beside; it may be on its way
                pause_s = _AGAIN_AFTER_S[0]
                continue
            try:
                await self._adopt(manifest)
                tried, failures = manifest.version, 0
            except Retryable as error:
                self._refuse(manifest, error)
                pause_s = _AGAIN_AFTER_S[min(failures, len(_AGAIN_AFTER_S) - 1)]
                failures += 1
            except Exception as error:  # whatever it is, the current model answers all requests
                if not isinstance(error, Rejected):
                    log.exception("adoption of canary %s version %s failed", self.name, manifest.version)
                self._refuse(manifest, error)
                tried, failures = manifest.version, 0

    async def _adopt(self, manifest: Manifest) -> None:
        began = time.perf_counter()
        check_kind(manifest)
        check_fit(manifest, self._inputs)
        content = await self._downloader.fetch(manifest.artifact)
        async with self._links.loads.turn():
            loaded = await asyncio.to_thread(load, manifest, content)
        if not self._is_on_trial(manifest):
            return
        self._model = loaded
        load_ms = (time.perf_counter() - began) * 1000
        log.info("adopted canary %s version %s in %.0f ms", self.name, manifest.version, load_ms)
        self._links.announcer.say(
            ModelAdopted(
                name=self.name,
                service=self._service,
                version=manifest.version,
                sha256=manifest.artifact.sha256,
                previous_version=self._current_version(),
                adopted_ms=int(time.time() * 1000),
                load_ms=load_ms,
                canary=True,
            )
        )

    def _refuse(self, manifest: Manifest, error: Exception) -> None:
        held = self._current_version() or None
        if (refused := self._refusals.of(manifest, error, kept_version=held)) is not None:
            self._links.announcer.say(refused)
