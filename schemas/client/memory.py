"""What was adopted last, kept beside the downloads: a restart begins with it, and takes nothing older."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import msgspec

from ..model import CurrentModel

log = logging.getLogger(__name__)

_FILE = "adopted.json"


class Memory:
    """The model event that was adopted last, byte for byte: its signature is checked again at the next start.

    Without it a service that starts afresh would have to take the compacted topic's word for what is newest,
    and a replayed event could set it back.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / _FILE

    def recall(self) -> bytes | None:
        """The event's JSON; None if there is none that can be read."""
        try:
            event = self._path.read_bytes()
            msgspec.json.decode(event, type=CurrentModel)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            log.warning(
                "what was adopted last cannot be read from %s, beginning without it: %s", self._path, error
            )
            return None
        return event

    def keep(self, event: bytes) -> None:
        """Remember it, in one step. A failure is logged: the model answers all the same."""
        staged = self._path.with_suffix(".new")
        try:
            with staged.open("wb") as out:
                out.write(event)
                out.flush()
                os.fsync(out.fileno())
            staged.replace(self._path)
        except OSError as error:
            log.warning("what was adopted cannot be kept in %s: %s", self._path, error)
