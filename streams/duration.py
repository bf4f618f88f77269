"""Spans of time as an engineer writes them: "500ms", "30s", "15m", "6h", "1d", "2w"."""

from __future__ import annotations

import re

from streams.declared import InvalidPipeline, here

_UNIT_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
_FORM = re.compile(r"(\d+)(ms|[smhdw])")


def to_ms(duration: str) -> int:
    """Milliseconds of a duration such as "6h" or "1d12h".

    Raises:
        InvalidPipeline: it is not of that form, or is not positive.
    """
    parts = _FORM.findall(duration)
    total_ms = sum(int(number) * _UNIT_MS[unit] for number, unit in parts)
    if "".join(number + unit for number, unit in parts) != duration or total_ms <= 0:
        raise InvalidPipeline(
            here(), f"{duration!r} is no duration; write a number and ms, s, m, h, d or w: 6h"
        )
    return total_ms
