"""The artifact store: weights under the name of their own SHA-256, written whole or not at all."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from pathlib import Path
from typing import NamedTuple

from infra import atomic_file
from schemas.errors import Rejected, Retryable

ENDING = ".safetensors"
_NAME = re.compile(r"([0-9a-f]{64})" + re.escape(ENDING))
_STAGED = re.compile(r"\.[0-9a-f]{64}" + re.escape(ENDING) + r"\.[0-9a-f]+")
"""What `infra.atomic_file` writes to before a file has its name; a kill leaves it behind."""


class ArtifactCorrupt(Rejected):
    """The bytes in the store are not those that their name promises."""


class StoreNotWritable(Retryable):
    """The artifact could not be written; nothing of it is there."""


class StoreAway(Retryable):
    """The store does not answer, or refuses."""


class Kept(NamedTuple):
    """An artifact that lies in a store."""

    sha256: str
    size_bytes: int
    modified_ms: int
    """When it was last put there."""


def digest_in(name: str) -> str | None:
    """The SHA-256 that a file name promises; None if it is no artifact's."""
    match = _NAME.fullmatch(name)
    return match[1] if match else None


class ArtifactStore:
    """A local folder of artifacts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, content: bytes) -> str:
        """Keep the bytes; gives their SHA-256. On return they are on disk. Keeping them again is harmless.

        Raises:
            StoreNotWritable: disk full, or no permission.
        """
        digest = hashlib.sha256(content).hexdigest()
        target = self.path(digest)
        try:
            # Compared whole: what lies there may have been damaged, and is then written anew.
            if target.exists() and target.read_bytes() == content:
                os.utime(target)  # it is wanted again: too young to be removed
            else:
                atomic_file.write_bytes(target, content)
        except OSError as error:
            raise StoreNotWritable(f"cannot keep an artifact in {self.folder}: {error}") from error
        return digest

    def path(self, digest: str) -> Path:
        """Where the artifact of that digest lies, or would."""
        return self.folder / f"{digest}{ENDING}"

    def get(self, digest: str) -> bytes:
        """The bytes of an artifact, checked.

        Raises:
            ArtifactCorrupt: they are missing, or not what the digest says.
        """
        try:
            content = self.path(digest).read_bytes()
        except OSError as error:
            raise ArtifactCorrupt(f"artifact {digest} is not in {self.folder}: {error}") from error
        if hashlib.sha256(content).hexdigest() != digest:
            raise ArtifactCorrupt(f"{self.path(digest)} was changed: its SHA-256 is no longer its name")
        return content

    def take_over(self, outbox: Path, digest: str, *, size_bytes: int) -> None:
        """Keep what another user wrote to a folder of his own, if it is what he says that it is.

        Raises:
            ArtifactCorrupt: it is no file of that size and digest.
            StoreNotWritable: as `put`.
        """
        path = outbox / f"{digest}{ENDING}"
        try:
            if digest_in(f"{digest}{ENDING}") is None:
                raise OSError(f"{digest!r} is no SHA-256")
            # No link to what he may not read himself, and no pipe that never ends.
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            with os.fdopen(handle, "rb") as given:
                status = os.fstat(handle)
                if not stat.S_ISREG(status.st_mode) or status.st_size != size_bytes:
                    raise OSError(f"it is no file of {size_bytes} bytes")
                content = given.read(size_bytes)
        except OSError as error:
            raise ArtifactCorrupt(f"what the job trained cannot be taken from {outbox}: {error}") from error
        if hashlib.sha256(content).hexdigest() != digest:
            raise ArtifactCorrupt(f"{path} was changed: its SHA-256 is not its name")
        self.put(content)

    def kept(self) -> list[Kept]:
        """All artifacts that lie in the folder. Raises StoreAway."""
        found: list[Kept] = []
        try:
            for path in self.folder.iterdir() if self.folder.exists() else ():
                if (digest := digest_in(path.name)) is not None:
                    status = path.stat()
                    found.append(Kept(digest, status.st_size, status.st_mtime_ns // 1_000_000))
        except OSError as error:
            raise StoreAway(f"cannot list {self.folder}: {error}") from error
        return found

    def remove(self, digest: str) -> None:
        """Let an artifact go; one that is gone already is no matter. Raises StoreAway."""
        try:
            self.path(digest).unlink(missing_ok=True)
        except OSError as error:
            raise StoreAway(f"cannot remove {self.path(digest)}: {error}") from error

    def tidy(self, *, older_than_ms: int) -> int:
        """Delete what writes left behind that a kill cut off, if it is older; gives how many.

        Raises:
            StoreAway: it cannot be deleted.
        """
        count = 0
        try:
            for path in self.folder.iterdir() if self.folder.exists() else ():
                if _STAGED.fullmatch(path.name) and path.stat().st_mtime_ns // 1_000_000 < older_than_ms:
                    path.unlink(missing_ok=True)
                    count += 1
        except OSError as error:
            raise StoreAway(f"cannot tidy {self.folder}: {error}") from error
        return count
