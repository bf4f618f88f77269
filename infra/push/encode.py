"""From a chunk to records by partition: JSON, an event a record; or Arrow frames of some thousand rows."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Literal

import numpy as np
import polars as pl

from infra.kafka.keys import KeyReader
from infra.kafka.partitions import partitions_for
from infra.push.source import Chunk
from schemas.errors import InvalidConfiguration

Form = Literal["json", "arrow"]
Record = tuple[bytes | None, bytes]
Records = list[list[Record]]
"""Records of each partition, in the file's order."""

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

    def encode(self, chunk: Chunk) -> Records:
        """The chunk's records. The same chunk gives the same bytes.

        Raises:
            InvalidConfiguration: Arrow frames are asked for, and the file has no columns.
        """
        if chunk.table is None:
            assert chunk.lines is not None
            if self._form == "arrow":
                raise InvalidConfiguration("NDJSON lines go as they stand: leave out --as arrow")
            return self._parted([self._keys.read(line) for line in chunk.lines], chunk.lines)
        table = chunk.table
        if self._form == "arrow":
            return self._frames(table)
        values = table.select(pl.struct(pl.all()).struct.json_encode().cast(pl.Binary)).to_series().to_list()
        return self._parted(self._keys_of(table), values)

    def _keys_of(self, table: pl.DataFrame) -> list[bytes]:
        if self._key not in table.columns:
            return [b""] * table.height  # each will be a dead letter that names the missing field
        keys = table.get_column(self._key).cast(pl.String).fill_null("")
        return keys.cast(pl.Binary).to_list()

    def _parted(self, keys: Sequence[bytes], values: Sequence[bytes]) -> Records:
        """Records by partition; one pass over positions sorted by partition, stable."""
        of = partitions_for(keys, self._partitions)
        order = np.argsort(of, kind="stable").tolist()
        bounds = np.searchsorted(np.sort(of), np.arange(self._partitions + 1)).tolist()
        pairs = list(zip(keys, values, strict=True))
        return [[pairs[at] for at in order[bounds[n] : bounds[n + 1]]] for n in range(self._partitions)]

    def _frames(self, table: pl.DataFrame) -> Records:
        of = pl.Series(partitions_for(self._keys_of(table), self._partitions))
        records: Records = []
        for number in range(self._partitions):
            frames: list[Record] = []
            for rows in table.filter(of == number).iter_slices(ROWS_PER_FRAME):
                sink = io.BytesIO()
                rows.write_ipc_stream(sink)
                frames.append((None, sink.getvalue()))
            records.append(frames)
        return records
