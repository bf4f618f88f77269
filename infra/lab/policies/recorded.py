"""A recorded stream as it was announced: windows with their profiles, and the rows that services answered.

The worker's own fold, over the dataset's log from its beginning: what it says here is what it said live.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import polars as pl

from infra import atomic_file
from infra.dataset import Dataset, entry_of
from infra.point_in_time import with_labels
from schemas import topics
from schemas.envelope import unwrap
from schemas.errors import InvalidConfiguration
from schemas.profile import Profile, WindowProfiled
from schemas.window import Window, WindowClosed
from streams.announce.fold import EVER_MS, FEATURES_TYPE, Announcer, Progress
from streams.announce.log import read_commit
from streams.by_hand import newest_windows
from streams.closing import closing
from streams.pipeline import Pipeline
from streams.trigger import Answer, Condition, Look, Watched, watched_by

_Said = tuple[WindowClosed, Profile, tuple[Window, ...]]
"""A window, its profile, and the spans that were excluded when it closed."""


class NothingRecorded(InvalidConfiguration):
    """The dataset has no window to decide on in that span."""


@dataclass(frozen=True, slots=True)
class Closed:
    """A window as it closed, its profile, where the newest n windows by then start, and what was excluded."""

    event: WindowClosed
    profile: Profile
    newest_from_ms: Callable[[int, int], int]
    excluded: Sequence[Window] = ()


@dataclass(frozen=True, slots=True)
class Recorded:
    """All that policies are tried on.

    `rows`: feature rows sorted by event time, with the label (null where none came in time).
    """

    pipeline: Pipeline
    windows: Sequence[Closed]
    rows: pl.DataFrame
    dataset: Dataset
    version: int

    @property
    def label(self) -> str:
        """The label's column."""
        label = self.pipeline.spec().label
        assert label is not None
        return label.column


@dataclass(frozen=True)
class _Watching(Condition):
    """Asks for all that others watch, and never fires."""

    what: Watched

    def watched(self) -> Watched:
        return self.what

    def evaluate(self, look: Look) -> Answer:  # noqa: ARG002
        return Answer(False, [])


def record(
    pipeline: Pipeline,
    uri: str | Path,
    watching: Iterable[Condition],
    cache: Path,
    *,
    start_ms: int | None = None,
    end_ms: int | None = None,
    progress: Callable[[int, int], object] = lambda *_: None,
) -> Recorded:
    """Fold the dataset's log as a worker would, with profiles for all conditions that will be asked.

    Args:
        cache: what the fold says is kept there: the next call with the same log reads it.
        start_ms, end_ms: only windows that start, and end, within.
        progress: told version and newest version.

    Raises:
        DatasetUnreadable: there is no dataset.
        NothingRecorded: no window closed in the span.
    """
    dataset = Dataset(uri)
    version = dataset.newest_version()
    watched = Watched()
    for condition in watching:
        watched |= watched_by(condition)
    kept = cache / f"{_key(pipeline, dataset, version, watched, end_ms)}.stream"
    said = _kept(kept)
    if said is None:
        said = _fold(replace(pipeline, train_when=_Watching(watched)), dataset, version, end_ms, progress)
        _keep(kept, *said)
    windows, rows = said
    inside = [
        (closed, profile, excluded)
        for closed, profile, excluded in windows
        if (start_ms is None or closed.window.start_ms >= start_ms)
        and (end_ms is None or closed.window.end_ms <= end_ms)
    ]
    if not inside:
        raise NothingRecorded(
            f"no window of pipeline {pipeline.name} has closed in that span in {dataset.uri}; "
            + (
                f"its windows go from {windows[0][0].window} to {windows[-1][0].window}"
                if windows
                else "none has closed at all"
            )
        )
    newest_from_ms = newest_windows(pipeline.window, [closed for closed, *_ in windows])
    within = rows.filter(
        pl.col("_time") >= inside[0][0].window.start_ms,
        pl.col("_time") < (-EVER_MS if end_ms is None else end_ms),
    )
    return Recorded(
        pipeline=pipeline,
        windows=[Closed(closed, profile, newest_from_ms, spans) for closed, profile, spans in inside],
        rows=_with_labels(pipeline, dataset, version, within),
        dataset=dataset,
        version=version,
    )


def _fold(
    pipeline: Pipeline,
    dataset: Dataset,
    newest: int,
    end_ms: int | None,
    progress: Callable[[int, int], object],
) -> tuple[list[_Said], pl.DataFrame]:
    announcer = Announcer(pipeline, dataset.uri, Progress(closing(pipeline.window)), read_rows=dataset.rows)
    after_ms = pipeline.window.lateness_ms + 2 * pipeline.window.pane_ms
    closed: dict[str, _Said] = {}
    features: list[pl.DataFrame] = []
    for version in range(newest + 1):
        for each in announcer.apply(read_commit(pipeline, dataset.uri, version)):
            if each.envelope.type == FEATURES_TYPE:
                features.append(pl.read_ipc_stream(io.BytesIO(each.envelope.data)))
                continue
            if each.topic not in (topics.WINDOWS.name, topics.PROFILES.name):
                continue
            spans = tuple(exclusion.span for exclusion in announcer.progress.excluded)
            match unwrap(each.envelope):
                case WindowClosed() as event:
                    closed[str(event.window)] = (event, Profile(), spans)
                case WindowProfiled() as event:
                    closed[str(event.window)] = (closed[str(event.window)][0], event.profile, spans)
                case _:
                    pass
        progress(version, newest)
        if end_ms is not None and (announcer.progress.watermark_ms or EVER_MS) >= end_ms + after_ms:
            break  # all that ends by then has closed
    rows = pl.concat(features).sort("_time", maintain_order=True) if features else pl.DataFrame()
    return list(closed.values()), rows


def _with_labels(pipeline: Pipeline, dataset: Dataset, version: int, rows: pl.DataFrame) -> pl.DataFrame:
    label = pipeline.spec().label
    assert label is not None
    if rows.height == 0:
        return rows
    first_ms, last_ms = rows["_time"][0], rows["_time"][-1]
    labels = dataset.rows(
        label.source,
        version=version,
        start_ms=first_ms,
        end_ms=last_ms + label.within_ms + 1,
        columns=[label.key, label.column],
    )
    return with_labels(rows, labels, label, provenance=True)


def _key(pipeline: Pipeline, dataset: Dataset, version: int, watched: Watched, end_ms: int | None) -> str:
    """Of what decides the fold: the log, the declaration of features and windows, and what is profiled."""
    entry = entry_of(dataset.uri, version)
    window = {n: v for n, v in vars(pipeline.window).items() if n != "place"}
    parts = [
        str(Path(dataset.uri).resolve()),
        hashlib.sha256(entry.read_bytes()).hexdigest(),
        msgspec.json.encode(pipeline.spec()).decode(),
        repr((type(pipeline.window).__name__, sorted(window.items()))),
        repr((sorted(watched.columns), sorted(watched.slices), watched.features, watched.profiles)),
        repr(end_ms),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


class _Kept(msgspec.Struct, frozen=True):
    windows: list[_Said]
    rows: bytes


def _keep(file: Path, windows: list[_Said], rows: pl.DataFrame) -> None:
    sink = io.BytesIO()
    rows.write_ipc(sink, compression="lz4")
    file.parent.mkdir(parents=True, exist_ok=True)
    atomic_file.write_bytes(file, msgspec.msgpack.encode(_Kept(windows, sink.getvalue())))


def _kept(file: Path) -> tuple[list[_Said], pl.DataFrame] | None:
    """None where there is none, or one that was damaged."""
    try:
        kept = msgspec.msgpack.decode(file.read_bytes(), type=_Kept)
        return kept.windows, pl.read_ipc(io.BytesIO(kept.rows))
    except (OSError, msgspec.MsgspecError, pl.exceptions.PolarsError):
        return None
