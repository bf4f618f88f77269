"""An artifact store on S3, by obstore: an object is there whole, or not there."""

from __future__ import annotations

import hashlib
import secrets
from datetime import timedelta
from typing import Any

import obstore
from obstore.exceptions import BaseError, NotFoundError
from obstore.store import ObjectStore as AnyStore
from obstore.store import S3Store

from infra.settings_model import Store
from schemas.errors import InvalidConfiguration
from trainers.artifact import ENDING, ArtifactCorrupt, Kept, StoreAway, StoreNotWritable, digest_in

# obstore raises some of these as Python's own errors.
_MISSING = (NotFoundError, FileNotFoundError)
_FAILED = (BaseError, OSError)
_FIRST_PAUSE = timedelta(milliseconds=200)
_LONGEST_PAUSE = timedelta(seconds=5)


class ObjectStore:
    """Artifacts below one address, as `ArtifactStore` keeps them in a folder.

    Each request is tried again a few times, after pauses that grow; then the store counts as away. A large
    artifact goes up in parts: until the last of them is confirmed there is nothing to be seen, and what a
    killed upload leaves behind is for the bucket's own rule about incomplete uploads.

    Attributes:
        address: what model events name, with a slash at its end.
    """

    def __init__(self, store: AnyStore, address: str) -> None:
        self._store = store
        self.address = address.rstrip("/") + "/"

    async def put(self, content: bytes, *, digest: str | None = None) -> str:
        """Keep the bytes and read them back; gives their SHA-256. Keeping them again is harmless.

        Args:
            digest: their SHA-256, where the caller has it.

        Raises:
            StoreNotWritable: it is away, full, or refuses; nothing of the artifact is there.
        """
        digest = digest or hashlib.sha256(content).hexdigest()
        try:
            await obstore.put_async(self._store, _name(digest), content)
            came_back = await self._read(digest)
        except _FAILED as error:
            raise StoreNotWritable(f"cannot keep an artifact in {self.address}: {short(error)}") from error
        if came_back != content:
            raise StoreNotWritable(f"{self.address} gave back other bytes than were put for {digest}")
        return digest

    async def get(self, digest: str) -> bytes:
        """The bytes of an artifact, checked.

        Raises:
            ArtifactCorrupt: they are missing, or not what the digest says.
            StoreAway: the store does not answer, or refuses.
        """
        try:
            content = await self._read(digest)
        except _MISSING as error:
            raise ArtifactCorrupt(f"artifact {digest} is not in {self.address}") from error
        except _FAILED as error:
            raise StoreAway(f"cannot read artifact {digest} in {self.address}: {short(error)}") from error
        if hashlib.sha256(content).hexdigest() != digest:
            raise ArtifactCorrupt(f"{self.address}{_name(digest)} was changed: its SHA-256 is not its name")
        return content

    async def kept(self) -> list[Kept]:
        """All artifacts that it holds. Raises StoreAway."""
        found: list[Kept] = []
        try:
            async for batch in obstore.list(self._store):
                for each in batch:
                    if (digest := digest_in(each["path"])) is not None:
                        modified_ms = int(each["last_modified"].timestamp() * 1000)
                        found.append(Kept(digest, each["size"], modified_ms))
        except _FAILED as error:
            raise StoreAway(f"cannot list {self.address}: {short(error)}") from error
        return found

    async def remove(self, digest: str) -> None:
        """Let an artifact go; one that is gone already is no matter. Raises StoreAway."""
        try:
            await obstore.delete_async(self._store, _name(digest))
        except _MISSING:
            pass
        except _FAILED as error:
            raise StoreAway(f"cannot remove artifact {digest} in {self.address}: {short(error)}") from error

    async def probe(self) -> None:
        """Put an object there that is no artifact, read it back, see it listed, and remove it.

        Raises:
            StoreAway: one of these does not go; the message says which, and why.
        """
        name, content = f".probe-{secrets.token_hex(8)}", secrets.token_bytes(64)
        doing = "written"
        try:
            await obstore.put_async(self._store, name, content)
            try:
                doing = "read back"
                answer = await obstore.get_async(self._store, name)
                if bytes(await answer.bytes_async()) != content:
                    raise StoreAway(f"{self.address} gave back other bytes than were put")
                doing = "listed"
                async for _ in obstore.list(self._store, chunk_size=1):
                    break
            finally:
                removing, doing = doing, "removed"
                await obstore.delete_async(self._store, name)
                doing = removing
        except _FAILED as error:
            raise StoreAway(f"{self.address}{name} cannot be {doing}: {short(error)}") from error

    async def _read(self, digest: str) -> bytes:
        answer = await obstore.get_async(self._store, _name(digest))
        return bytes(await answer.bytes_async())


def object_store(settings: Store) -> ObjectStore | None:
    """The store that the settings name; None if they name none but the folder.

    Raises:
        InvalidConfiguration: obstore does not take the settings, or the secret's file cannot be read.
    """
    if settings.address is None:
        return None
    bucket, _, prefix = settings.address.removeprefix("s3://").partition("/")
    reached: dict[str, Any] = {**settings.s3()}
    try:
        store = S3Store(
            bucket,
            prefix=prefix.strip("/") or None,
            # Not all that speak S3 know how to delete many at once, and few are ever deleted.
            disable_bulk_delete=True,
            client_options={
                "timeout": timedelta(seconds=settings.timeout_s),
                "connect_timeout": timedelta(seconds=min(5.0, settings.timeout_s)),
                "allow_http": (settings.endpoint or "").startswith("http://"),
            },
            retry_config={
                "max_retries": settings.retries,
                "backoff": {"init_backoff": _FIRST_PAUSE, "max_backoff": _LONGEST_PAUSE, "base": 2},
                "retry_timeout": timedelta(seconds=settings.timeout_s * 2),
            },
            **reached,
        )
    except _FAILED as error:
        raise InvalidConfiguration(f"the section store is not as S3 needs it: {short(error)}") from error
    return ObjectStore(store, settings.address)


def short(error: Exception) -> str:
    """What went wrong, without the library's own inner view of it."""
    return str(error).partition("\n\nDebug source")[0].replace("\n", " ")[:1000]


def _name(digest: str) -> str:
    return f"{digest}{ENDING}"
