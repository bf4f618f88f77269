"""Follow a model by name: each newer version is fetched, checked, loaded and tried, and only then swapped in."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.structs import TopicPartition

from .. import topics
from ..contract import Announcement
from ..envelope import NotAnAnnouncement, open_record, unwrap, wrap
from ..errors import Rejected, Retryable
from ..model import AdoptionRefused, Manifest, ModelAdopted, ModelPublished, RolledBack
from .download import Downloader
from .load import LoadedModel, load, prepare

_AGAIN_AFTER_S = 5.0


class ModelFollower:
    """Holds the newest good version of one model.

    `current` is one reference, replaced in one step: whoever reads it has a whole model, the old or the
    new. Use as an async context manager, or call `start` and `stop`.

    Args:
        name: the model's name.
        client: keyword arguments for aiokafka's clients, at least `bootstrap_servers`.
        stores: base addresses from which artifacts may be taken.
        service: who we are, as adopted and refused events say it.
        cache_dir: downloads are kept here, and serve a restart while the store is away.
    """

    def __init__(
        self,
        name: str,
        *,
        client: Mapping[str, Any],
        stores: Sequence[str],
        service: str,
        cache_dir: Path,
    ) -> None:
        self.name = name
        self.service = service
        self.current: LoadedModel | None = None
        self._client = dict(client)
        self._downloader = Downloader(stores, cache_dir)
        self._newest: Manifest | None = None
        self._refused: tuple[int, str] | None = None
        self._ready = asyncio.Event()
        self._arrived = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begin to follow, from the newest version that is there."""
        await asyncio.to_thread(prepare)
        self._producer = AIOKafkaProducer(**self._client, enable_idempotence=True, acks="all")
        self._consumer = AIOKafkaConsumer(**self._client, enable_auto_commit=False, fetch_max_wait_ms=50)
        await self._producer.start()
        await self._consumer.start()
        tp = TopicPartition(topics.MODELS_CURRENT.name, 0)
        self._consumer.assign([tp])
        await self._consumer.seek_to_beginning(tp)
        self._tasks = [asyncio.create_task(self._follow()), asyncio.create_task(self._adopt_forever())]

    async def stop(self) -> None:
        """Stop following; `current` stays."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._consumer.stop()
        await self._producer.stop()
        await self._downloader.close()

    async def __aenter__(self) -> ModelFollower:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def ready(self) -> LoadedModel:
        """Wait for a first model."""
        await self._ready.wait()
        assert self.current is not None
        return self.current

    async def _follow(self) -> None:
        async for record in self._consumer:
            if record.key != self.name.encode():
                continue
            with contextlib.suppress(NotAnAnnouncement):
                event = unwrap(open_record(record.key, record.value, record.headers))
                if isinstance(event, ModelPublished | RolledBack) and self._is_newer(event.manifest):
                    self._newest = event.manifest
                    self._arrived.set()

    def _is_newer(self, manifest: Manifest) -> bool:
        """Versions never go back: an old event that is sent again changes nothing."""
        known = [m.version for m in (self._newest, self.current and self.current.manifest) if m]
        return manifest.name == self.name and manifest.version > max(known, default=0)

    async def _adopt_forever(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            manifest = self._newest
            if manifest is None or (self.current is not None and manifest.version <= self.current.version):
                continue
            try:
                await self._adopt(manifest)
            except (Rejected, Retryable) as error:
                await self._refuse(manifest, str(error))
                if isinstance(error, Retryable):
                    asyncio.get_running_loop().call_later(_AGAIN_AFTER_S, self._arrived.set)

    async def _adopt(self, manifest: Manifest) -> None:
        began = time.perf_counter()
        content = await self._downloader.fetch(manifest.artifact)
        loaded = await asyncio.to_thread(load, manifest, content)
        previous, self.current = self.current, loaded
        self._ready.set()
        await self._say(
            ModelAdopted(
                name=self.name,
                service=self.service,
                version=manifest.version,
                sha256=manifest.artifact.sha256,
                previous_version=previous.version if previous else None,
                adopted_ms=_now_ms(),
                load_ms=(time.perf_counter() - began) * 1000,
            )
        )

    async def _refuse(self, manifest: Manifest, reason: str) -> None:
        """Say once for each version and reason why it was not taken; the old model goes on answering."""
        if self._refused == (manifest.version, reason):
            return
        self._refused = (manifest.version, reason)
        await self._say(
            AdoptionRefused(
                name=self.name,
                service=self.service,
                version=manifest.version,
                sha256=manifest.artifact.sha256,
                kept_version=self.current.version if self.current else None,
                reason=reason,
                refused_ms=_now_ms(),
            )
        )

    async def _say(self, event: Announcement) -> None:
        key, value, headers = wrap(event, source=f"/service/{self.service}", time_ms=_now_ms()).record()
        await self._producer.send_and_wait(topics.MODELS.name, key=key, value=value, headers=headers)


def _now_ms() -> int:
    return int(time.time() * 1000)
