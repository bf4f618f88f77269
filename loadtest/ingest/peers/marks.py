"""How far a side is, one JSON line at a time: {"events": n, "time": unix seconds}, a few a second.

Every side's program says so, whatever it is written in; rates and CPU are taken between the first and the
last line. This file is read by other environments: the standard library only.
"""

import json
import os
import time


class Marks:
    """The lines of this process."""

    def __init__(self):
        self.total = int(os.environ["BENCH_EVENTS"])
        self._file = open(os.environ["BENCH_MARKS"], "a", buffering=1)
        self._next_s = 0.0
        self._read = self._kept = 0

    def one(self, *, kept):
        """One more event is done with; `kept`: cleaning left it."""
        self._read += 1
        self._kept += kept
        if self._read % 200 == 0 or self._read == self.total:
            self.at(self._read, self._kept)

    def at(self, events, kept=None, *, time_s=None):
        """So many events are done with, now or at `time_s`; the first and the last are said always."""
        now = time.time() if time_s is None else time_s
        if now >= self._next_s or events >= self.total:
            self._next_s = now + 0.1
            line = {"events": events, "time": now}
            if kept is not None:
                line["kept"] = kept
            self._file.write(json.dumps(line) + "\n")
