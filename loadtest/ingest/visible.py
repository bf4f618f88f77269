"""A dataset's commits as they become visible to readers; each entry of its log is read once."""

from __future__ import annotations

import threading
import time

from infra.dataset import CommitRecord, Dataset
from streams.announce.log import is_committed


class Follower:
    """What was committed since it was asked last. Looking costs one question of the file system."""

    def __init__(self, dataset: Dataset) -> None:
        self.version = -1
        self._dataset = dataset

    def new(self) -> list[CommitRecord]:
        """The commits that came since, oldest first."""
        found: list[CommitRecord] = []
        while is_committed(self._dataset.uri, self.version + 1):
            self.version += 1
            found.append(self._dataset.commit(self.version))
        return found


class Watch(threading.Thread):
    """Notes when each version became visible, to some milliseconds; what they say is read when asked for."""

    def __init__(self, dataset: Dataset, *, look_s: float = 0.002) -> None:
        super().__init__(name="watch", daemon=True)
        self._seen_s: list[float] = []
        self._read: list[tuple[float, CommitRecord]] = []
        self._dataset, self._look_s = dataset, look_s
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(self._look_s):
            while is_committed(self._dataset.uri, len(self._seen_s)):
                self._seen_s.append(time.monotonic())

    def stop(self) -> None:
        """Look no more."""
        self._over.set()
        self.join()

    def commits(self) -> list[tuple[float, CommitRecord]]:
        """What was seen so far, each with its instant of `time.monotonic()`."""
        while len(self._read) < len(self._seen_s):
            version = len(self._read)
            self._read.append((self._seen_s[version], self._dataset.commit(version)))
        return self._read


def events_of(commit: CommitRecord) -> int:
    """How many events a commit accounts for; none where it is one of the upkeep."""
    return sum(counts["events"] for counts in commit.metadata.get("counts", {}).values())
