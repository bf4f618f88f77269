"""A training without end, as a job's process runs one: `python -m loadtest.beside.training MARKS`.

The demo's network on days of the demo's flights by `trainers.loop`, on one thread and at a job's priority.
Each report goes to the file MARKS, a line of JSON: how many rows were trained on so far, and when.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import torch

from loadtest.train.sides import fitted, task_of
from loadtest.train.table import examples
from streams.pipelines.flights import flights
from trainers.child import NICENESS

_DAYS = 7
_BATCH_ROWS = 2_048
_EPOCHS = 1_000_000


def main(marks: Path) -> None:
    """Train until ended."""
    spec = flights.spec()
    assert spec.label is not None
    rows = examples(flights, days=_DAYS, progress=lambda _: None)
    os.nice(NICENESS)
    torch.set_num_threads(1)
    task = task_of(
        rows, features=spec.names(), label=spec.label.column, seed=0, params={"batch_rows": _BATCH_ROWS}
    )
    with marks.open("w", buffering=1) as out:

        def note(step: int, _loss: float) -> None:
            out.write(json.dumps({"rows": step * _BATCH_ROWS, "time": time.time()}) + "\n")

        fitted(task, _EPOCHS, encoded=True, report=note)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
