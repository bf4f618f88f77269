"""Dead letters: what was refused, with its bytes, its origin, and the reason."""

from __future__ import annotations

from hashlib import sha256

from schemas.dead_letter import DeadLetter
from streams.decode.refused import Refused

MOST_BYTES = 10 * 2**20
"""Of key, value and headers together: in base64 they must fit a record of the dead-letter topic."""


def dead_letter(pipeline: str, refused: Refused) -> DeadLetter:
    """The announcement of one refused record or row. What no letter can carry is named by its SHA-256."""
    frame, index = refused.frame, refused.index
    key = frame.keys[index]
    value = frame.values[index] if refused.value is None else refused.value
    # A header's value may be null on the wire; a letter's reader gets no bytes for it.
    headers = [(name, bytes(said or b"")) for name, said in frame.headers.get(index, ())]
    detail = refused.detail
    size_bytes = len(key or b"") + len(value or b"") + sum(len(name) + len(said) for name, said in headers)
    if size_bytes > MOST_BYTES:
        digest = sha256(value or b"").hexdigest()
        detail += f"; left out here: the value of {len(value or b'')} bytes, SHA-256 {digest}"
        key, value, headers = None, None, []
    return DeadLetter(
        pipeline=pipeline,
        topic=frame.topic,
        partition=frame.partition,
        offset=frame.offsets[index],
        row=refused.row,
        timestamp_ms=frame.timestamp_of(index),
        reason=refused.reason,
        rule=refused.rule,
        detail=detail,
        record_key=key,
        record_value=value,
        record_headers=headers,
    )
