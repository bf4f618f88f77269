"""Follow several models as one client: one consumer, one producer and one HTTP client for all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack

from ..errors import InvalidConfiguration
from .fit import Inputs
from .follow import ModelFollower
from .links import Links
from .staleness import StalenessBound


class Choices(TypedDict, total=False):
    """What may be chosen for each model, see `ModelFollower`."""

    trusted_keys: Sequence[str] | Path | None
    pin_version: int | None
    inputs: Inputs | None
    staleness: StalenessBound | None
    canaries: bool
    max_bytes: int
    tracer: Any | None


class ModelFollowers(Mapping[str, ModelFollower]):
    """A `ModelFollower` by each name, over shared connections.

    A model that is bad, or whose store is slow or away, holds none of the others up: at most four downloads
    and one load run at a time, and a turn that takes too long no longer counts. Use as an async context
    manager, or call `start` and `stop`; the followers themselves are started and stopped by it.

    Args:
        names: of the models.
        client: keyword arguments for aiokafka's clients, at least `bootstrap_servers`.
        stores: base addresses from which artifacts may be taken: http(s), or `s3://bucket/prefix/`.
        service: who we are, as our events say it.
        cache_dir: each model has a folder of its own in it.
        timeout_s: longest wait for a store's connection or its next bytes.
        s3: as `ModelFollower` takes it.
        own: choices for one model, by its name, before those for all.
        choices: for all models.

    Raises:
        InvalidConfiguration: there is no name, `own` names none of them, or a follower's mistake.
    """

    def __init__(
        self,
        names: Collection[str],
        *,
        client: Mapping[str, Any],
        stores: Sequence[str],
        service: str,
        cache_dir: Path | str,
        timeout_s: float = 10.0,
        s3: Mapping[str, Any] | None = None,
        own: Mapping[str, Choices] | None = None,
        **choices: Unpack[Choices],
    ) -> None:
        if isinstance(names, str) or not names:
            raise InvalidConfiguration('name the models to follow as a list, such as ["flights", "gates"]')
        own = own or {}
        if unknown := sorted(set(own) - set(names)):
            raise InvalidConfiguration(
                f"choices are made for {', '.join(unknown)}, which is not followed: add it to the names"
            )
        self._links = Links(client, stores=stores, service=service, timeout_s=timeout_s, s3=s3)
        self._followers = {
            name: ModelFollower(
                name,
                client=client,
                stores=stores,
                service=service,
                cache_dir=cache_dir,
                links=self._links,
                **(choices | own.get(name, Choices())),
            )
            for name in names
        }

    def __getitem__(self, name: str) -> ModelFollower:
        return self._followers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._followers)

    def __len__(self) -> int:
        return len(self._followers)

    async def start(self) -> None:
        """Begin to follow. Neither the cluster nor a store need be there yet."""
        for follower in self.values():
            await follower.start()
        try:
            canaries = [each.canary_log for each in self.values() if each.canary_log is not None]
            await self._links.start(list(self.values()), canaries)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop following; each `current` stays and answers on."""
        await self._links.flush()
        for follower in self.values():
            await follower.stop()
        await self._links.stop()

    async def __aenter__(self) -> ModelFollowers:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def settled(self) -> None:
        """Wait until what was published before we began is adopted or refused, of each model."""
        await asyncio.gather(*(follower.settled() for follower in self.values()))
