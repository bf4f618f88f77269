"""`tidemill push`: the client's sender with the settings' cluster, a bar, and a Ctrl-C that loses nothing."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from infra.kafka.cluster import find_cluster
from infra.kafka.topics import partitions_of
from infra.settings import Settings
from infra.stopping import asked_to_stop
from schemas.errors import InvalidConfiguration
from schemas.producer.encode import Form
from schemas.producer.push import Pushed
from schemas.producer.record_batch import Compression
from schemas.producer.sender import EventSender, raw_topic
from schemas.producer.source import open_source


async def push_file(
    settings: Settings,
    topic: str,
    file: Path,
    console: Console,
    *,
    form: Form = "json",
    compression: Compression = "none",
    from_beginning: bool = False,
) -> Pushed:
    """Push every row of a file as one event, and go on where an earlier push of it stopped.

    NDJSON lines are pushed as they stand, good or bad: what is wrong with one is said by its dead letter.
    SIGINT and SIGTERM end it once what is on its way has arrived; a second signal changes nothing.

    Args:
        form: an event a record, or Arrow frames of some thousand rows.
        compression: of what goes over the wire and lies on the topic.
        from_beginning: forget what an earlier push of the file noted.

    Raises:
        InvalidConfiguration: no cluster, the topic is not a raw one, or the file changed since a part of it
            was pushed.
        FileUnreadable: the file is missing, of no known format, or damaged.
        PushFailed: the cluster is away for longer than the client waits.
    """
    declared = raw_topic(topic)
    connection = find_cluster(settings)
    if connection is None:
        raise InvalidConfiguration("no broker runs here; start one by `tidemill up`, or name your cluster")
    open_source(file, declared.contracts)  # what is wrong with the file is said before the cluster is asked
    if topic not in await partitions_of(connection):
        raise InvalidConfiguration(
            f"there is no topic {topic} on the cluster; `tidemill topics --create` makes those that are "
            "declared, with --pipeline FILE also those of a pipeline"
        )
    sender = EventSender(
        declared,
        client=connection.client_arguments(),
        journal_dir=settings.paths.home / "push",
        form=form,
        compression=compression,
        checked=False,
    )
    async with sender:
        with asked_to_stop() as stop, _progress(console) as shown:
            bar = shown.add_task(f"pushing to {topic}", total=None)
            return await sender.send_file(
                file,
                from_beginning=from_beginning,
                progress=lambda done, of: shown.update(bar, completed=done, total=of),
                stop=stop,
            )


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )
