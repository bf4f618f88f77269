"""The partition that Kafka's own clients choose for a key, for many keys at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from .record_batch import bytes_of

_SEED = np.uint32(0x9747B28C)
_M = np.uint32(0x5BD1E995)
_WORD = 4


def partitions_for(keys: Sequence[bytes] | pl.Series, partitions: int) -> np.ndarray:
    """Partition of each key: murmur2 of its bytes (Appleby; Kafka's seed), as `partition_for` has it.

    Args:
        keys: bytes, or a binary column without nulls.

    Returns:
        int64 array of the keys' length.
    """
    column = keys if isinstance(keys, pl.Series) else pl.Series(keys, dtype=pl.Binary)
    lengths = column.bin.size().to_numpy().astype(np.int64)
    starts = np.cumsum(lengths) - lengths
    raw = np.concatenate([bytes_of(column), np.zeros(_WORD, dtype=np.uint8)])
    # The little-endian word that begins at each byte.
    words = np.ndarray((len(raw) - _WORD + 1,), dtype="<u4", buffer=raw, strides=(1,))
    hashed = _SEED ^ lengths.astype(np.uint32)
    with np.errstate(over="ignore"):
        # Word by word over all keys that are that long.
        for word in range(int(lengths.max(initial=0)) // _WORD):
            rows = np.flatnonzero(lengths >= _WORD * (word + 1))
            k = words[starts[rows] + _WORD * word] * _M
            k ^= k >> np.uint32(24)
            hashed[rows] = (hashed[rows] * _M) ^ (k * _M)
        for left in (1, 2, 3):
            rows = np.flatnonzero(lengths % _WORD == left)
            tail = words[starts[rows] + lengths[rows] // _WORD * _WORD] & np.uint32(2 ** (8 * left) - 1)
            hashed[rows] = (hashed[rows] ^ tail) * _M
        hashed ^= hashed >> np.uint32(13)
        hashed *= _M
        hashed ^= hashed >> np.uint32(15)
    return (hashed & np.uint32(0x7FFFFFFF)).astype(np.int64) % partitions
