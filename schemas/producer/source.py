"""A file's events in chunks: never the whole of it in memory, and the same chunks whenever it is read."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import msgspec
import polars as pl

from ..errors import Rejected
from .typed import Odd, typed, types_of

CHUNK_ROWS = 50_000
STDIN = Path("-")
_BLOCK_BYTES = 4 * 2**20
_FORMATS = "ndjson, csv, parquet, arrow"


class FileUnreadable(Rejected):
    """The file is none that can be pushed."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """So many events, in the file's order: NDJSON lines as they stand, or a table's rows.

    `odd` are rows of the table that are sent as they are here.
    """

    rows: int
    lines: list[bytes] | None = None
    table: pl.DataFrame | None = None
    odd: Odd = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Source:
    """A file and what is known of it; `rows` is None where only reading it would tell.

    `types` are those of a CSV's columns that are no text.
    """

    file: Path
    rows: int | None
    is_table: bool
    types: Mapping[str, pl.DataType] = field(default_factory=dict)

    def chunks(self) -> Iterator[Chunk]:
        """All events, `CHUNK_ROWS` at a time, the last chunk what is left.

        Raises:
            FileUnreadable: it ends early, or is damaged; chunks before were good.
        """
        if not self.is_table:
            return _lines(self.file)
        tables = _tables(_scan(self.file))
        return map(self._typed, tables) if self.file.suffix.lower() == ".csv" else tables

    def _typed(self, chunk: Chunk) -> Chunk:
        assert chunk.table is not None
        table, odd = typed(chunk.table, self.types)
        return Chunk(chunk.rows, table=table, odd=odd)


def open_source(file: Path, contracts: Sequence[type[msgspec.Struct]]) -> Source:
    """Look at a file without reading it.

    Args:
        contracts: of its events; they say which columns of a CSV are numbers or booleans.

    Raises:
        FileUnreadable: it is missing, or of no known format.
    """
    if file == STDIN:
        return Source(file, None, is_table=False)
    if not file.is_file():
        raise FileUnreadable(f"there is no file {file}; check the path")
    if file.suffix.lower() in (".json", ".ndjson", ".jsonl"):
        return Source(file, None, is_table=False)
    scanned = _scan(file)
    try:
        if file.suffix.lower() == ".csv":  # counting its rows is reading it
            return Source(file, None, is_table=True, types=types_of(contracts))
        return Source(file, scanned.select(pl.len()).collect().item(), is_table=True)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise FileUnreadable(f"{file} cannot be read: {error}") from error


def _scan(file: Path) -> pl.LazyFrame:
    match file.suffix.lower():
        case ".csv":
            return pl.scan_csv(file, infer_schema=False)
        case ".parquet":
            return pl.scan_parquet(file, glob=False)
        case ".arrow" | ".ipc" | ".feather":
            return pl.scan_ipc(file, glob=False) if _is_ipc_file(file) else pl.read_ipc_stream(file).lazy()
        case other:
            raise FileUnreadable(f"{file}: {other or 'no ending'} is none of {_FORMATS}")


def _is_ipc_file(file: Path) -> bool:
    """Whether it is Arrow's file format; the streaming format has no such mark at its beginning."""
    with file.open("rb") as start:
        return start.read(6) == b"ARROW1"


def _tables(scanned: pl.LazyFrame) -> Iterator[Chunk]:
    try:
        yield from chunks_of(scanned.collect_batches(chunk_size=CHUNK_ROWS, maintain_order=True))
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise FileUnreadable(f"the file cannot be read further: {error}") from error


def chunks_of(tables: Iterable[pl.DataFrame]) -> Iterator[Chunk]:
    """Tables come in whatever sizes their reader likes: chunks are cut from them."""
    waiting: list[pl.DataFrame] = []
    for table in tables:
        waiting.append(table)
        while sum(t.height for t in waiting) >= CHUNK_ROWS:
            whole = pl.concat(waiting)
            yield Chunk(CHUNK_ROWS, table=whole[:CHUNK_ROWS])
            waiting = [whole[CHUNK_ROWS:]]
    rest = pl.concat(waiting) if waiting else None
    if rest is not None and rest.height:
        yield Chunk(rest.height, table=rest)


def _lines(file: Path) -> Iterator[Chunk]:
    waiting: list[bytes] = []
    with _opened(file) as stream:
        left = b""
        while block := stream.read(_BLOCK_BYTES):
            whole, mark, left_of_block = (left + block).rpartition(b"\n")
            left = left_of_block
            if mark:
                waiting += [line for line in whole.splitlines() if line.strip()]
            while len(waiting) >= CHUNK_ROWS:
                yield Chunk(CHUNK_ROWS, lines=waiting[:CHUNK_ROWS])
                del waiting[:CHUNK_ROWS]
        if left.strip():
            waiting.append(left.rstrip(b"\r"))
    while waiting:
        own, waiting = waiting[:CHUNK_ROWS], waiting[CHUNK_ROWS:]
        yield Chunk(len(own), lines=own)


def _opened(file: Path) -> BinaryIO:
    try:
        return sys.stdin.buffer if file == STDIN else file.open("rb")
    except OSError as error:
        raise FileUnreadable(f"{file} cannot be read: {error}") from error


@dataclass(frozen=True, slots=True)
class Tables:
    """Frames instead of a file; `rows` is None where they are not there yet."""

    tables: Iterable[pl.DataFrame]
    rows: int | None
    file: Path = STDIN

    def chunks(self) -> Iterator[Chunk]:
        """All events, `CHUNK_ROWS` at a time."""
        return chunks_of(self.tables)
