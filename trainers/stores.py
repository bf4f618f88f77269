"""Where artifacts lie: the folder that jobs write to and, if one is named, the store that services read."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from infra.settings_model import Settings
from trainers.artifact import ArtifactCorrupt, ArtifactStore, Kept
from trainers.object_store import ObjectStore, object_store


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """One place where artifacts lie, as the vacuum sees it.

    Attributes:
        serves: services fetch from it; a folder beside a store on S3 is the trainer's own.
        tidy: deletes what cut-off writes left there before a time (epoch ms), and says how many.
    """

    title: str
    serves: bool
    kept: Callable[[], Awaitable[list[Kept]]]
    remove: Callable[[str], Awaitable[None]]
    tidy: Callable[[int], Awaitable[int]]


async def _nothing_to_tidy(_: int) -> int:
    return 0  # unfinished uploads are for the bucket's own rule


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

    @property
    def places(self) -> list[Place]:
        """The folder, and the store on S3 if there is one."""
        folder = self.folder

        async def kept() -> list[Kept]:
            return await asyncio.to_thread(folder.kept)

        async def remove(digest: str) -> None:
            await asyncio.to_thread(folder.remove, digest)

        async def tidy(older_than_ms: int) -> int:
            return await asyncio.to_thread(folder.tidy, older_than_ms=older_than_ms)

        own = Place(title=str(folder.folder), serves=self.remote is None, kept=kept, remove=remove, tidy=tidy)
        remote = self.remote
        if remote is None:
            return [own]
        return [
            own,
            Place(
                title=remote.address,
                serves=True,
                kept=remote.kept,
                remove=remote.remove,
                tidy=_nothing_to_tidy,
            ),
        ]

    async def publish(self, digest: str) -> None:
        """Have an artifact of the folder where services read it, whole: before this its event may not go out.

        Raises:
            ArtifactCorrupt: it is not in the folder, or damaged there.
            StoreNotWritable: the store is away, full, or refuses.
        """
        content = await asyncio.to_thread(self.folder.get, digest)
        if self.remote is not None:
            await self.remote.put(content, digest=digest)

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
