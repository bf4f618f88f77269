"""A job's process on another machine: `python -m trainers.apart ASSIGNMENT REPORTS`.

Its assignment is a file, its reports are appended to another, framed as over a socket (`trainers.channel`).
Both, the dataset and the artifacts lie where this machine and the trainer's see them under the same names.
It forks from nothing: torch's import is paid here.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from trainers.assignment import Assignment
from trainers.child import work_on


def main(assignment_file: Path, reports_file: Path) -> None:
    """Do it; what came of it is the last report."""
    assignment = msgspec.json.decode(assignment_file.read_bytes(), type=Assignment)
    reports_file.parent.mkdir(parents=True, exist_ok=True)
    with reports_file.open("wb", buffering=0) as reports:
        # No process of the trainer's machine: its memory is not the trainer's to watch.
        work_on(assignment, reports.write, pid=0)


if __name__ == "__main__":
    main(*(Path(each) for each in sys.argv[1:3]))
