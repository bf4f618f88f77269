"""The experiment that a pipeline declares, asked for by a person instead of by its trigger."""

from __future__ import annotations

from collections.abc import Sequence

from schemas.errors import InvalidConfiguration
from schemas.job import Experiment
from schemas.window import Window, WindowClosed
from streams.closing import closing
from streams.load import Loaded
from streams.training import job_for
from streams.window import Sliding


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
    spans = sorted({(window.window.end_ms, window.window.start_ms) for window in mine})

    def newest_from_ms(count: int, end_ms: int) -> int:
        if isinstance(pipeline.window, Sliding):
            return closing(pipeline.window).newest_from_ms(count, end_ms)
        ended = [start_ms for until_ms, start_ms in spans if until_ms <= end_ms]
        return ended[max(0, len(ended) - count)] if ended else end_ms

    return job_for(
        pipeline.train,
        pipeline.publish_when,
        max(mine, key=lambda window: (window.window.end_ms, window.dataset_version)),
        spec=pipeline.spec(),
        newest_from_ms=newest_from_ms,
        decision_id="",
        configuration_sha256=loaded.sha256,
        requested_ms=0,
        excluded=excluded,
    ).experiment
