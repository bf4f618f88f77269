"""The commits of a switch: the live dataset's last one, and the one by which the pipeline's name tells."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import polars as pl

from infra.dataset import Dataset
from infra.switched import SWITCHED, Switched, live_dataset, newest_switch
from schemas.errors import InvalidConfiguration
from streams.ingest import dataset_schema
from streams.ledger.commit import Ledger, Overtaken
from streams.pipeline import Pipeline

# Workers commit several times a second, each in some milliseconds.
_TRIES = 50


class NothingToSwitch(InvalidConfiguration):
    """There is no such dataset, it is live already, or there was no switch to take back."""


def fence(
    live: Pipeline,
    dataset_dir: Path,
    *,
    to: str,
    partitions: int,
    rules_sha256: str,
    reason: str,
    by: str,
    keep: bool = False,
    rules: Path | None = None,
) -> Switched:
    """End the live dataset: no worker that runs commits to it any more. A half made switch is taken up again.

    Args:
        live: the rules of the live dataset.
        to: name of the folder of the dataset that is to be live.
        partitions: of the main source.
        rules_sha256: of the file by which workers go on.
        keep: `to` is the live one, and stays so.
        rules: the file by which workers go on, for who starts them on this machine.

    Raises:
        NothingToSwitch: `to` is not there, or is live already.
        Overtaken: workers were always quicker; try again.
        DatasetNotWritable: nothing was written.
    """
    folder, pointer = live_dataset(dataset_dir, live.name)
    if not (dataset_dir / to / "_delta_log").is_dir():
        raise NothingToSwitch(f"there is no dataset {to} in {dataset_dir}; `tidemill replay` makes it")
    if (folder.name == to) is not keep:
        raise NothingToSwitch(f"{to} {'is not' if keep else 'is'} the live dataset of pipeline {live.name}")
    epoch = (pointer.epoch if pointer else 0) + 1
    half = newest_switch(folder)
    if half is not None and half.epoch == epoch:
        if (half.to, half.rules_sha256) != (to, rules_sha256):
            raise NothingToSwitch(
                f"a switch of pipeline {live.name} from {half.before} to {half.to} is half made; finish that "
                "one by the same command, then take it back"
            )
        return half
    ledger = Ledger(folder, dataset_schema(live))
    for attempt in range(1, _TRIES + 1):
        watermark_ms = ledger.pipeline_watermark()
        switched = Switched(
            epoch=epoch,
            before=folder.name,
            to=to,
            rules_sha256=rules_sha256,
            watermark_ms=watermark_ms,
            read={str(n): ledger.position((live.source.topic, n)) or 0 for n in range(partitions)},
            after_version=_before(dataset_dir / to, watermark_ms),
            reason=reason,
            by=by,
            at_ms=int(time.time() * 1000),
            rules="" if rules is None else str(rules.absolute()),
        )
        try:
            _commit(ledger, switched)
        except Overtaken:
            if attempt == _TRIES:
                raise
        else:
            return switched
    raise AssertionError("the last try returns or raises")


def point(new: Pipeline, dataset_dir: Path, switched: Switched) -> None:
    """Say it in the dataset of the pipeline's name, where it was not said there already.

    Raises:
        Overtaken: somebody commits there; try again.
        DatasetNotWritable: nothing was written.
    """
    root = dataset_dir / new.name
    known = newest_switch(root)
    if known is None or known.epoch < switched.epoch:
        # Its columns may be those of other rules than are switched to: no row is written.
        _commit(Ledger(root, None), switched)


def _commit(ledger: Ledger, switched: Switched) -> None:
    ledger.commit(
        pl.DataFrame(schema=ledger.schema),
        advances={},
        watermarks={},
        metadata={
            "offsets": {},
            SWITCHED: msgspec.to_builtins(switched),
            "committed_ms": switched.at_ms,
            "watermark_ms": ledger.pipeline_watermark(),
        },
        marks=(SWITCHED,),
    )


def _before(uri: Path, watermark_ms: int | None) -> int:
    """The newest version of a dataset whose watermark is not beyond that."""
    dataset = Dataset(uri)
    for version in range(dataset.newest_version(), 0, -1):
        mark_ms = dataset.commit(version).metadata.get("watermark_ms")
        if mark_ms is not None and watermark_ms is not None and mark_ms <= watermark_ms:
            return version
    return 0
