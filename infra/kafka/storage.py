"""A broker's data folder: its layout, the broker's own configuration, formatting, and recognising stale data.

DATA_DIR/kafka.properties   the broker's configuration, written at each start
DATA_DIR/broker.json        the process that serves the data, while one does
DATA_DIR/origin.json        Kafka version and cluster id that wrote the data, and the port last used
DATA_DIR/data/              Kafka's log directory
"""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from infra import atomic_file
from schemas.errors import InvalidConfiguration

from .jars import KAFKA_VERSION
from .java import clean_environment

NODE_ID = 1
LISTEN_HOST = "127.0.0.1"
FORMAT_TIMEOUT_S = 60.0

DEFAULTS: Mapping[str, str] = {
    "auto.create.topics.enable": "false",  # a topic that nobody declared is a mistake, not a topic
    "default.replication.factor": "1",
    "min.insync.replicas": "1",
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "4",  # 50 by default: a slower first join for nothing on one node
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "4",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "share.coordinator.state.topic.num.partitions": "1",
    "group.initial.rebalance.delay.ms": "0",
    "message.max.bytes": str(8 * 1024 * 1024),  # Arrow frames of some thousand rows
    "replica.fetch.max.bytes": str(8 * 1024 * 1024),
    "log.cleaner.dedupe.buffer.size": str(
        16 * 1024 * 1024
    ),  # of a 256 MiB heap; Kafka takes 128 MiB by default
    "log.index.size.max.bytes": str(1024 * 1024),  # preallocated twice a segment
    "num.network.threads": "2",
    "num.io.threads": "4",
    "background.threads": "2",
    "num.recovery.threads.per.data.dir": "1",
    # After a kill the controller refuses the broker's new incarnation until the old session has run out.
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "500",
}
"""What differs from Kafka's own defaults, because this is one broker on one machine."""


ADDED_TO_OURS = ("listeners", "advertised.listeners", "listener.security.protocol.map")


class StaleData(InvalidConfiguration):
    """The data folder holds something that this broker cannot continue."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What wrote a data folder."""

    kafka_version: str
    cluster_id: str
    port: int | None = None
    """The port that clients knew the broker by when it last ran."""


def log_directory(data_dir: Path) -> Path:
    return data_dir / "data"


def new_cluster_id() -> str:
    """16 random bytes as Kafka spells them; never with a dash first, which its tools take for an option."""
    while (spelled := base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()).startswith("-"):
        pass
    return spelled


def voters(controller_ports: Mapping[int, int]) -> str:
    """The quorum as Kafka spells it, from the controllers' ports by node id."""
    return ",".join(f"{node}@{LISTEN_HOST}:{port}" for node, port in sorted(controller_ports.items()))


def properties(
    log_dirs: Path,
    *,
    port: int,
    controller_ports: Mapping[int, int],
    advertised: str | None,
    settings: Mapping[str, str],
    node_id: int = NODE_ID,
) -> str:
    """The text of kafka.properties: one node, broker and controller, on the loopback interface only.

    `controller_ports` has the whole quorum by node id, this node's among them. Listeners among `settings`
    come beside ours, other settings replace ours.
    """
    controller_port = controller_ports[node_id]
    lines = {
        "process.roles": "broker,controller",
        "node.id": str(node_id),
        "controller.quorum.voters": voters(controller_ports),
        "listeners": f"PLAINTEXT://{LISTEN_HOST}:{port},CONTROLLER://{LISTEN_HOST}:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://{advertised or f'{LISTEN_HOST}:{port}'}",
        "controller.listener.names": "CONTROLLER",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "log.dirs": str(log_dirs),
        **DEFAULTS,
    }
    for key, value in settings.items():
        lines[key] = f"{lines[key]},{value}" if key in ADDED_TO_OURS else value
    # A Java properties file: a backslash would start an escape.
    return "".join(f"{key}={value}\n".replace("\\", "\\\\") for key, value in lines.items())


def examine(data_dir: Path, *, cluster_id: str | None, node_id: int = NODE_ID) -> Origin | None:
    """What wrote `data_dir`, or None if it is still empty. Raises StaleData if it cannot be continued."""
    logs = log_directory(data_dir)
    way_out = f"use another home folder, or delete {data_dir} if its records may go"
    if not logs.exists() or not any(logs.iterdir()):
        return None
    try:
        meta = dict(
            line.split("=", 1)
            for line in (logs / "meta.properties").read_text(encoding="utf-8").splitlines()
            if "=" in line and not line.startswith("#")
        )
        origin = Origin(**json.loads((data_dir / "origin.json").read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError) as error:
        raise StaleData(
            f"{data_dir} holds data that is not Tidemill's, or only a part ({error}); {way_out}"
        ) from error
    if meta.get("cluster.id") != origin.cluster_id or meta.get("node.id") != str(node_id):
        raise StaleData(
            f"{data_dir} holds data of cluster {meta.get('cluster.id')}, node {meta.get('node.id')}, but was "
            f"set up as cluster {origin.cluster_id}, node {node_id}: it comes from elsewhere; {way_out}"
        )
    if cluster_id is not None and cluster_id != origin.cluster_id:
        raise StaleData(
            f"{data_dir} holds data of cluster {origin.cluster_id}, not of {cluster_id}; {way_out}"
        )
    if _numbers(origin.kafka_version) > _numbers(KAFKA_VERSION):
        raise StaleData(
            f"{data_dir} was written by Kafka {origin.kafka_version}, this is {KAFKA_VERSION}, and Kafka's "
            f"data cannot go back to an older version; install the Tidemill that wrote it, or {way_out}"
        )
    return origin


def remember(data_dir: Path, origin: Origin, *, port: int) -> None:
    """Note that this Kafka version now writes the data, under `port`."""
    written = replace(origin, kafka_version=KAFKA_VERSION, port=port)
    atomic_file.write_text(data_dir / "origin.json", json.dumps(asdict(written)))


def format_storage(
    data_dir: Path,
    java_command: Sequence[str],
    *,
    cluster_id: str | None,
    options: Sequence[str] = (),
    node_id: int = NODE_ID,
) -> Origin:
    """Make `data_dir` ready for a first start. In one step: an interrupted formatting leaves no half of it.

    `java_command` is everything up to the main class, `options` goes to Kafka's format tool.
    Raises StaleData if that refuses.
    """
    staging = data_dir / ".formatting"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    origin = Origin(kafka_version=KAFKA_VERSION, cluster_id=cluster_id or new_cluster_id())
    config = staging / "kafka.properties"
    logs = staging / "data"
    text = properties(
        logs, port=9092, controller_ports={node_id: 9093}, advertised=None, settings={}, node_id=node_id
    )
    config.write_text(text, encoding="utf-8")
    command = [
        *java_command,
        "kafka.tools.StorageTool",
        "format",
        "-t",
        origin.cluster_id,
        "-c",
        str(config),
        *options,
    ]
    answer = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=FORMAT_TIMEOUT_S,
        check=False,
        env=clean_environment(),
    )
    if answer.returncode:
        last_words = "\n".join((answer.stdout + answer.stderr).strip().splitlines()[-5:])
        shutil.rmtree(staging, ignore_errors=True)
        raise StaleData(f"Kafka cannot format {data_dir}: {last_words}")
    atomic_file.write_text(data_dir / "origin.json", json.dumps(asdict(origin)))
    shutil.rmtree(log_directory(data_dir), ignore_errors=True)  # empty, or examine() would have found it
    logs.replace(log_directory(data_dir))
    shutil.rmtree(staging)
    return origin


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
