"""Send many events to a raw topic: streamed, idempotent, and taken up again where it stopped.

`source` reads a file in chunks that are always the same, `typed` gives a CSV its contract's types, `encode`
makes records of them, `record_batch` whole batches of those, `journal` keeps how far the cluster has
acknowledged, `resume` finds what it holds beyond that, `push` is the whole, `sender` what a producer calls.
"""

from __future__ import annotations

from .push import Pushed, PushFailed
from .sender import EventSender, EventUnfit
from .source import FileUnreadable

__all__ = ["EventSender", "Pushed", "EventUnfit", "FileUnreadable", "PushFailed"]
