"""Push a file's events to a raw topic: streamed, idempotent, and taken up again where it stopped.

`source` reads a file in chunks that are always the same, `typed` gives a CSV its contract's types, `encode`
makes records of them, `journal` keeps how far the cluster has acknowledged, `resume` finds what it holds
beyond that, `send` is the whole.
"""

from __future__ import annotations

from infra.push.send import Pushed, push_file
from infra.push.source import FileUnreadable

__all__ = ["push_file", "Pushed", "FileUnreadable"]
