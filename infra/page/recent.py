"""A memory that does not grow: the newest so many of something, by key."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Recent(OrderedDict[K, V], Generic[K, V]):
    """A dict of the `most` keys that were set last; the oldest goes when another comes."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def __setitem__(self, key: K, value: V) -> None:
        super().__setitem__(key, value)
        self.move_to_end(key)
        while len(self) > self._most:
            self.popitem(last=False)

    def newest(self, most: int) -> list[V]:
        """Of the values that were set last so many, the newest first."""
        return [value for value, _ in zip(reversed(self.values()), range(most), strict=False)]
