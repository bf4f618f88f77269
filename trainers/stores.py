"""Where artifacts lie: the folder that jobs write to and, if one is named, the store that services read."""

from __future__ import annotations

import asyncio

from infra.settings_model import Settings
from trainers.artifact import ArtifactCorrupt, ArtifactStore
from trainers.object_store import ObjectStore, object_store


class Stores:
    """The folder `paths.artifacts` and the store of `store.address`.

    Jobs know the folder alone: they are handed no credentials, and a store that is away costs an upload that
    is done later, not a training. Without `store.address` the folder is the store.
    """

    def __init__(
        self, folder: ArtifactStore, remote: ObjectStore | None = None, *, public_url: str | None = None
    ) -> None:
        self.folder, self.remote = folder, remote
        self._public_url = public_url

    @classmethod
    def of(cls, settings: Settings) -> Stores:
        """Those of the settings. Raises InvalidConfiguration."""
        return cls(
            ArtifactStore(settings.paths.artifacts),
            object_store(settings.store),
            public_url=settings.store.public_url,
        )

    @property
    def address(self) -> str | None:
        """Where model events say that a store beside the folder lies, with a slash at its end."""
        return self.remote and (self._public_url or self.remote.address).rstrip("/") + "/"

    async def publish(self, digest: str) -> None:
        """Have an artifact of the folder where services read it, whole: before this its event may not go out.

        Raises:
            ArtifactCorrupt: it is not in the folder, or damaged there.
            StoreNotWritable: the store is away, full, or refuses.
        """
        content = await asyncio.to_thread(self.folder.get, digest)
        if self.remote is not None:
            await self.remote.put(content)

    async def bring(self, digest: str) -> None:
        """Have an artifact in the folder, from the store if need be.

        Raises:
            ArtifactCorrupt: neither has it whole.
            StoreAway: the folder has not, and the store does not answer.
            StoreNotWritable: the folder cannot be written.
        """
        try:
            await asyncio.to_thread(self.folder.get, digest)
        except ArtifactCorrupt:
            if self.remote is None:
                raise
            content = await self.remote.get(digest)
            await asyncio.to_thread(self.folder.put, content)
