"""A trigger looked at a closed window and said yes or no: both are events."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from .contract import Announcement, announces
from .window import Window


class Evaluation(Struct, frozen=True, kw_only=True):
    """One condition of the trigger, as it stood."""

    condition: Annotated[str, Meta(description="the condition as its engineer wrote it")]
    fired: bool
    score: float | None
    threshold: float | None
    reason: str
    evaluated: Annotated[
        bool,
        Meta(description="false: the condition could not say, and `reason` is why; `fired` is false then"),
    ] = True
    reference: Annotated[str | None, Meta(description="what the window was held against")] = None
    forecast_windows: Annotated[
        float | None,
        Meta(
            description="windows until it fires if all goes on as it has; 0 where it fires, null: no telling"
        ),
    ] = None
    scores: Annotated[
        dict[str, float], Meta(description="the scores behind the score, by column or slice, worst first")
    ] = field(default_factory=dict)
    state: Annotated[str, Meta(description="what the condition carries to the next window")] = ""


@announces("decision.made")
class Decision(Announcement, frozen=True, kw_only=True):
    """The trigger's verdict on one window. `job_id` names the job that a yes asks for."""

    pipeline: str
    window: Window
    verdict: Literal["yes", "no", "not_evaluated"]
    reason: str
    evaluations: list[Evaluation]
    dataset_version: int
    job_id: str | None = None
    training: Annotated[
        Window | None, Meta(description="span of event time that a yes trains on: later windows' reference")
    ] = None

    def event_id(self) -> str:
        return f"{self.pipeline}/{self.window}/decision"

    def subject(self) -> str:
        return f"{self.pipeline}/{self.window}"

    def key(self) -> str:
        return self.pipeline
