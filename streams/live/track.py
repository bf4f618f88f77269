"""What the triggers know of the live model: a fold over the assessments in the dataset's log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct, field

from streams.live.tally import PaneTally, assessment_of

# Of one version's panes the first are its baseline; of the others the newest are looked at.
FIRST_PANES = 64
_NEWEST_PANES = 256
_TRAININGS = 5


class Live(Struct, frozen=True, kw_only=True):
    """The newest model version that has answered, and how its answers fare; 0: none has.

    Attributes:
        panes: in the order of event time; of many, the first and the newest.
        trainings_s: seconds of the pipeline's newest trainings, as they were measured, the newest last.
    """

    version: int = 0
    panes: tuple[PaneTally, ...] = field(default_factory=tuple)
    trainings_s: tuple[float, ...] = field(default_factory=tuple)

    def after(self, metadata: Mapping[str, Any]) -> Live:
        """What is known once a commit was made that says this of itself.

        Versions never go back, so answers of an older one, and labels of its answers, tell nothing any more.
        """
        said = assessment_of(metadata)
        if said is None:
            return self
        version = max([self.version, *(pane.version for pane in said.panes)])
        panes = {pane.start_ms: pane for pane in self.panes} if version == self.version else {}
        for pane in said.panes:
            if pane.version == version:
                known = panes.get(pane.start_ms)
                panes[pane.start_ms] = pane if known is None else known + pane
        ordered = tuple(panes[start_ms] for start_ms in sorted(panes))
        if len(ordered) > FIRST_PANES + _NEWEST_PANES:
            ordered = ordered[:FIRST_PANES] + ordered[-_NEWEST_PANES:]
        return Live(
            version=version,
            panes=ordered,
            trainings_s=(*self.trainings_s, *said.trainings_s)[-_TRAININGS:],
        )
