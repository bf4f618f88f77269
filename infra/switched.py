"""Which of a pipeline's datasets is its live one, as the datasets' own logs have it.

The dataset that bears the pipeline's name always exists, and its newest switch says which is live. A switch
is a commit without rows: first in the dataset that is live until then, whose workers it fences, then, where
that is another, in the one of the pipeline's name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from infra.dataset import Dataset, open_table
from schemas.errors import InvalidConfiguration

SWITCHED = "switched"
"""Under which name a commit's metadata holds a `Switched`, and the table's transactions its version."""


class SwitchedAway(InvalidConfiguration):
    """Another dataset is the pipeline's live one now; this process was started for the one before."""


class Switched(Struct, frozen=True, kw_only=True):
    """What one commit says: from the `epoch`-th switch on, the dataset `to` is the live one.

    Attributes:
        rules_sha256: of the pipeline's file by which workers go on.
        rules: that file, where it lay on the machine of whoever switched.
        watermark_ms: of the dataset that was live; None where it had none. What was ready by then is said.
        read: next offset of each partition of the main source in the dataset that was live.
        after_version: the newest version of `to` whose watermark is not beyond that: the next is announced.
    """

    epoch: int
    before: str
    to: str
    rules_sha256: str
    watermark_ms: int | None
    read: dict[str, int]
    after_version: int
    reason: str
    by: str
    at_ms: int
    rules: str = ""

    def event_id(self, pipeline: str) -> str:
        """Of the announcement that says so."""
        return f"{pipeline}/switched/{self.epoch}"


def switch_of(metadata: Mapping[str, Any]) -> Switched | None:
    """What a commit says of the live dataset; None where it is any other commit."""
    said = metadata.get(SWITCHED)
    return None if said is None else msgspec.convert(said, Switched)


def newest_switch(uri: str | Path) -> Switched | None:
    """The newest switch in a dataset's log; None where there is none, or no dataset."""
    if not (Path(uri) / "_delta_log").is_dir():
        return None
    at = open_table(str(uri)).transaction_version(SWITCHED)
    return None if at is None else switch_of(Dataset(uri).commit(at).metadata)


def live_dataset(dataset_dir: Path, pipeline: str) -> tuple[Path, Switched | None]:
    """Folder of a pipeline's live dataset, and the switch that made it so; None: there was none."""
    switch = newest_switch(dataset_dir / pipeline)
    return dataset_dir / (pipeline if switch is None else switch.to), switch


def switch_of_epoch(dataset_dir: Path, pipeline: str, epoch: int) -> Switched | None:
    """That switch of a pipeline; None for the time before there was any.

    Raises:
        DatasetUnreadable: there is no dataset of that name.
    """
    dataset = Dataset(dataset_dir / pipeline)
    for version in range(dataset.newest_version() if epoch else -1, -1, -1):
        switch = switch_of(dataset.commit(version).metadata)
        if switch is not None and switch.epoch == epoch:
            return switch
    return None


def goes_on_by(dataset_dir: Path, pipeline: str, own: Path, *, since: int) -> tuple[int, Path | None] | None:
    """How a worker goes on that a switch has ended: the switch's epoch, and the file to start it by.

    Args:
        own: the file that it was started by; it may hold the new rules by now.
        since: epoch of the switch that it was started after, 0 for none.

    Returns:
        None where there was no switch since. The file is None while the switch is half made.

    Raises:
        SwitchedAway: neither that file nor the one that the switch named holds the rules switched to.
    """
    folder, pointer = live_dataset(dataset_dir, pipeline)
    newest = max((s for s in (pointer, newest_switch(folder)) if s), key=lambda s: s.epoch, default=None)
    if newest is None or newest.epoch <= since:
        return None
    if pointer is None or pointer.epoch < newest.epoch:
        return newest.epoch, None
    for file in (own, Path(newest.rules)):
        if file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == newest.rules_sha256:
            return newest.epoch, file
    raise SwitchedAway(
        f"{newest.by} switched pipeline {pipeline} to the dataset {newest.to} ({newest.reason}), and "
        f"{newest.rules or 'its file'} does not hold the rules of that switch here; start again by the file "
        f"whose SHA-256 is {newest.rules_sha256[:8]}…"
    )


def refuse_others(dataset_dir: Path, pipeline: str, rules_sha256: str) -> None:
    """Let no worker begin on a pipeline's live dataset by other rules than were switched to.

    Raises:
        SwitchedAway: the rules are others, a switch is half made, or the live dataset is not there.
    """
    folder, switch = live_dataset(dataset_dir, pipeline)
    if switch is None:
        return
    if not (folder / "_delta_log").is_dir():
        raise SwitchedAway(
            f"the live dataset of pipeline {pipeline} is {switch.to}, and {folder} is not there: restore it; "
            "another would begin with what the cluster still has"
        )
    half = newest_switch(folder)
    if half is not None and half.epoch > switch.epoch:
        raise SwitchedAway(
            f"the switch of pipeline {pipeline} from {half.before} to {half.to} is half made: run the same "
            "`tidemill switch` again"
        )
    if switch.rules_sha256 != rules_sha256:
        raise SwitchedAway(
            f"the live dataset of pipeline {pipeline} is {switch.to}, since {switch.by} switched to it "
            f"({switch.reason}), by the rules whose file has the SHA-256 {switch.rules_sha256[:8]}…; this "
            f"file's is {rules_sha256[:8]}…. Start the worker with that file, go back by "
            "`tidemill switch --back`, or let it go on by these rules: `tidemill switch --keep`"
        )
