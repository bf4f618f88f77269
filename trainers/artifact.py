"""The artifact store: weights under the name of their own SHA-256, written whole or not at all."""

from __future__ import annotations

import hashlib
from pathlib import Path

from infra import atomic_file
from schemas.errors import Rejected, Retryable

ENDING = ".safetensors"


class ArtifactCorrupt(Rejected):
    """The bytes in the store are not those that their name promises."""


class StoreNotWritable(Retryable):
    """The artifact could not be written; nothing of it is there."""


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
            if not (target.exists() and target.read_bytes() == content):
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
