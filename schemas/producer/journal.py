"""How far a push has come: a small file, flushed to disk before the next chunks go out.

It is named by the file's path, the topic and the cluster. It says how many chunks the cluster has
acknowledged, and by partition from where on records of later ones can lie.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import msgspec
from filelock import FileLock, Timeout

from ..errors import InvalidConfiguration
from .encode import Form
from .source import CHUNK_ROWS

_LOOKED_AT_BYTES = 65_536


class FileChanged(InvalidConfiguration):
    """The file is another than the one of which a part was pushed."""


class State(msgspec.Struct, kw_only=True):
    """`chunks` and `events` acknowledged; `floors` are each partition's next offset after them."""

    file: str
    topic: str
    cluster: str
    fingerprint: str
    form: Form
    chunk_rows: int = CHUNK_ROWS
    chunks: int = 0
    events: int = 0
    floors: list[int] = msgspec.field(default_factory=list)
    complete: bool = False


class Journal:
    """The state of one push, on disk."""

    def __init__(self, folder: Path, file: Path, *, topic: str, cluster: str, form: Form) -> None:
        self.state = State(
            file=str(file.absolute()),
            topic=topic,
            cluster=cluster,
            fingerprint=fingerprint(file),
            form=form,
        )
        named = "\n".join((self.state.file, topic, cluster)).encode()
        self._lock: FileLock | None = None
        self.path = folder / f"{file.stem}-{hashlib.sha256(named).hexdigest()[:12]}.json"

    def hold(self) -> None:
        """Keep other pushes of the same file away until `release`, or until this process is dead.

        Raises:
            InvalidConfiguration: one runs.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.path.with_suffix(".lock"), timeout=0)
        try:
            self._lock.acquire()
        except Timeout:
            raise InvalidConfiguration(
                f"another push of {self.state.file} to {self.state.topic} runs; wait for it, or stop it"
            ) from None

    def release(self) -> None:
        """The push is over."""
        if self._lock is not None:
            self._lock.release()

    def take_up(self) -> bool:
        """Go on from what an earlier push of this file left; False if there is nothing to go on from.

        Raises:
            FileChanged: it left a part to be done, and the file or the form of records is another now.
        """
        try:
            said = msgspec.json.decode(self.path.read_bytes(), type=State)
        except FileNotFoundError:
            return False
        except (msgspec.MsgspecError, OSError) as error:
            raise InvalidConfiguration(
                f"the journal {self.path} cannot be read ({error}); move it away to push from the beginning"
            ) from error
        same = (said.fingerprint, said.form, said.chunk_rows) == (
            self.state.fingerprint,
            self.state.form,
            self.state.chunk_rows,
        )
        if not same and said.complete:
            return False  # a new file of an old name, all of which is new
        if not same:
            raise FileChanged(
                f"{said.events:,} events of {said.file} were pushed as {said.form}, and since then the file "
                "or that choice has changed: restore it to go on, or push all "
                "of it from the beginning (--from-beginning)"
            )
        self.state = said
        return True

    def write(self) -> None:
        """Put it on disk, in one step."""
        staged = self.path.with_suffix(".new")  # nobody else writes it: this push holds the lock
        with staged.open("wb") as out:
            out.write(msgspec.json.encode(self.state))
            out.flush()
            os.fsync(out.fileno())
        staged.replace(self.path)
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def fingerprint(file: Path) -> str:
    """Size, time of change and both ends of a file: another whenever it was written anew."""
    stat = file.stat()
    digest = hashlib.sha256(f"{stat.st_size} {stat.st_mtime_ns}".encode())
    with file.open("rb") as stream:
        digest.update(stream.read(_LOOKED_AT_BYTES))
        stream.seek(max(0, stat.st_size - _LOOKED_AT_BYTES))
        digest.update(stream.read(_LOOKED_AT_BYTES))
    return digest.hexdigest()
