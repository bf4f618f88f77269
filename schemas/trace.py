"""Where something lies in a trace: W3C trace context, as the CloudEvents extension `traceparent` carries it.

Ids are made of what is announced, as an announcement's own id is: whoever says it again after a crash says it
at the same place of the same trace. Only `record` needs OpenTelemetry.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TRACEPARENT = "traceparent"
"""Name of the CloudEvents extension (Distributed Tracing extension, version 1.0)."""
_FORM = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")


@dataclass(frozen=True, slots=True)
class Place:
    """One span of one trace, and whether the trace is recorded."""

    trace_id: int
    span_id: int
    sampled: bool = True

    @property
    def traceparent(self) -> str:
        """As it travels."""
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-{int(self.sampled):02x}"

    def beside(self, what: str) -> Place:
        """The place of something else in the same trace."""
        return Place(self.trace_id, _digest(what, 8), self.sampled)


def beginning(of: str, *, share: float = 1.0) -> Place:
    """The first place of the trace of something, by its name.

    Args:
        share: of traces that are recorded; the same ones whoever asks.
    """
    trace_id = _digest(f"trace/{of}", 16)
    return Place(trace_id, _digest(of, 8), (trace_id >> 64) < share * 2**64)


def place_of(traceparent: str | None) -> Place | None:
    """The place that a `traceparent` names; None for none, and for one that is malformed: it is ignored."""
    found = _FORM.fullmatch(traceparent or "")
    if found is None:
        return None
    place = Place(int(found[1], 16), int(found[2], 16), bool(int(found[3], 16) & 1))
    return place if place.trace_id and place.span_id else None


def record(
    tracer: Any,
    name: str,
    *,
    parent: Place | None,
    start_ms: float,
    end_ms: float,
    attributes: Mapping[str, str | float | bool],
    failed: str = "",
) -> Place:
    """Have an OpenTelemetry tracer record a span that is over; gives its place.

    Args:
        start_ms, end_ms: epoch milliseconds.
        failed: what went wrong; empty: nothing.
    """
    from opentelemetry import trace

    within = None
    if parent is not None:
        flags = trace.TraceFlags(int(parent.sampled))
        context = trace.SpanContext(parent.trace_id, parent.span_id, is_remote=True, trace_flags=flags)
        within = trace.set_span_in_context(trace.NonRecordingSpan(context))
    span = tracer.start_span(
        name,
        context=within,
        start_time=int(start_ms * 1e6),
        attributes={f"tidemill.{key}": value for key, value in attributes.items()},
    )
    if failed:
        span.set_status(trace.StatusCode.ERROR, failed)
    span.end(end_time=int(max(start_ms, end_ms) * 1e6))
    own = span.get_span_context()
    return Place(own.trace_id, own.span_id, own.trace_flags.sampled)


def _digest(text: str, size_bytes: int) -> int:
    # An id of zeros means none; that it comes out so is not to be expected, and would be no id.
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=size_bytes).digest()) or 1
