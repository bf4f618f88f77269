"""The process of one job: waits warm, takes one assignment, does it, and ends.

    stdin                   one line of JSON: the assignment
    descriptor of argv[1]   lines of JSON back: progress, and one result
    stdout and stderr       the job's log

Torch and polars are imported before the assignment comes, so that a job starts at once.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback

import msgspec

from schemas.errors import Rejected, Retryable
from trainers.work import Assignment, NothingToTrainOn, Outcome, perform

_PROGRESS_EVERY_S = 0.25


class Report(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One line from the child: it is ready, how far it is, or what came of it (one of the last three)."""

    ready: bool = False
    step: int = 0
    of: int = 0
    metrics: dict[str, float] = {}
    outcome: Outcome | None = None
    skipped: str | None = None
    failed: str | None = None


def main(reports_descriptor: int) -> int:
    """Wait for the assignment and do it. Exit code 0 when a result was reported, whatever it is."""
    with os.fdopen(reports_descriptor, "wb", buffering=0) as reports:
        lock = threading.Lock()

        def say(report: Report) -> None:
            with lock:
                reports.write(msgspec.json.encode(report) + b"\n")

        _warm_up()
        say(Report(ready=True))
        line = sys.stdin.buffer.readline()
        if not line.strip():
            return 0  # the trainer ended before there was a job
        assignment = msgspec.json.decode(line, type=Assignment)
        said_s = 0.0

        def progress(step: int, of: int, metrics: dict[str, float]) -> None:
            nonlocal said_s
            now = time.monotonic()
            if now - said_s >= _PROGRESS_EVERY_S or step >= of:
                said_s = now
                say(Report(step=step, of=of, metrics=metrics))

        try:
            say(Report(outcome=perform(assignment, progress)))
        except NothingToTrainOn as reason:
            say(Report(skipped=str(reason)))
        except (Rejected, Retryable) as error:
            say(Report(failed=str(error)))
        except BaseException as error:  # user code may raise anything, SystemExit too
            traceback.print_exc()
            sys.stderr.flush()
            say(Report(failed=f"{type(error).__name__}: {error}"))
    return 0


def _warm_up() -> None:
    """Pay once, before there is a job, for what the first use of each library costs."""
    import polars as pl
    import torch

    torch.zeros(2, 2).matmul(torch.zeros(2, 2))
    layer = torch.nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.zeros(2, 2)).sum().backward()
    optimizer.step()
    pl.DataFrame({"a": [1]}).join_asof(pl.DataFrame({"a": [1], "b": [2]}).set_sorted("a"), on="a")
    if torch.cuda.is_available():
        torch.zeros(1, device="cuda")


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
