"""The experiment that a pipeline declares, asked for by a person instead of by its trigger."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from schemas.errors import InvalidConfiguration
from schemas.job import Experiment
from schemas.window import Window, WindowClosed
from streams.closing import closing
from streams.load import Loaded
from streams.training import job_for
from streams.window import Sliding, Windowing


def experiment_now(
    loaded: Loaded, closed: Sequence[WindowClosed], excluded: Sequence[Window] = ()
) -> Experiment:
    """The experiment that a yes on the newest closed window would ask for.

    Args:
        closed: windows as the topic has them, of any pipeline.
        excluded: spans that are excluded now.

    Raises:
        InvalidConfiguration: the pipeline trains nothing, or no window of it has closed.
    """
    pipeline = loaded.pipeline
    if pipeline.train is None:
        raise InvalidConfiguration(
            f"pipeline {pipeline.name} declares no training; give it train=Training(…)"
        )
    mine = [window for window in closed if window.pipeline == pipeline.name]
    if not mine:
        raise InvalidConfiguration(
            f"no window of pipeline {pipeline.name} has closed yet; push events, or run the worker longer"
        )
    return job_for(
        pipeline.train,
        pipeline.publish_when,
        max(mine, key=lambda window: (window.window.end_ms, window.dataset_version)),
        spec=pipeline.spec(),
        newest_from_ms=newest_windows(pipeline.window, mine),
        decision_id="",
        configuration_sha256=loaded.sha256,
        requested_ms=0,
        excluded=excluded,
    ).experiment


def newest_windows(window: Windowing, closed: Iterable[WindowClosed]) -> Callable[[int, int], int]:
    """Of a count and a time, where the newest so many windows start that end by then.

    Args:
        closed: all windows that have closed: those of sessions lie where their rows say.
    """
    if isinstance(window, Sliding):
        return closing(window).newest_from_ms
    spans = sorted({(each.window.end_ms, each.window.start_ms) for each in closed})

    def newest_from_ms(count: int, end_ms: int) -> int:
        ended = [start_ms for until_ms, start_ms in spans if until_ms <= end_ms]
        return min(ended[-count:], default=end_ms)

    return newest_from_ms
