"""The cluster that the settings mean: an existing one, the broker that already runs here, or a new one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from infra.settings_model import Settings

from .broker import EmbeddedBroker
from .connection import Connection, connect_to
from .reach import reach
from .readiness import run_apart
from .running import running_on


def embedded_broker(
    settings: Settings, *, detached: bool = False, console: Console | None = None
) -> EmbeddedBroker:
    """The embedded broker that the settings describe, not started yet."""
    broker = settings.broker
    return EmbeddedBroker(
        settings.paths.kafka,
        log_dir=settings.paths.logs,
        port=broker.port,
        cache_dir=settings.cache_dir,
        repository=broker.maven_repository,
        java=broker.java,
        heap_mib=broker.heap_mib,
        jvm_options=broker.jvm_options,
        broker_settings=broker.settings,
        detached=detached,
        start_timeout_s=broker.start_timeout_s,
        stop_timeout_s=broker.stop_timeout_s,
        console=console,
    )


def find_cluster(settings: Settings) -> Connection | None:
    """The connection to the cluster that is there already: the named one, or a broker running on our data.

    None if neither; nothing is contacted. Raises InvalidConfiguration if a certificate or secret is missing.
    """
    here = running_on(settings.paths.kafka)
    if settings.kafka.bootstrap_servers is None and here is None:
        return None
    return connect_to(settings.kafka, here.bootstrap_servers if here else None)


@contextmanager
def open_cluster(
    settings: Settings, *, console: Console | None = None
) -> Iterator[tuple[Connection, EmbeddedBroker | None]]:
    """A connection to a cluster that answers: the one that is there, or a broker that runs within this block.

    That broker comes with it: whoever opened it keeps it alive.

    Raises what `reach` raises for a named cluster, and what `EmbeddedBroker.start` raises for a new one.
    """
    if connection := find_cluster(settings):
        run_apart(lambda: reach(connection, timeout_s=settings.doctor.connect_timeout_s))
        yield connection, None
    else:
        with embedded_broker(settings, console=console) as broker:
            yield connect_to(settings.kafka, broker.bootstrap_servers), broker
