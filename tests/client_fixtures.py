"""Real models, a real artifact store over HTTP that misbehaves as told, and the other side of the cluster."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import safetensors.torch
import torch
from aiohttp import web
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.structs import TopicPartition

from schemas import topics
from schemas.canary import CanaryTerms
from schemas.client import ModelFollower
from schemas.contract import Announcement
from schemas.envelope import Envelope, NotAnAnnouncement, open_record, unwrap, wrap
from schemas.model import Artifact, CanaryPublished, Field, Lineage, Manifest, ModelPublished, RolledBack
from schemas.tabular import TabularNetwork

CONFIG: dict[str, Any] = {
    "categorical": [{"name": "carrier", "vocabulary": ["AA", "B6", "UA"], "dim": 3}],
    "numeric": [{"name": "distance", "mean": 1000.0, "scale": 700.0}],
    "calendar": None,
    "hidden": [16],
}
QUESTION = {"carrier": ["UA", "AA", None], "distance": [1400.0, None, 300.0]}


def weights(seed: int, config: dict[str, Any] = CONFIG, *, fill: float | None = None) -> bytes:
    """A network's weights as safetensors; `fill` puts one value everywhere."""
    torch.manual_seed(seed)
    network = TabularNetwork.from_config(config)
    state = {k: v if fill is None else torch.full_like(v, fill) for k, v in network.state_dict().items()}
    return safetensors.torch.save(state)


def overflowing() -> bytes:
    """Finite weights that answer with infinity minus infinity."""
    state = safetensors.torch.load(weights(0, fill=3e38))
    state["head.3.weight"][0, ::2] *= -1
    return safetensors.torch.save(state)


def in_float64(value: float) -> bytes:
    """Weights that are all one number, kept with more bits than a network computes with."""
    state = safetensors.torch.load(weights(0))
    return safetensors.torch.save(
        {k: torch.full_like(v, value, dtype=torch.float64) for k, v in state.items()}
    )


def answers(content: bytes, config: dict[str, Any] = CONFIG) -> list[float]:
    """What a network with these weights answers, loaded by hand."""
    network = TabularNetwork.from_config(config)
    network.load_state_dict(safetensors.torch.load(content))
    return network.predict(QUESTION).tolist()


def published(name: str, version: int, content: bytes, *, store: str, **changes: Any) -> ModelPublished:
    """The event that a trainer would send of these weights; `changes` are made to the manifest's artifact,
    or, where the artifact has no such field, to the manifest."""
    digest = hashlib.sha256(content).hexdigest()
    artifact = {"uri": f"{store}{digest}.safetensors", "size_bytes": len(content), "sha256": digest}
    artifact |= {k: changes.pop(k) for k in list(changes) if k in Artifact.__struct_fields__}
    manifest: dict[str, Any] = {
        "architecture": "tabular",
        "config": CONFIG,
        "inputs": [Field(name="carrier", type="string"), Field(name="distance", type="float")],
        "outputs": [Field(name="probability", type="float")],
        "example": {"carrier": "UA", "distance": 1400.0},
        "champion": None,
        "challenger": None,
        "published_ms": int(time.time() * 1000),
        "lineage": Lineage(
            pipeline="flights",
            job_id=f"job-{version}",
            decision_id=None,
            dataset_uri="file:///data",
            dataset_version=version,
            window_ids=[],
            offsets=[],
            code="trainers.models.flights:train",
            code_sha256="",
            configuration_sha256="",
            params={},
            seed=version,
            parent_sha256=None,
            rows=1,
            libraries={},
            device="cpu",
        ),
    }
    manifest |= changes
    return ModelPublished(
        name=name, manifest=Manifest(name=name, version=version, artifact=Artifact(**artifact), **manifest)
    )


def canaried(
    name: str,
    version: int,
    content: bytes,
    *,
    store: str,
    beside: int,
    share: float = 0.3,
    longest_ms: int = 3_600_000,
    **changes: Any,
) -> CanaryPublished:
    """These weights on trial beside a current version."""
    terms = CanaryTerms(share=share, pairs=50, longest_ms=longest_ms)
    manifest = published(name, version, content, store=store, canary=terms, **changes).manifest
    return CanaryPublished(name=name, manifest=manifest, beside_version=beside)


def rolled_back(event: ModelPublished, *, from_version: int, version: int) -> RolledBack:
    """Somebody made that event's artifact current again, under a new version."""
    old = event.manifest
    return RolledBack(
        name=event.name,
        from_version=from_version,
        to_artifact_of_version=old.version,
        reason="worse on Sundays",
        manifest=msgspec.structs.replace(old, version=version),
        rolled_back_ms=int(time.time() * 1000),
    )


Handler = Callable[[web.Request, bytes], Any]


@dataclass
class Store:
    """Serves artifacts under their digest, whole or in part. `faults` may answer otherwise, by digest."""

    folder: Path
    url: str = ""
    faults: dict[str, Handler] = field(default_factory=dict)
    requests: list[tuple[str, str | None]] = field(default_factory=list)

    def put(self, content: bytes) -> str:
        """Keep an artifact; gives its digest."""
        digest = hashlib.sha256(content).hexdigest()
        (self.folder / f"{digest}.safetensors").write_bytes(content)
        return digest

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """GET, with ranges as aiohttp's file response has them."""
        name = request.match_info["name"]
        self.requests.append((name, request.headers.get("range")))
        path = self.folder / name
        if not path.is_file():
            raise web.HTTPNotFound
        if fault := self.faults.get(path.stem):
            return await fault(request, path.read_bytes())
        return web.FileResponse(path)


@asynccontextmanager
async def serving(folder: Path, *, port: int = 0) -> AsyncIterator[Store]:
    """A store on a free port of this machine, until the end of the block."""
    await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
    store = Store(folder)
    app = web.Application()
    app.router.add_get("/{name}", store.serve)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    host, port = runner.addresses[0][:2]
    store.url = f"http://{host}:{port}/"
    try:
        yield store
    finally:
        await runner.cleanup()


class Cluster:
    """The cluster as the tests' other side sees it: says model events, hears what services say."""

    def __init__(self, bootstrap_servers: str, *, from_the_start: bool = False) -> None:
        self.bootstrap_servers = bootstrap_servers
        self._from_the_start = from_the_start
        self.heard: list[tuple[Envelope, Announcement]] = []

    async def __aenter__(self) -> Cluster:
        self._producer = AIOKafkaProducer(bootstrap_servers=self.bootstrap_servers, acks="all")
        self._consumer = AIOKafkaConsumer(
            bootstrap_servers=self.bootstrap_servers, enable_auto_commit=False, auto_offset_reset="earliest"
        )
        await self._producer.start()
        await self._consumer.start()
        heard = [TopicPartition(t.name, 0) for t in (topics.MODELS, topics.PREDICTIONS)]
        self._consumer.assign(heard)
        seek = self._consumer.seek_to_beginning if self._from_the_start else self._consumer.seek_to_end
        await seek(*heard)
        for each in heard:
            await self._consumer.position(each)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._consumer.stop()
        await self._producer.stop()

    async def say(self, event: Announcement, *on: topics.Topic) -> None:
        """Send an event; a model event goes to history and current as the trainer sends it."""
        envelope = wrap(event, source="/trainer/test", time_ms=int(time.time() * 1000))
        for topic in on or (topics.MODELS, topics.MODELS_CURRENT):
            await self.send(envelope, topic)

    async def send(self, envelope: Envelope, topic: topics.Topic) -> None:
        """Send any envelope."""
        key, value, headers = envelope.record()
        await self._producer.send_and_wait(topic.name, key=key, value=value, headers=headers)

    async def hear(self, kind: type[Announcement], *, count: int = 1, **having: Any) -> Sequence[Any]:
        """Wait for `count` events of that type whose fields are as given; gives all that were heard."""
        async with asyncio.timeout(90):
            while len(found := self.so_far(kind, **having)) < count:
                await self._take()
        return found

    def so_far(self, kind: type[Announcement], **having: Any) -> Sequence[Any]:
        """Events of that type that were heard until now."""
        return [
            event
            for _, event in self.heard
            if isinstance(event, kind) and all(getattr(event, k) == v for k, v in having.items())
        ]

    async def listen_on(self) -> None:
        """Hear all that the cluster holds at this moment."""
        ends = await self._consumer.end_offsets(list(self._consumer.assignment()))
        while any([await self._consumer.position(tp) < end for tp, end in ends.items()]):
            await self._take()

    async def _take(self) -> None:
        for records in (await self._consumer.getmany(timeout_ms=500)).values():
            for record in records:
                try:
                    envelope = open_record(record.key, record.value, record.headers)
                    self.heard.append((envelope, unwrap(envelope)))
                except NotAnAnnouncement:
                    continue


def follower(name: str, cluster: Cluster, store: Store | str, cache: Path, **more: Any) -> ModelFollower:
    """A follower as a service would make it."""
    url = store if isinstance(store, str) else store.url
    return ModelFollower(
        name,
        client={"bootstrap_servers": cluster.bootstrap_servers},
        stores=[url],
        service=f"service-of-{name}",
        cache_dir=cache,
        **more,
    )
