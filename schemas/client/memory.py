"""What was adopted last, and before that, kept beside the downloads.

A restart begins with the last, and takes nothing older; questions of before it are the former's.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import msgspec

from ..aside import aside
from ..model import CurrentModel

log = logging.getLogger(__name__)

_FILE = "adopted.json"
_FORMER = "adopted-before.json"


class Memory:
    """The model event that was adopted last, byte for byte: its signature is checked again at the next start.

    Without it a service that starts afresh would have to take the compacted topic's word for what is newest,
    and a replayed event could set it back.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / _FILE
        self._former = folder / _FORMER

    def recall(self) -> bytes | None:
        """The event's JSON; None if there is none that can be read."""
        return self._read(self._path)

    def recall_former(self) -> bytes | None:
        """The JSON of the event that was adopted before that one; None if there is none that can be read."""
        return self._read(self._former)

    def _read(self, path: Path) -> bytes | None:
        try:
            event = path.read_bytes()
            msgspec.json.decode(event, type=CurrentModel)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            log.warning("what was adopted last cannot be read from %s, beginning without it: %s", path, error)
            return None
        return event

    def keep(self, event: bytes) -> None:
        """Remember it, in one step. A failure is logged: the model answers all the same."""
        try:
            with aside():
                # Not looked into: whoever recalls it does, and reading it would take time from the answers.
                if self._path.exists() and self._path.read_bytes() != event:
                    _be_also(self._former, self._path)
                write_durably(self._path, event)
        except OSError as error:
            log.warning("what was adopted cannot be kept in %s: %s", self._path, error)


def _be_also(path: Path, content: Path) -> None:
    """Make it a second name of that content, which is on the disk already."""
    staged = path.with_suffix(".new")
    staged.unlink(missing_ok=True)
    try:
        staged.hardlink_to(content)
    except OSError:  # a file system without such names
        write_durably(path, content.read_bytes())
    else:
        staged.replace(path)


def write_durably(path: Path, content: bytes) -> None:
    """Put content under that name in one step, once it is on the disk."""
    staged = path.with_suffix(".new")
    with staged.open("wb") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())
    staged.replace(path)
