"""Follow a model by name: fetch, check, load and try each newer version, and only then swap it in."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
from aiokafka import ConsumerRecord

from .. import topics, trace
from ..envelope import NotAnAnnouncement, contract_of, open_record
from ..errors import Rejected, Retryable
from ..model import AdoptionRefused, CurrentModel, Manifest, ModelAdopted, ModelFresh, ModelStale, OverBound
from ..signature import SignatureRefused, SignerUnknown, TrustedKeys
from .canary import CanaryFollower
from .download import Downloader
from .errors import StaleModel
from .fit import Inputs, check_fit, check_inputs
from .links import Links
from .load import LoadedModel, check_kind, import_libraries, load
from .memory import Memory
from .refusals import Refusals
from .staleness import Known, StalenessBound, next_s, over, words
from .vouch import Claim, claimed, vouched

log = logging.getLogger(__name__)

_AGAIN_AFTER_S = (1.0, 2.0, 5.0, 15.0, 30.0)
_LIST_AGAIN_AFTER_S = 2.0
_CONFIRM_EVERY_S = 5.0


@dataclass(frozen=True, slots=True)
class Answering:
    """The model that answers one question; `stale` says why it is stale, where the service flags that.

    `beside` is the current model where a canary answers: let it answer the same, and publish both answers.
    """

    model: LoadedModel
    stale: tuple[OverBound, ...] = ()
    beside: LoadedModel | None = None

    @property
    def why(self) -> str:
        """Why the model is stale, in words; empty: it is not, or it is not flagged."""
        return words(self.stale)


class ModelFollower:
    """Holds the newest good version of one model.

    `current` is one reference, replaced in one step: whoever reads it has a whole model, the old or the
    new. Versions never go back. Use as an async context manager, or call `start` and `stop`.

    Args:
        name: the model's name.
        client: keyword arguments for aiokafka's clients, at least `bootstrap_servers`.
        stores: base addresses from which artifacts may be taken: http(s), or `s3://bucket/prefix/`.
        service: who we are, as adopted and refused events say it.
        cache_dir: downloads are kept here, and what was adopted last: a restart begins with it, also while
            cluster or store are away, and takes nothing older.
        trusted_keys: public keys as `tidemill keys` shows them, or the Path of a file with one a line, which
            is read anew for each model event. A model that none of them signed is refused. None: whoever may
            write to the cluster is trusted.
        pin_version: hold exactly this version, whatever is published later.
        inputs: the columns that this service can give, by name, or name and type (`string`, `float`, `int`):
            a model that takes others is refused before it is fetched. None: no model is refused for that.
        staleness: how stale the model may be, and what becomes of questions then. None: it is never stale.
        canaries: whether challengers on trial are held beside the current model: then `answering(request=…)`
            and `canary_of` give them their share of requests. A pinned version has none.
        max_bytes: an artifact that claims to be larger is refused unseen.
        timeout_s: longest wait for a store's connection or its next bytes.
        tracer: an OpenTelemetry tracer; adoptions are recorded by it, in the trace that the model's event
            names. None: no trace, and nothing of OpenTelemetry is needed.
        links: connections that it shares with other followers of the service, which `ModelFollowers` gives it
            and then starts and stops; `client`, `stores`, `timeout_s` and `s3` are theirs.
        s3: of `s3://` stores: `endpoint`, `region`, `access_key_id`, `secret_access_key`; what is missing
            comes from the environment, as for AWS's own tools.

    Raises:
        InvalidConfiguration: a store is no base address, a key is none, or an input has an unknown type.
    """

    def __init__(
        self,
        name: str,
        *,
        client: Mapping[str, Any],
        stores: Sequence[str],
        service: str,
        cache_dir: Path | str,
        trusted_keys: Sequence[str] | Path | None = None,
        pin_version: int | None = None,
        inputs: Inputs | None = None,
        staleness: StalenessBound | None = None,
        canaries: bool = False,
        max_bytes: int = 2 * 2**30,
        timeout_s: float = 10.0,
        s3: Mapping[str, Any] | None = None,
        tracer: Any | None = None,
        links: Links | None = None,
    ) -> None:
        self.name = name
        self.service = service
        self.current: LoadedModel | None = None
        self._before: LoadedModel | None = None
        self._refusals = Refusals(name, service=service)
        self._own_links = links is None
        self._links = links or Links(client, stores=stores, service=service, timeout_s=timeout_s, s3=s3)
        self._pinned = pin_version
        check_inputs(inputs)
        self._inputs = inputs
        self._bound = StalenessBound() if staleness is None else staleness
        self._known_since: tuple[tuple[int, float], ...] = ()  # versions not held yet, and since when known
        self.confirm_every_s = min(_CONFIRM_EVERY_S, (self._bound.unconfirmed_s or math.inf) / 4)
        self._confirmed_s = time.monotonic()
        self._said_stale: ModelStale | None = None
        self._moved = asyncio.Event()  # something that staleness depends on
        self._within = asyncio.Event()  # the bounds
        # A pinned version may be gone from the compacted topic; the history keeps it.
        self.topic = (topics.MODELS_CURRENT if pin_version is None else topics.MODELS).name
        folder = Path(cache_dir) / f"model-{quote(name, safe='')}"
        self._trusted = None if trusted_keys is None else TrustedKeys(trusted_keys)
        self._downloader = Downloader(
            self._links.stores, folder, max_bytes=max_bytes, turns=self._links.downloads
        )
        self._memory = Memory(folder)
        self.canary_log: CanaryFollower | None = None
        if canaries and pin_version is None:
            self.canary_log = CanaryFollower(
                name,
                service=service,
                links=self._links,
                folder=Path(cache_dir) / f"canary-{quote(name, safe='')}",
                trusted=self._trusted,
                inputs=inputs,
                max_bytes=max_bytes,
                current_version=self._held,
            )
        self._newest: Manifest | None = None
        self._newest_event = b""
        self._tracer = tracer
        self._place: tuple[int, trace.Place | None] = (
            0,
            None,
        )  # a version, and where its event lies in a trace
        self._fallback: tuple[Manifest, bytes] | None = None  # what was adopted before we began
        self._remembered_former: bytes | None = None  # and what had been adopted before that
        self._unknown_signer: bytes | None = None  # an event that waits for the list of keys to learn of one
        self._given_up = 0  # version that was rejected for good
        self._tried = 0  # version that was tried at least once
        self._failures = 0
        self._caught_up = False
        self._considering = asyncio.Lock()
        self._poked = asyncio.Event()
        self._ready = asyncio.Event()
        self._settled = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begin to follow. Neither the cluster nor a store need be there yet."""
        if (remembered := await asyncio.to_thread(self._memory.recall)) is not None:
            await self._consider(remembered)
            if self._newest is not None:
                self._fallback = self._newest, self._newest_event
        self._remembered_former = await asyncio.to_thread(self._memory.recall_former)
        self._confirmed_s = time.monotonic()
        roads = [self._adopt_forever(), self._watch_forever()]
        if self.canary_log is not None:
            await self.canary_log.begin()
            roads.append(self.canary_log.run())
        if self._own_links:
            await self._links.start([self], [] if self.canary_log is None else [self.canary_log])
        self._tasks = [asyncio.create_task(road) for road in roads]

    async def stop(self) -> None:
        """Stop following; `current` stays and answers on."""
        if self._own_links:
            await self._links.flush()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._own_links:
            await self._links.stop()

    async def __aenter__(self) -> ModelFollower:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def ready(self) -> LoadedModel:
        """Wait for a first model."""
        await self._ready.wait()
        assert self.current is not None
        return self.current

    def as_of(self, time_ms: int) -> LoadedModel | None:
        """The model for a question that stood at that time: the one before, if the current one came later.

        A service that was away answers what it left lying as it would have then: before the first version by
        none. Only the model before the current one is still held; a question from before both is the current
        one's.
        """
        current, before = self.current, self._before
        if current is None or time_ms >= current.manifest.published_ms:
            return current
        if before is None:
            return None if current.version == 1 else current
        return before if before.manifest.published_ms <= time_ms else current

    @property
    def last_refusal(self) -> AdoptionRefused | None:
        """Which version was not taken, and why; None: none was refused yet."""
        return self._refusals.last

    @property
    def stale(self) -> tuple[OverBound, ...]:
        """The bounds that the current model is beyond at this moment; none: it is not stale, or not there."""
        model = self.current
        return () if model is None else over(self._known(model), self._bound)

    @property
    def canary(self) -> LoadedModel | None:
        """The challenger that is on trial beside the current model; None: there is none, or none is held."""
        return None if self.canary_log is None else self.canary_log.model

    def canary_of(
        self, requests: Sequence[str], time_ms: int | None = None
    ) -> tuple[LoadedModel, list[int]] | None:
        """The canary and the places of the requests that it answers; None: it answers none of them.

        A request is the canary's by its id alone, whichever service asks, and before and after a restart.

        Args:
            requests: ids of requests, or keys of the events that are asked about.
            time_ms: when the question stood; None: now. A canary answers nothing from before its own time.
        """
        trial = None if self.canary_log is None else self.canary_log.of(requests)
        if trial is not None and time_ms is not None and time_ms < trial[0].manifest.published_ms:
            return None
        return trial

    async def answering(self, time_ms: int | None = None, *, request: str | None = None) -> Answering | None:
        """Who answers a question, with the service's bounds kept as it chose; None before a first version.

        Args:
            time_ms: when the question stood; None: now. A model from before the current one answers what
                stood in its own time, and is not stale for that.
            request: its id; where it is of a canary's share the canary answers. None: no canary does.

        Raises:
            StaleModel: of a service that lets questions wait: this one has waited for `patience_s`.
        """
        if self._bound.then == "wait" and self.stale:
            await self._wait_until_within()
        model = self.current if time_ms is None else self.as_of(time_ms)
        if model is None:
            return None
        if request is not None and (trial := self.canary_of([request], time_ms)) is not None:
            return Answering(trial[0], beside=model)
        flagged = self._bound.then == "flag" and model is self.current
        return Answering(model, self.stale if flagged else ())

    async def _wait_until_within(self) -> None:
        try:
            async with asyncio.timeout(self._bound.patience_s):
                while self.stale:
                    self._within.clear()
                    self._moved.set()
                    await self._within.wait()
        except TimeoutError:
            if why := words(self.stale):
                raise StaleModel(
                    f"{self.name} is stale, and a question waits {self._bound.patience_s:g} s at most: "
                    f"{why}; ask again, or let stale models serve or flag"
                ) from None

    def _known(self, model: LoadedModel) -> Known:
        now_s = time.monotonic()
        newer_s = next((since for version, since in self._known_since if version > model.version), None)
        return Known(
            age_s=time.time() - model.manifest.published_ms / 1000,
            behind_s=None if newer_s is None else now_s - newer_s,
            unconfirmed_s=now_s - self._confirmed_s,
        )

    async def _watch_forever(self) -> None:
        """Say when the model becomes stale and when it no longer is, and wake who waits for that."""
        while True:
            self._moved.clear()
            pause_s = self._look()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._moved.wait()

    def _look(self) -> float | None:
        """Say what is new of the model's staleness; gives the seconds until it may turn by itself."""
        model, said = self.current, self._said_stale
        if model is None:
            return None
        known = self._known(model)
        if not (passed := over(known, self._bound)):
            self._within.set()
            if said is not None:
                self._said_stale = None
                log.info("%s version %s is no longer stale", self.name, model.version)
                fresh = ModelFresh(
                    name=self.name,
                    service=self.service,
                    version=model.version,
                    sha256=model.sha256,
                    stale_version=said.version,
                    stale_since_ms=said.since_ms,
                    fresh_ms=_now_ms(),
                )
                self._links.announcer.say(fresh)
        elif said is None or said.version != model.version:
            now_ms = _now_ms()
            log.warning("%s version %s is stale: %s", self.name, model.version, words(passed))
            self._said_stale = ModelStale(
                name=self.name,
                service=self.service,
                version=model.version,
                sha256=model.sha256,
                newest_version=max([model.version, *(version for version, _ in self._known_since)]),
                over=list(passed),
                then=self._bound.then,
                since_ms=now_ms - int(1000 * max(each.for_s - each.at_most_s for each in passed)),
                noted_ms=now_ms,
            )
            self._links.announcer.say(self._said_stale)
        return next_s(known, self._bound)

    async def settled(self) -> LoadedModel | None:
        """Wait until what was published before we began is adopted or refused; the model, if there is one.

        A service that waits for this after a restart leaves no question to a model that was there before.
        """
        await self._settled.wait()
        return self.current

    def confirmed(self, asked_s: float) -> None:
        """All that the log held at that moment was taken: for `ModelLog`."""
        self._confirmed_s = asked_s
        self._moved.set()
        if not self._caught_up:
            self._caught_up = True
            self._poked.set()

    async def take(self, record: ConsumerRecord[Any, Any]) -> None:
        """A record about this model: for `ModelLog`."""
        try:
            envelope = open_record(record.key, record.value, record.headers)
            if not issubclass(contract_of(envelope), CurrentModel):
                return
            await self._consider(envelope.data)
        except (NotAnAnnouncement, msgspec.DecodeError, UnicodeDecodeError) as error:
            log.warning("a record about %s at offset %s is passed over: %s", self.name, record.offset, error)
            return
        if self._newest is not None and self._newest_event is envelope.data:
            self._place = self._newest.version, trace.place_of(envelope.extensions.get(trace.TRACEPARENT))

    async def _consider(self, event: bytes) -> None:
        """Make it the newest, if it is newer and signed as it must be: a forgery holds up no version.

        One at a time, in their order.

        Raises:
            msgspec.DecodeError, UnicodeDecodeError: it breaks the contract of a model event.
        """
        async with self._considering:
            if not self._is_wanted(claimed(event)):
                return
            try:
                # What was published before we began is read in one go, and only the newest of it taken up.
                manifest = await vouched(event, self._trusted, at_once=not self._caught_up)
            except (SignatureRefused, SignerUnknown) as error:
                self._refuse(msgspec.json.decode(event, type=CurrentModel).manifest, error)
                if isinstance(error, SignerUnknown):
                    self._unknown_signer = event
                    self._poked.set()
                return
            self._newest, self._newest_event = manifest, event
            self._known_since = (*self._known_since, (manifest.version, time.monotonic()))
            self._moved.set()
            self._unknown_signer = None
            self._failures = 0
            self._poked.set()

    def _is_wanted(self, manifest: Manifest | Claim) -> bool:
        """Versions never go back: an old event that is sent again changes nothing."""
        if manifest.name != self.name:
            return False
        if self._pinned is not None:
            return manifest.version == self._pinned and self._newest is None
        known = [m.version for m in (self._newest, self.current and self.current.manifest) if m]
        return manifest.version > max(known, default=0)

    async def _adopt_forever(self) -> None:
        await asyncio.to_thread(import_libraries)
        pause_s = None
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._poked.wait()
            self._poked.clear()
            if (waiting := self._unknown_signer) is not None:
                self._unknown_signer = None
                await self._consider(waiting)
                self._poked.clear()
            manifest, pause_s = self._newest, None
            if manifest is not None and manifest.version > max(self._held(), self._given_up):
                pause_s = await self._try(manifest, self._newest_event)
                await self._fall_back()
            if self._caught_up and (self._newest is None or self._tried >= self._newest.version):
                self._settled.set()
            if self._unknown_signer is not None:
                pause_s = _LIST_AGAIN_AFTER_S if pause_s is None else min(pause_s, _LIST_AGAIN_AFTER_S)

    async def _fall_back(self) -> None:
        """After a restart, a new version that is refused does not leave us without the one from before."""
        before, self._fallback = self._fallback, None
        if self.current is None and before is not None and before[0] is not self._newest:
            tried, given_up, failures = self._tried, self._given_up, self._failures
            await self._try(*before)
            self._tried, self._given_up, self._failures = tried, given_up, failures

    async def _former(self, manifest: Manifest) -> LoadedModel | None:
        """The model from before a restart, where it is an older one and can still be had."""
        if self._pinned is not None:
            return None
        for event in (self._fallback and self._fallback[1], self._remembered_former):
            if event is None:
                continue
            try:
                former = await vouched(event, self._trusted)
                if former.name != self.name or former.version >= manifest.version:
                    continue
                content = await self._downloader.fetch(former.artifact)
                return await self._load(former, content)
            except (Rejected, Retryable) as error:
                log.info("what %s was before version %s is gone: %s", self.name, manifest.version, error)
        return None

    async def _load(self, manifest: Manifest, content: bytes) -> LoadedModel:
        async with self._links.loads.turn():
            return await asyncio.to_thread(load, manifest, content)

    def _held(self) -> int:
        return self.current.version if self.current else 0

    async def _try(self, manifest: Manifest, event: bytes) -> float | None:
        """Adopt or refuse; the pause in seconds before the next try, if there is to be one."""
        try:
            await self._adopt(manifest, event)
            return None
        except Retryable as error:
            self._refuse(manifest, error)
            self._failures += 1
            return _AGAIN_AFTER_S[min(self._failures, len(_AGAIN_AFTER_S)) - 1]
        except Rejected as error:
            self._refuse(manifest, error)
        except Exception as error:  # whatever it is, the old model goes on answering
            log.exception("adoption of %s version %s failed", self.name, manifest.version)
            self._refuse(manifest, error)
        finally:
            self._tried = manifest.version
        self._given_up = manifest.version
        return None

    async def _adopt(self, manifest: Manifest, event: bytes) -> None:
        began = time.perf_counter()
        check_kind(manifest)
        check_fit(manifest, self._inputs)
        content = await self._downloader.fetch(manifest.artifact)
        loaded = await self._load(manifest, content)
        self._before = self.current or await self._former(manifest)
        previous, self.current = self.current, loaded
        self._known_since = tuple(each for each in self._known_since if each[0] > loaded.version)
        self._ready.set()
        self._moved.set()
        if self._pinned is None:
            await asyncio.to_thread(self._memory.keep, event)
        load_ms = (time.perf_counter() - began) * 1000
        ids = {"model": self.name, "model_version": manifest.version, "job": manifest.lineage.job_id}
        log.info("adopted %s version %s in %.0f ms", self.name, manifest.version, load_ms, extra=ids)
        self._say(
            manifest,
            "adopt",
            ModelAdopted(
                name=self.name,
                service=self.service,
                version=manifest.version,
                sha256=manifest.artifact.sha256,
                previous_version=previous.version if previous else None,
                adopted_ms=_now_ms(),
                load_ms=load_ms,
            ),
            took_ms=load_ms,
        )

    def _say(
        self, manifest: Manifest, what: str, event: ModelAdopted | AdoptionRefused, *, took_ms: float = 0.0
    ) -> None:
        """Announce it, in the trace of the model's event, and record it there if there is a tracer."""
        version, place = self._place
        place = place if version == manifest.version else None
        if self._tracer is not None:
            now_ms = time.time() * 1000
            place = trace.record(
                self._tracer,
                what,
                parent=place,
                start_ms=now_ms - took_ms,
                end_ms=now_ms,
                attributes={
                    "model": self.name,
                    "model_version": manifest.version,
                    "job": manifest.lineage.job_id,
                    "service": self.service,
                },
                failed=event.reason if isinstance(event, AdoptionRefused) else "",
            )
        self._links.announcer.say(event, place=place)

    def _refuse(self, manifest: Manifest, error: Exception) -> None:
        held = self.current.version if self.current else None
        if (refused := self._refusals.of(manifest, error, kept_version=held)) is not None:
            self._say(manifest, "refuse adoption", refused)


def _now_ms() -> int:
    return int(time.time() * 1000)
