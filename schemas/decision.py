"""A trigger looked at a closed window and said yes or no: both are events."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from .contract import Announcement, announces
from .window import Window


class Evaluation(Struct, frozen=True, kw_only=True):
    """One condition of the trigger, as it stood."""

    condition: Annotated[str, Meta(description="the condition as its engineer wrote it")]
    fired: bool
    score: float | None
    threshold: float | None
    reason: str


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

    def event_id(self) -> str:
        return f"{self.pipeline}/{self.window}/decision"

    def subject(self) -> str:
        return f"{self.pipeline}/{self.window}"

    def key(self) -> str:
        return self.pipeline
