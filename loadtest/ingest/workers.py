"""Several workers of one pipeline under one process: its tree is measured as one side.

    python -m loadtest.ingest.workers 2 FOLDER

Each worker's log lies in the folder. A worker that dies ends all of them.
"""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

from infra.supervisor import Supervised, Supervisor, tidemill

_LOOK_S = 0.2


def several(count: int, home: Path) -> list[str]:
    """The command line that runs so many workers."""
    return [sys.executable, "-m", "loadtest.ingest.workers", str(count), str(home)]


def main() -> None:
    """Run them until SIGTERM."""
    count, home = int(sys.argv[1]), Path(sys.argv[2])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with Supervisor() as supervisor:
        for number in range(count):
            log_file = home / f"worker-{number}.log"
            supervisor.start(Supervised(f"worker {number}", tidemill("worker"), log_file, most_restarts=0))
        while True:
            supervisor.keep_alive()
            time.sleep(_LOOK_S)


if __name__ == "__main__":
    main()
