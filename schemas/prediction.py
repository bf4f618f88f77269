"""What a service answered, with which model, on how old an input."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from .contract import Announcement, announces
from .raw import TimeMs


@announces("predictions.made")
class Predictions(Announcement, frozen=True, kw_only=True):
    """Scores for one frame of feature rows; the lists have one entry a row, in the frame's order."""

    service: str
    name: str
    version: int
    sha256: str
    features_id: Annotated[str, Meta(description="id of the feature frame that was answered")]
    keys: list[str]
    times_ms: list[TimeMs]
    scores: Annotated[list[float], Meta(description="probabilities")]
    newest_event_ms: Annotated[TimeMs, Meta(description="event time of the newest row behind the answer")]
    answered_ms: TimeMs
    stale: Annotated[
        str,
        Meta(
            description="why the model was stale when it answered; empty: it was within the service's "
            "bounds, or the service flags no answers"
        ),
    ] = ""
    canary: Annotated[
        bool,
        Meta(
            description="a canary's answers to the rows of its share, given in place of the current "
            "version's; that one's stand in another event of the same frame, for comparison"
        ),
    ] = False

    def event_id(self) -> str:
        frame = f"{self.service}/{self.name}/{self.features_id}"
        return f"{frame}/canary/{self.version}" if self.canary else frame

    def subject(self) -> str:
        return f"{self.name}/{self.version}"

    def key(self) -> str:
        return self.service
