"""An event's record key: the text of the field that its topic is keyed by, however the event arrives."""

from __future__ import annotations

from typing import Any

import msgspec


class KeyReader:
    """Reads the keys of one topic's JSON events; `field` is the one that the topic names as its key."""

    def __init__(self, field: str) -> None:
        self.field = field
        self._of_line = msgspec.json.Decoder(
            msgspec.defstruct("Keyed", [("value", Any, None)], rename={"value": field}, gc=False)
        )

    def read(self, event: bytes | memoryview) -> bytes:
        """The key of one event; empty where it has none, or is no JSON object."""
        try:
            value = self._of_line.decode(event).value  # type: ignore[attr-defined]
            return b"" if value is None else str(value).encode()
        except (msgspec.MsgspecError, UnicodeError, RecursionError, ValueError):
            return b""
