"""The Faust application: `faust -A streams.app worker` or `tidemill worker`.

Settings come from `infra.settings` (file and environment); `worker.pipeline` names the pipeline.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Mapping, Sequence, Set
from typing import Any

import faust
import structlog
from faust.types import TP

from infra import settings as configuration
from infra.kafka.connection import Connection, connect_to
from infra.kafka.reach import await_cluster, patiently
from infra.kafka.topics import partitions_of
from infra.logging import configure
from infra.observe.instruments import Instruments
from infra.observe.server import ObserveServer
from infra.observe.traces import Traces, begin
from infra.settings_model import Settings
from infra.switched import live_dataset, refuse_others
from schemas.errors import InvalidConfiguration
from streams.by_model import Following
from streams.check.pipeline import refuse_mistakes
from streams.decode.schema_registry import writers_for
from streams.ledger.positions import PositionLost
from streams.load import Loaded, load_pipeline
from streams.pipeline import Pipeline
from streams.tag import ByModel
from streams.transport import FrameTopic, register
from streams.transport.fetch import MOST_FETCH_BYTES
from streams.worker import StreamWorker

log = structlog.get_logger(__name__)

# Frames are large: a few in Faust's own buffer keep the agent busy, more would only fill memory.
_BUFFERED_FRAMES = 16


class StreamApp(faust.App):
    """A Faust app that runs one pipeline's worker."""

    worker: StreamWorker
    patience_s: float
    observe: ObserveServer | None = None
    traces: Traces | None = None
    failure: BaseException | None = None

    async def positions(self, assigned: Set[TP]) -> Mapping[TP, int]:
        """Asked by the frame consumer at each assignment: the ledger's positions."""
        self.worker.consumer = self.consumer  # type: ignore[assignment]  # a FrameConsumer
        return await self.worker.positions(assigned)

    def taken_up_to(self, tp: TP) -> int | None:
        """See `StreamWorker.taken_up_to`."""
        return self.worker.taken_up_to(tp)

    async def position_lost(self, lost: PositionLost) -> None:
        """Told by the frame consumer, just before it stops: what lay at a position is gone."""
        await self.worker.alert(lost)

    def nothing_assigned(self) -> None:
        """Told by the frame consumer: other workers have all partitions."""
        self.worker.release()

    async def on_start(self) -> None:
        """Start the worker before the consumer asks it for positions."""
        if self.observe is not None:
            await self.observe.start()
        await super().on_start()
        await await_cluster(self.worker.connection, patience_s=self.patience_s)
        await patiently(self._find_topics, patience_s=self.patience_s)
        await self.worker.start(self.fail, patience_s=self.patience_s)
        # What is loaded by now stays: a full round of the garbage collector need not look through it.
        gc.collect()
        gc.freeze()

    async def _find_topics(self) -> None:
        """Raises InvalidConfiguration where the cluster lacks a topic that the pipeline reads."""
        there = await partitions_of(self.worker.connection)
        if missing := [topic for topic in self.worker.pipeline.sources() if topic not in there]:
            raise InvalidConfiguration(
                f"there is no topic {', '.join(missing)} on the cluster; `tidemill topics --create` makes "
                "those that are declared, with --pipeline FILE also those of a pipeline"
            )

    async def on_stop(self) -> None:
        """Stop the consumer first: nothing arrives any more, then what is in flight ends."""
        self.worker.stopping()
        await super().on_stop()
        await self.worker.stop()
        if self.traces is not None:
            await asyncio.to_thread(self.traces.end)
        if self.observe is not None:
            await self.observe.stop()

    async def fail(self, error: BaseException) -> None:
        """A part of the worker died: stop the process rather than go on without it."""
        self.failure = error
        log.error("the worker stops", error=str(error), exc_info=error)
        await self.crash(error)


def create_app(
    settings: Settings,
    connection: Connection,
    loaded: Loaded,
    *,
    log_handlers: Sequence[logging.Handler] | None = None,
) -> StreamApp:
    """The app of one pipeline against one cluster.

    Args:
        log_handlers: where Faust's worker command sends the log; None: as Faust likes.
    """
    register()
    pipeline, options = loaded.pipeline, settings.worker
    refuse_mistakes(pipeline)
    app = StreamApp(
        f"tidemill-{pipeline.name}",
        broker=connection.faust_brokers("tidemill"),
        broker_credentials=connection.faust_credentials(),
        broker_session_timeout=options.session_timeout_ms / 1000,
        broker_heartbeat_interval=max(0.5, options.session_timeout_ms / 10_000),
        broker_commit_interval=1.0,
        consumer_group_instance_id=options.member,
        consumer_max_fetch_size=MOST_FETCH_BYTES,
        consumer_metadata_max_age_ms=options.metadata_max_age_ms,
        stream_buffer_maxsize=_BUFFERED_FRAMES,
        topic_disable_leader=True,
        topic_allow_declare=False,
        store="memory://",
        Topic=FrameTopic,
        datadir=settings.paths.home / "faust",
        web_enabled=options.web_port is not None,
        web_port=options.web_port or 6066,
        web_bind="127.0.0.1",
        origin="streams",
        autodiscover=False,
        loghandlers=list(log_handlers or ()),
        # Faust's command sets the root logger up anew: with this, by nothing but these handlers.
        logging_config=None if log_handlers is None else {"version": 1, "incremental": True},
    )
    app.patience_s = settings.kafka.patience_s
    instruments = Instruments("worker")
    app.traces = begin(settings.traces, part="worker")
    refuse_others(settings.paths.dataset, pipeline.name, loaded.sha256)
    live, since = live_dataset(settings.paths.dataset, pipeline.name)
    app.worker = StreamWorker(
        pipeline,
        dataset_dir=settings.paths.dataset,
        dataset=live.name,
        since=since,
        connection=connection,
        options=options,
        upkeep=settings.upkeep,
        configuration_sha256=loaded.sha256,
        writers=writers_for(pipeline, settings.schema_registry),
        models=_models(settings, connection, pipeline),
        instruments=instruments,
        metrics_options=settings.metrics,
        traces=app.traces,
    )
    if options.metrics_port is not None:
        app.observe = ObserveServer(
            instruments,
            app.worker.readiness,
            options=settings.metrics,
            port=options.metrics_port,
            setting="worker.metrics_port",
        )

    @app.agent(app.topic(*pipeline.sources()), name=f"ingest.{pipeline.name}")
    async def ingest(stream: Any) -> None:  # Faust's StreamT knows neither noack() nor what events() yields
        async for event in stream.noack().events():
            message = event.message
            await app.worker.accept(message.tp, event.value, event.ack)

    return app


def _models(settings: Settings, connection: Connection, pipeline: Pipeline) -> Following | None:
    """The models that tag the pipeline's rows; None where none does."""
    names = {tag.model for tag in pipeline.tag if isinstance(tag, ByModel)}
    if not names:
        return None
    store = settings.store
    served = f"http://{store.host}:{store.port}/" if store.port else ""
    address = store.public_url or store.address or served
    own = settings.paths.signing_keys / "trusted.txt"
    return Following(
        names,
        client=connection.client_arguments(),
        stores=settings.worker.model_stores or ((address,) if address else ()),
        service=f"worker-of-{pipeline.name}",
        cache_dir=settings.paths.home / "models",
        trusted_keys=settings.worker.trusted_keys or (own if own.is_file() else None),
        s3=store.s3(),
    )


def from_settings() -> StreamApp:
    """The app that the settings describe."""
    settings = configuration.load()
    loaded = load_pipeline(settings.worker.pipeline)
    handlers = configure(settings.log, part="worker", pipeline=loaded.pipeline.name)
    return create_app(settings, connect_to(settings.kafka), loaded, log_handlers=handlers)


def __getattr__(name: str) -> Any:
    # `faust -A streams.app` looks for `app`; nothing is read or opened before somebody asks.
    if name == "app":
        app = from_settings()
        globals()["app"] = app
        return app
    raise AttributeError(name)
