"""A process that compacts and ends: run as `python -m streams.ledger.compactor`, by `streams.ledger.keeper`.

What it holds at its most and what it computes is then not the worker's, and is given back whole when it ends.
It says each compaction in a line and ends once there is nothing more to compact; a start costs about half a
second of a core, of which the import of Polars is most. Killed at any instant it leaves the dataset as it
was, or compacted, and at most a file that nobody names.

    compactor PARENT URI FILES FILE_BYTES     see `streams.ledger.compaction.compact`
"""

from __future__ import annotations

import os
import signal
import sys

from infra.supervisor import end_with

# A worker that has all cores busy leaves it about a tenth of one.
_NICE = 10


class Stopped(BaseException):
    """The worker asks for an end: what is half written is removed on the way out."""


def main(arguments: list[str]) -> int:
    """Compact until nothing is left to; gives the exit code."""
    parent, uri, files, file_bytes = arguments
    signal.signal(signal.SIGTERM, _stop)
    end_with(int(parent))
    os.nice(_NICE)
    try:
        return _compact(uri, int(files), int(file_bytes))
    except Stopped:
        return 1


def _compact(uri: str, files: int, file_bytes: int) -> int:
    # Only now: importing Polars takes as long as the rest, and nobody may be left behind meanwhile.
    import msgspec
    from deltalake.exceptions import DeltaError

    from schemas.errors import TidemillError
    from streams.ledger.compaction import compact

    try:
        while done := compact(uri, files=files, file_bytes=file_bytes):
            print(msgspec.json.encode(done).decode(), flush=True)
    except (TidemillError, DeltaError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _stop(_signal: int, _frame: object) -> None:
    raise Stopped


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
