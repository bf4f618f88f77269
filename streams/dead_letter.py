"""Dead letters: what was refused, with its bytes, its origin, and the reason."""

from __future__ import annotations

from schemas.dead_letter import DeadLetter
from streams.decode import Refused


def dead_letter(pipeline: str, refused: Refused) -> DeadLetter:
    """The announcement of one refused record or row."""
    frame, index = refused.frame, refused.index
    value = frame.values[index] if refused.value is None else refused.value
    return DeadLetter(
        pipeline=pipeline,
        topic=frame.topic,
        partition=frame.partition,
        offset=frame.offsets[index],
        row=refused.row,
        timestamp_ms=frame.timestamp_ms,
        reason=refused.reason,
        rule=refused.rule,
        detail=refused.detail,
        record_key=frame.keys[index],
        record_value=value,
        record_headers=[(name, bytes(said)) for name, said in frame.headers.get(index, ())],
    )
