"""The trials of canaries: answers and labels are gathered, and each trial's end is said, once.

A trial's state is the topics' and the dataset's: one that a restart cut off is begun anew, reads the same
answers and looks at the same requests again. Its end is one event: a promotion makes the model current by the
way of any other, and what a crash cut off of it is said at the next start.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import polars as pl
from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition

from infra.dataset import Dataset
from infra.kafka.connection import Connection
from infra.logging import logger
from infra.settings import Settings
from schemas import topics
from schemas.envelope import NotAnAnnouncement, open_record, unwrap
from schemas.errors import Rejected
from schemas.features import Label
from schemas.job import Experiment
from schemas.model import CanaryJudged, CanaryPromoted, CanaryPublished, CanaryWithdrawn
from schemas.prediction import Predictions
from trainers.bulletin import Bulletin
from trainers.canary import Verdict, judge
from trainers.keys import KeyFolder
from trainers.publishing import publishing

log = logger(__name__)

_LOOK_S = 1.0
_AGAIN_AFTER_S = 2.0
_MOST_WAITING = 1_000_000
_NONE = CanaryJudged(look=0, pairs=0)


class NoCanary(Rejected):
    """The model has no canary on trial."""


class Answers:
    """What both versions answered to the same events.

    An answer is one version's to one event, the first that was said: whichever service gave it. Of the
    current version's, those to other events than the canary's share are forgotten from time to time.
    """

    def __init__(self, event: CanaryPublished, label: Label) -> None:
        self._name, self._label = event.name, label
        self._versions = event.beside_version, event.manifest.version
        self._current: dict[tuple[str, int], float] = {}
        self._canary: dict[tuple[str, int], float] = {}

    def note(self, said: Predictions) -> None:
        """Take one record of answers in; of other models and versions it is passed over."""
        current, canary = self._versions
        if said.name != self._name or said.version != (canary if said.canary else current):
            return
        if len(self._current) > _MOST_WAITING:
            self._current = {at: score for at, score in self._current.items() if at in self._canary}
        into = self._canary if said.canary else self._current
        for key, time_ms, score in zip(said.keys, said.times_ms, said.scores, strict=False):
            if 0 <= score <= 1:
                into.setdefault((key, time_ms), score)

    def both(self) -> pl.DataFrame:
        """Events that both answered: `key`, `_time`, `current`, `canary`."""
        rows = [(*at, self._current[at], score) for at, score in self._canary.items() if at in self._current]
        schema = {"key": pl.String, "_time": pl.Int64, "current": pl.Float64, "canary": pl.Float64}
        return pl.DataFrame(rows, schema=schema, orient="row")

    def labelled(self, uri: str) -> pl.DataFrame:
        """Those that have their label in the dataset by now, in the order of the labels' event times.

        Raises:
            DatasetUnreadable: there is no such dataset.
        """
        both, label = self.both(), self._label
        if both.is_empty():
            return both.with_columns(label=pl.lit(0.0))
        first, last = both.get_column("_time").min(), both.get_column("_time").max()
        assert isinstance(first, int)
        assert isinstance(last, int)
        dataset = Dataset(uri)
        labels = dataset.rows(
            label.source,
            version=dataset.newest_version(),
            start_ms=first,
            end_ms=last + label.within_ms + 1,
            columns=[label.key, label.column],
        ).select(
            pl.col(label.key).cast(pl.String).alias("key"),
            pl.col("_time").alias("label_time"),
            pl.col(label.column).cast(pl.Float64).alias("label"),
        )
        came = pl.col("label_time") - pl.col("_time")
        return (
            both.join(labels.filter(pl.col("label").is_in([0.0, 1.0])), on="key", how="inner")
            .filter(came >= 0, came <= label.within_ms)
            .sort("label_time", "_time", "key")
            .unique(["key", "_time"], keep="first", maintain_order=True)
        )


class Trials:
    """Looks after every canary of a trainer.

    Args:
        concluding: held while the trainer decides what is current.
        jobs: the trainer's folder, whose lock whoever publishes holds.
    """

    def __init__(
        self,
        bulletin: Bulletin,
        keys: KeyFolder,
        connection: Connection,
        *,
        concluding: asyncio.Lock,
        jobs: Path,
        now_ms: Callable[[], int],
    ) -> None:
        self._bulletin, self._registry, self._keys = bulletin, bulletin.registry, keys
        self._connection = connection
        self._concluding, self._jobs, self._now_ms = concluding, jobs, now_ms
        self._tasks: dict[tuple[str, int], asyncio.Task[None]] = {}

    async def turn(self) -> None:
        """Begin what is new, end what a newer model has overtaken, and say what a crash left unsaid."""
        for event in self._registry.overtaken():
            live = self._registry.champion(event.name)
            reason = f"version {live.version if live else 0} became the current one during its trial"
            await self._end(event, Verdict("withdrawn", reason, _NONE))
        for unsaid in self._registry.unsaid_canaries():
            event = self._keys.signed(unsaid) if not isinstance(unsaid, CanaryWithdrawn) else unsaid
            await self._bulletin.say(topics.MODELS_CANARIES.name, event)
        if self._concluding.locked():
            return  # a trial is being ended, by its own task
        on_trial = {(e.name, e.manifest.version): e for e in self._registry.canaries()}
        for key in [key for key in self._tasks if key not in on_trial]:
            self._tasks.pop(key).cancel()
        for key, event in on_trial.items():
            if key not in self._tasks:
                self._tasks[key] = asyncio.create_task(self._see_through(event))

    async def stop(self) -> None:
        """Leave all trials, to be begun anew at the next start."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _see_through(self, event: CanaryPublished) -> None:
        log.info("a canary is on trial", model=event.name, model_version=event.manifest.version)
        while True:
            try:
                verdict = await self._watch(event)
                await self._end(event, verdict)
                return
            except Exception as error:  # whatever it is, no job waits for it
                log.warning("a trial is begun anew", model=event.name, error=repr(error))
            await asyncio.sleep(_AGAIN_AFTER_S)

    async def _watch(self, event: CanaryPublished) -> Verdict:
        """Follow answers and labels until the trial is decided, or its time is over."""
        terms, experiment = event.manifest.canary, event.manifest.lineage.experiment
        if terms is None or experiment is None or experiment.spec.label is None:
            return Verdict("withdrawn", "its manifest does not say by which labels it is judged", _NONE)
        until_ms = event.manifest.published_ms + terms.longest_ms
        answers = Answers(event, experiment.spec.label)
        consumer = AIOKafkaConsumer(
            **self._connection.client_arguments(), enable_auto_commit=False, auto_offset_reset="earliest"
        )
        await consumer.start()
        try:
            await _seek(consumer, event.manifest.published_ms)
            looked_s, newest = 0.0, Verdict("goes on", "no request has its label yet", _NONE)
            while True:
                for records in (await consumer.getmany(timeout_ms=500)).values():
                    for record in records:
                        _note(answers, record.key, record.value, record.headers)
                if time.monotonic() - looked_s < _LOOK_S:
                    continue
                newest = await asyncio.to_thread(_look, answers, event, experiment)
                looked_s = time.monotonic()
                if newest.outcome != "goes on":
                    return newest
                if self._now_ms() >= until_ms:
                    return Verdict("withdrawn", f"its time is over; {newest.reason}", newest.judged)
        finally:
            await consumer.stop()

    async def _end(self, event: CanaryPublished, verdict: Verdict) -> None:
        async with self._concluding, publishing(self._jobs):
            await self._bulletin.caught_up()
            await say_end(self._bulletin, self._keys, event, verdict, now_ms=self._now_ms())


async def say_end(
    bulletin: Bulletin, keys: KeyFolder, event: CanaryPublished, verdict: Verdict, *, now_ms: int
) -> CanaryPromoted | CanaryWithdrawn | None:
    """Say a trial's end in the history, as the current model if promoted, and where the canary was offered.

    Whoever calls this holds the right to publish, and has read the topics to their end. None: it is over
    already, or a newer model is current and it cannot be promoted any more.
    """
    registry, manifest = bulletin.registry, event.manifest
    if not registry.is_unended(event):
        return None
    live = registry.champion(event.name)
    ended: CanaryPromoted | CanaryWithdrawn
    if verdict.outcome == "promoted":
        if live is None or registry.canary(event.name) != manifest:
            return None
        ended = keys.signed(
            CanaryPromoted(
                name=event.name,
                manifest=msgspec.structs.replace(
                    manifest, version=registry.next_version(event.name), published_ms=now_ms, canary=None
                ),
                canary_version=manifest.version,
                from_version=live.version,
                reason=verdict.reason,
                judged=verdict.judged,
                promoted_ms=now_ms,
            )
        )
    else:
        ended = CanaryWithdrawn(
            name=event.name,
            version=manifest.version,
            sha256=manifest.artifact.sha256,
            reason=verdict.reason,
            judged=verdict.judged,
            withdrawn_ms=now_ms,
        )
    await bulletin.say(topics.MODELS.name, ended)
    if isinstance(ended, CanaryPromoted):
        await bulletin.say(topics.MODELS_CURRENT.name, ended)
    await bulletin.say(topics.MODELS_CANARIES.name, ended)
    log.info(
        "a trial is over",
        model=event.name,
        model_version=manifest.version,
        outcome=verdict.outcome,
        reason=verdict.reason,
    )
    return ended


async def end_by_hand(
    settings: Settings, connection: Connection, *, name: str, promote: bool, reason: str
) -> CanaryPromoted | CanaryWithdrawn:
    """Promote or withdraw a model's canary now. Run it where the trainer runs: the signing keys are there.

    Raises:
        NoCanary: the model has none on trial.
        InvalidConfiguration: no key signs here.
        PublishingBusy: a trainer does not come to an end with publishing.
    """
    keys = KeyFolder(settings.paths.signing_keys)
    bulletin = Bulletin(connection, trusted=keys.trusted())
    async with publishing(settings.paths.jobs):
        await bulletin.start()
        try:
            event = next((e for e in bulletin.registry.canaries() if e.name == name), None)
            verdict = Verdict("promoted" if promote else "withdrawn", f"by hand: {reason}", _NONE)
            now_ms = int(time.time() * 1000)
            ended = event and await say_end(bulletin, keys, event, verdict, now_ms=now_ms)
        finally:
            await bulletin.stop()
    if not ended:
        raise NoCanary(f"no canary of {name} is on trial; `tidemill models {name}` shows what became of it")
    return ended


async def _seek(consumer: AIOKafkaConsumer, since_ms: int) -> None:
    """To the first answer that may be to the canary's requests."""
    name = topics.PREDICTIONS.name
    await consumer.topics()
    tps = [TopicPartition(name, number) for number in consumer.partitions_for_topic(name) or {0}]
    consumer.assign(tps)
    found = await consumer.offsets_for_times(dict.fromkeys(tps, since_ms))
    for tp in tps:
        at = found.get(tp)
        if at is None:
            await consumer.seek_to_end(tp)
        else:
            consumer.seek(tp, at.offset)


def _note(answers: Answers, key: bytes | None, value: bytes | None, headers: object) -> None:
    try:
        event = unwrap(open_record(key, value, headers))  # type: ignore[arg-type]
    except NotAnAnnouncement:
        return
    if isinstance(event, Predictions):
        answers.note(event)


def _look(answers: Answers, event: CanaryPublished, experiment: Experiment) -> Verdict:
    terms = event.manifest.canary
    assert terms is not None
    rows = answers.labelled(event.manifest.lineage.dataset_uri)
    truth, current, canary = (rows.get_column(name).to_numpy() for name in ("label", "current", "canary"))
    return judge(truth, current, canary, terms=terms, gate=experiment.gate)
