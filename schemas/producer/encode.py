"""From a chunk to records by partition: JSON, an event a record; or Arrow frames of some thousand rows.

Rows and keys stay columns all the way: no Python object is made of an event.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, Literal

import msgspec
import numpy as np
import polars as pl

from ..errors import InvalidConfiguration
from .keys import KeyReader
from .partitions import partitions_for
from .record_batch import Records
from .source import Chunk, FileUnreadable

Form = Literal["json", "arrow"]

ROWS_PER_FRAME = 5_000


class Encoder:
    """Makes records of a topic's events.

    Args:
        key: the field or column whose text is an event's key.
        partitions: of the topic.
        form: what a record holds.
    """

    def __init__(self, key: str, partitions: int, form: Form) -> None:
        self._key, self._partitions, self._form = key, partitions, form
        self._keys = KeyReader(key)

    def encode(self, chunk: Chunk) -> list[Records]:
        """The chunk's records by partition, in the file's order. The same chunk gives the same bytes.

        Raises:
            InvalidConfiguration: Arrow frames are asked for, and the file has no columns.
            FileUnreadable: they are asked for, and a CSV's value is none of its field's type.
        """
        if chunk.table is None:
            assert chunk.lines is not None
            if self._form == "arrow":
                raise InvalidConfiguration("NDJSON lines go as they stand: leave out --as arrow")
            keys = pl.Series([self._keys.read(line) for line in chunk.lines], dtype=pl.Binary)
            return self._parted(keys, pl.Series(chunk.lines, dtype=pl.Binary))
        table = chunk.table
        if self._form == "arrow":
            if chunk.odd:
                raise FileUnreadable(
                    f"{next(iter(chunk.odd.values()))} holds a value that is none of its field's type, and a "
                    "column of a frame has one type: mend it, or leave out --as arrow"
                )
            return self._frames(table)
        keys = self._keys_of(table)
        values = table.select(pl.struct(pl.all()).struct.json_encode().cast(pl.Binary)).to_series()
        if chunk.odd:
            rows = [msgspec.json.encode(row) for row in chunk.odd.values()]
            values = _replaced(values, chunk.odd, rows)
            keys = _replaced(keys, chunk.odd, [_text_of(row.get(self._key)) for row in chunk.odd.values()])
        return self._parted(keys, values)

    def _keys_of(self, table: pl.DataFrame) -> pl.Series:
        if self._key not in table.columns:  # each will be a dead letter that names the missing field
            return pl.repeat(b"", table.height, dtype=pl.Binary, eager=True)
        return table.get_column(self._key).cast(pl.String).fill_null("").cast(pl.Binary)

    def _parted(self, keys: pl.Series, values: pl.Series) -> list[Records]:
        """Records by partition; one pass over positions sorted by partition, stable."""
        of = partitions_for(keys, self._partitions)
        order = np.argsort(of, kind="stable")
        bounds = np.searchsorted(of[order], np.arange(self._partitions + 1)).tolist()
        keys, values = keys.gather(order), values.gather(order)
        return [Records(keys[first:last], values[first:last]) for first, last in pairwise(bounds)]

    def _frames(self, table: pl.DataFrame) -> list[Records]:
        of = pl.Series(partitions_for(self._keys_of(table), self._partitions))
        records: list[Records] = []
        for number in range(self._partitions):
            frames: list[bytes] = []
            for rows in table.filter(of == number).iter_slices(ROWS_PER_FRAME):
                sink = io.BytesIO()
                rows.write_ipc_stream(sink)
                frames.append(sink.getvalue())
            values = pl.Series(frames, dtype=pl.Binary)
            records.append(Records(pl.repeat(None, len(values), dtype=pl.Binary, eager=True), values))
        return records


def _replaced(column: pl.Series, positions: Iterable[int], values: Sequence[bytes]) -> pl.Series:
    own = column.to_list()
    for position, value in zip(positions, values, strict=True):
        own[position] = value
    return pl.Series(own, dtype=pl.Binary)


def _text_of(value: Any) -> bytes:
    return b"" if value is None else str(value).encode()
