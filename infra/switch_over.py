"""A worker that goes on where a switch has ended it: in the dataset that is live then, by its rules."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from infra.supervisor import ProcessFailed, Supervised
from infra.switched import goes_on_by, live_dataset

# So long the dataset that was live may take to say its last word: no worker begins on the other before.
_LAST_WORD_S = 60.0


@dataclass
class SwitchOver:
    """Starts the worker of one pipeline again after each switch.

    Attributes:
        file: the pipeline's, by which the worker was started.
        command: the worker's command line by a file.
    """

    worker: Supervised
    dataset_dir: Path
    pipeline: str
    file: Path
    command: Callable[[Path], Sequence[str]]

    def __post_init__(self) -> None:
        switch = live_dataset(self.dataset_dir, self.pipeline)[1]
        self._epoch = self._told = switch.epoch if switch else 0
        self._until_s = 0.0

    def after(self, failed: ProcessFailed) -> str:
        """Start the worker again if a switch has ended it; gives what there is to say of it, "" for nothing.

        Raises:
            ProcessFailed: no switch has, or another process failed.
            SwitchedAway: the rules that were switched to are not on this machine.
        """
        if failed.name != self.worker.name:
            raise failed
        on = goes_on_by(self.dataset_dir, self.pipeline, self.file, since=self._epoch)
        if on is None:
            if time.monotonic() > self._until_s:
                raise failed
            self.worker.start()
            return ""
        epoch, file = on
        if file is None:
            new, self._told = epoch > self._told, epoch
            return (
                f"a switch of pipeline {self.pipeline} is half made: the worker waits for it" if new else ""
            )
        self._epoch, self._until_s = epoch, time.monotonic() + _LAST_WORD_S
        self.worker.command = self.command(file)
        self.worker.start()
        return f"pipeline {self.pipeline} was switched: the worker goes on by {file}"
