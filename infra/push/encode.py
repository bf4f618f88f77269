"""From a chunk to records by partition: JSON, an event a record; or Arrow frames of some thousand rows.

Rows and keys stay columns all the way: no Python object is made of an event.
"""

from __future__ import annotations

import io
from itertools import pairwise
from typing import Literal

import numpy as np
import polars as pl

from infra.kafka.keys import KeyReader
from infra.kafka.partitions import partitions_for
from infra.kafka.record_batch import Records
from infra.push.source import Chunk
from schemas.errors import InvalidConfiguration

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
        """
        if chunk.table is None:
            assert chunk.lines is not None
            if self._form == "arrow":
                raise InvalidConfiguration("NDJSON lines go as they stand: leave out --as arrow")
            keys = pl.Series([self._keys.read(line) for line in chunk.lines], dtype=pl.Binary)
            return self._parted(keys, pl.Series(chunk.lines, dtype=pl.Binary))
        table = chunk.table
        if self._form == "arrow":
            return self._frames(table)
        values = table.select(pl.struct(pl.all()).struct.json_encode().cast(pl.Binary)).to_series()
        return self._parted(self._keys_of(table), values)

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
