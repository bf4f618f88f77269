"""The announcing half of a worker: the dataset's log goes out as events.

Of a pipeline's workers one speaks for it: the owner of its main source's first partition. It folds the
log from where the topics end, its own commits and those of others alike.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import structlog
from aiokafka.errors import KafkaError

from infra.dataset import Dataset
from infra.kafka.connection import Connection
from infra.observe import metrics
from infra.observe.instruments import Instruments
from infra.observe.traces import Traces
from infra.switched import Switched, SwitchedAway, switch_of
from schemas import topics
from schemas.decision import Decision
from schemas.envelope import wrap
from schemas.job import JobRequested
from schemas.trace import TRACEPARENT, Place, place_of
from schemas.window import WindowAmended, WindowClosed
from streams.announce.fold import Announced, Announcer, Commit
from streams.announce.log import is_committed, keep, read_commit, recall
from streams.announce.outbox import Outbox, standing
from streams.announce.standing import Standings
from streams.ledger.commit import DatasetNotWritable, make_durable
from streams.ledger.positions import replaced
from streams.live.assessor import Assessor, Superseded
from streams.pipeline import Pipeline
from streams.summary.profiling import beginning

log = structlog.get_logger(__name__)

# So many commits may wait in memory; then ingest waits for the announcements.
_MAX_WAITING = 8
# A snapshot of some milliseconds after so many versions keeps a restart from reading the whole log.
_SNAPSHOT_EVERY = 500
# How soon commits of other workers are seen.
_LOOK_S = 0.25
# How often the pipeline's standing is said.
_STANDING_S = 1.0


class Herald:
    """Announces what a pipeline's log says, while it is told to lead."""

    def __init__(
        self,
        pipeline: Pipeline,
        uri: str,
        connection: Connection,
        outbox: Outbox,
        *,
        configuration_sha256: str = "",
        instruments: Instruments | None = None,
        traces: Traces | None = None,
        assessor: Assessor | None = None,
        since: Switched | None = None,
    ) -> None:
        self._since = since
        self._traces = traces
        self._assessor = assessor if assessor is not None and assessor.is_wanted else None
        self._instruments = instruments or Instruments("worker")
        self.pipeline, self.uri, self.connection = pipeline, uri, connection
        self.version = -1  # announced last by this process
        self._outbox = outbox
        self._configuration = configuration_sha256
        self._leads = asyncio.Event()
        self._term = 0
        self._waiting: dict[int, Commit] = {}
        self._committed = asyncio.Event()
        self._room = asyncio.Event()
        self._standings = Standings(pipeline.name)
        self._stood = (-1, 0.0)  # the version whose standing was said last, and when

    @property
    def leads(self) -> bool:
        """Whether it speaks for the pipeline."""
        return self._leads.is_set()

    # ── what ingest tells it ────────────────────────────────────────────────────────────────────────

    def lead(self) -> None:
        """Speak for the pipeline from now on; what was said before is looked up on the topics."""
        self._term += 1
        self._forget()
        self._leads.set()

    def fall_silent(self) -> None:
        """Another worker speaks for the pipeline."""
        self._leads.clear()
        self._forget()

    def committed(self, commit: Commit) -> None:
        """A commit is durable: announce it from memory instead of reading it back."""
        if self._leads.is_set() and commit.version > self.version:
            self._waiting[commit.version] = commit
        self._committed.set()

    async def room(self) -> None:
        """Wait while more is committed than announced."""
        while self._leads.is_set() and len(self._waiting) >= _MAX_WAITING:
            self._room.clear()
            await self._room.wait()

    def _forget(self) -> None:
        self._waiting.clear()
        self._room.set()
        self._committed.set()

    # ── announcing ──────────────────────────────────────────────────────────────────────────────────

    async def run(self) -> None:
        """Announce for ever, whenever it leads."""
        while True:
            await self._leads.wait()
            term = self._term
            announcer, known = await self._take_up()
            while self._leads.is_set() and self._term == term:
                is_new = await self._announce_next(announcer, known)
                await self._say_standing(announcer)
                await self._assess(announcer)
                if not is_new:
                    self._committed.clear()
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(_LOOK_S):
                            await self._committed.wait()

    async def finish(self) -> None:
        """Say what the log has still to say, and no more; where it ends by a switch, to that."""
        announcer, known = await self._take_up()
        with contextlib.suppress(SwitchedAway):
            while await self._announce_next(announcer, known):
                pass

    async def _take_up(self) -> tuple[Announcer, set[str]]:
        """Where the announcements stand, from the topics and the log."""
        began = time.perf_counter()
        name, since = self.pipeline.name, self._since
        stands = await standing(self.connection, name, since.epoch if since else 0)
        if since is not None and since.event_id(name) not in stands.versions:
            raise SwitchedAway(
                f"the switch of pipeline {name} from {since.before} to {since.to} is half made: not all of "
                f"{since.before} is announced. Run the same `tidemill switch` again"
            )
        dataset = Dataset(self.uri)
        newest = await asyncio.to_thread(dataset.newest_version)
        if stands.version > newest:
            raise replaced(self.pipeline.name, self.uri, stands.version, newest)
        # The newest version that the topics know may have gone out in part: it is announced again, without
        # the ids that are there.
        progress = await asyncio.to_thread(
            recall,
            self.pipeline,
            self.uri,
            through_version=max(stands.version - 1, since.after_version if since else -1),
        )
        progress.history = stands.history_before(stands.version, beginning(self.pipeline))
        self.version = progress.version
        log.info(
            "announcing",
            pipeline=self.pipeline.name,
            after_version=progress.version,
            newest_version=newest,
            taken_up_in_s=round(time.perf_counter() - began, 3),
        )
        await asyncio.to_thread(
            self._standings.take_up,
            self.uri,
            progress.version,
            [(t, n) for t in self.pipeline.sources() for n in await self._outbox.partitions_of(t)],
        )
        announcer = Announcer(
            self.pipeline,
            self.uri,
            progress,
            read_rows=dataset.rows,
            configuration_sha256=self._configuration,
            since=since,
            closed_before=stands.closed_before(),
        )
        if self._assessor is not None:
            await self._assessor.take_up(progress.version)
        return announcer, stands.ids

    async def _assess(self, announcer: Announcer) -> None:
        """Count how the live model's answers fare, where the trigger looks at them."""
        if self._assessor is None:
            return
        try:
            await self._assessor.turn(announcer.progress.watermark_ms)
        except Superseded:
            await self._assessor.take_up(announcer.progress.version)
        except DatasetNotWritable as error:
            log.warning("answers are not counted, will try again", error=str(error))

    async def _announce_next(self, announcer: Announcer, known: set[str]) -> bool:
        """Announce the next version of the log; False where there is none yet."""
        version = announcer.progress.version + 1
        commit = self._waiting.pop(version, None)
        began = time.perf_counter()
        if commit is None:
            if not is_committed(self.uri, version):
                return False
            # Whoever made it may not have flushed it yet: nothing is said of what a power cut could undo.
            await asyncio.to_thread(make_durable, self.uri, version)
            commit = await asyncio.to_thread(
                read_commit, self.pipeline, self.uri, version, columns=announcer.columns
            )
        portions = announcer.portions(commit)
        while (portion := await asyncio.to_thread(next, portions, None)) is not None:
            await self._publish(portion, version, but_not=known)
        known.clear()
        if self._assessor is not None:
            self._assessor.take(commit)
        self._standings.take(commit)
        if version % _SNAPSHOT_EVERY == 0:
            with contextlib.suppress(OSError):  # a full disk: the next announcer reads more of the log
                await asyncio.to_thread(keep, self.pipeline, self.uri, announcer.progress)
        self.version = version
        for stale in [v for v in self._waiting if v <= version]:
            del self._waiting[stale]
        self._room.set()
        took_s = time.perf_counter() - began
        self._instruments.took(metrics.ANNOUNCE_SECONDS, took_s, self.pipeline.name)
        switch = switch_of(commit.metadata)
        if switch is not None and announcer.ends_by(switch):
            raise SwitchedAway(
                f"{switch.by} switched pipeline {self.pipeline.name} to the dataset {switch.to} "
                f"({switch.reason}); all of {switch.before} is announced. Start the worker by the rules of "
                f"{switch.to}"
            )
        return True

    async def _publish(self, announced: Sequence[Announced], version: int, *, but_not: set[str]) -> None:
        said_ms = time.time() * 1000
        if self._traces is not None:
            announced = traced(announced, self._traces.beginning(f"{self.pipeline.name}@{version}"))
        await self._outbox.publish(announced, but_not=but_not)
        self._count([each for each in announced if each.envelope.id not in but_not], version, said_ms)

    def _count(self, sent: Sequence[Announced], version: int, said_ms: float) -> None:
        """To metrics, log and trace, once the cluster holds them."""
        name, count = self.pipeline.name, self._instruments.count
        for each in sent:
            count(metrics.ANNOUNCEMENTS, 1, name, each.topic)
            ids = {"version": version}
            match each.said:
                case WindowClosed(window=window):
                    count(metrics.WINDOWS, 1, name, "closed")
                    said, ids = "window closed", {**ids, "window": str(window)}
                case WindowAmended(window=window):
                    count(metrics.WINDOWS, 1, name, "amended")
                    said, ids = "window amended", {**ids, "window": str(window)}
                case Decision(verdict=verdict, window=window, job_id=job):
                    count(metrics.DECISIONS, 1, name, verdict)
                    decided = {"window": str(window), "decision": each.envelope.id, "job": job}
                    said, ids = "decided", {**ids, **decided, "verdict": verdict}
                case JobRequested(job_id=job, decision_id=decision):
                    said, ids = "job requested", {**ids, "job": job, "decision": decision}
                case _:
                    continue
            log.info(said, **ids)
            self._record(each, said, ids, said_ms)

    def _record(self, each: Announced, said: str, ids: dict[str, Any], said_ms: float) -> None:
        place = place_of(each.envelope.extensions.get(TRACEPARENT))
        if self._traces is None or place is None:
            return
        beginning = self._traces.beginning(f"{self.pipeline.name}@{ids['version']}")
        self._traces.record(
            said,
            place,
            parent=beginning.beside(ids["decision"]) if said == "job requested" else beginning,
            start_ms=said_ms,
            end_ms=time.time() * 1000,
            pipeline=self.pipeline.name,
            **{name: value for name, value in ids.items() if value is not None},
        )

    async def _say_standing(self, announcer: Announcer) -> None:
        """How far the pipeline is, if that is news and was not said just now."""
        version, said_s = self._stood
        now_s = time.monotonic()
        if announcer.progress.version == version or now_s - said_s < _STANDING_S:
            return
        self._stood = (announcer.progress.version, now_s)
        stands = self._standings.event(announcer.progress)
        if not stands.partitions:
            return  # nothing was read yet
        envelope = wrap(stands, source=f"/tidemill/{self.pipeline.name}", time_ms=stands.committed_ms)
        try:
            await self._outbox.publish([Announced(topics.STANDINGS.name, envelope)])
        except KafkaError as error:  # of all that is announced nothing hangs on this
            log.warning("the pipeline's standing could not be said", error=str(error))


def traced(announced: Sequence[Announced], beginning: Place) -> list[Announced]:
    """Each with its place in the trace of the commit that it comes of."""
    return [
        replace(
            each,
            envelope=replace(
                each.envelope,
                extensions={
                    **each.envelope.extensions,
                    TRACEPARENT: beginning.beside(each.envelope.id).traceparent,
                },
            ),
        )
        for each in announced
    ]
