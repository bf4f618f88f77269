"""Decoding: from records' bytes to a frame of rows, the bad ones set apart and the good ones kept.

A record is JSON of the source's contract; or, by its content type or the source's own word, Avro in
Confluent's framing; or, by its content type, an Arrow IPC stream of many rows with the contract's columns.
A record with a watermark header and no value is a heartbeat: no event, but a producer's word that nothing
earlier follows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import polars as pl

from schemas.dead_letter import Reason
from schemas.envelope import ARROW_STREAM, CONFLUENT_AVRO, JSON
from schemas.topics import CONTENT_TYPE_HEADER, WATERMARK_HEADER
from streams.decode.arrow import OVERFLOW, NotRows, conform, read_table
from streams.decode.avro import AvroReader, Bodies, Writers
from streams.decode.columns import Column, columns_of, into_columns, takes_unknown_fields
from streams.decode.plain import PlainRecords
from streams.decode.refused import Refused, content_type_of, refuse_rows
from streams.keep import drop
from streams.transport.frame import Frame

MAX_RECORD_BYTES = 8 * 2**20
"""Most bytes of a record's value, once decompressed."""
_FARTHEST_MS = 2**53
# So many records become columns at a time: their values are still in the processor's cache when they do.
_AT_A_TIME = 4096


_Arrow = tuple[int, int, pl.DataFrame]
"""An Arrow record: its frame's number, its index there, and its table as it came."""


@dataclass(slots=True)
class Decoded:
    """Rows of one source.

    `rows` has the contract's columns and `_frame` (index into the decoded frames), `_index` (of the
    record in its frame) and `_row`. `heartbeats` are epoch ms by partition; `events` counts rows and
    refused alike, never heartbeats.
    """

    rows: pl.DataFrame
    refused: list[Refused] = field(default_factory=list)
    heartbeats: dict[int, int] = field(default_factory=dict)
    events: int = 0


class Decoder:
    """Decodes records of one contract.

    Args:
        contract: a flat struct.
        writers: finds the schemas that Avro records were written with.
        unmarked: content type of a record that names none.
    """

    def __init__(
        self,
        contract: type[msgspec.Struct],
        *,
        writers: Writers | None = None,
        unmarked: str = JSON,
    ) -> None:
        self.contract = contract
        self.columns = columns_of(contract)
        self._unmarked = unmarked
        self._avro = AvroReader(self.columns, writers, unknown_columns=takes_unknown_fields(contract))
        self._json = msgspec.json.Decoder(contract)
        self._take = into_columns(contract)
        self._plain = PlainRecords(self.columns)
        self._empty = pl.DataFrame(schema=self._schema())

    def _schema(self) -> dict[str, Any]:
        own: dict[str, Any] = {c.name: c.dtype for c in self.columns}
        return own | {"_frame": pl.Int32, "_index": pl.Int32, "_row": pl.Int32}

    def decode(self, frames: Sequence[Frame]) -> Decoded:
        """Decode all records of these frames; never raises for what a record holds.

        Raises:
            Retryable: the schema of an Avro record cannot be asked for now.
        """
        decoded = Decoded(self._empty)
        values: list[pl.Series] = []
        frame_of: list[np.ndarray] = []
        index_of: list[np.ndarray] = []
        tables: list[pl.DataFrame] = []
        arrow: list[_Arrow] = []
        avro = Bodies()
        for number, frame in enumerate(frames):
            plain = self._set_apart(frame, number, decoded, arrow, avro)
            indices = np.arange(len(frame), dtype=np.int32) if plain is None else np.array(plain, np.int32)
            if len(indices):
                values.append(frame.values if plain is None else frame.values.gather(indices))
            index_of.append(indices)
            frame_of.append(np.full(len(indices), number, dtype=np.int32))
        mixed = [bool(arrow), bool(avro), bool(values)].count(True) > 1
        if arrow:
            tables += self._rows_of_arrow(frames, arrow, decoded)
        if avro:
            tables += self._rows_of_avro(frames, avro, decoded)
        if tables:
            tables = [self._keeping_the_contract(frames, pl.concat(tables), decoded)]
        if values:
            frame, index = pl.Series(np.concatenate(frame_of)), pl.Series(np.concatenate(index_of))
            json = pl.concat(values)
            if (read := self._plain.read(json)) is not None:
                rows, alike = read
                own = [frame.filter(alike).alias("_frame"), index.filter(alike).alias("_index")]
                tables.append(rows.hstack(own).with_columns(_row=pl.lit(0, dtype=pl.Int32)))
                others = (~alike).arg_true()
                json, frame, index = json.gather(others), frame.gather(others), index.gather(others)
                mixed |= bool(json.len())
            for at in range(0, json.len(), _AT_A_TIME):
                part = slice(at, at + _AT_A_TIME)
                own = json[part].to_list()
                tables.append(self._rows_of_json(frames, own, frame[part], index[part], decoded))
        if tables:
            decoded.rows = pl.concat(tables, rechunk=True)
        if mixed:
            decoded.rows = decoded.rows.sort("_frame", "_index", "_row")
        decoded.events = decoded.rows.height + len(decoded.refused)
        return decoded

    def _set_apart(
        self, frame: Frame, number: int, decoded: Decoded, arrow: list[_Arrow], avro: Bodies
    ) -> list[int] | None:
        """Handle what is no plain JSON record; None when all of the frame is."""
        if not frame.headers and not frame.values.null_count() and _longest(frame) <= MAX_RECORD_BYTES:
            if self._unmarked == JSON:
                return None
            if (frame.values.bin.size() > 0).all():
                avro.add(number, range(len(frame)), frame.values.to_list())
                return []
        plain: list[int] = []
        for index, value in enumerate(frame.values.to_list()):
            headers = dict(frame.headers.get(index, ()))
            content_type = content_type_of(headers, self._unmarked)
            if index in frame.unread:
                decoded.refused.append(Refused(frame, index, "too_large", "batch", frame.unread[index]))
            elif not value:
                self._heartbeat(frame, index, headers, decoded)
            elif len(value) > MAX_RECORD_BYTES:
                detail = f"{len(value)} bytes; at most {MAX_RECORD_BYTES} are taken"
                decoded.refused.append(Refused(frame, index, "too_large", "value", detail))
            elif content_type == JSON.encode():
                plain.append(index)
            elif content_type == ARROW_STREAM.encode():
                try:
                    arrow.append((number, index, frame.table(index, read_table)))
                except NotRows as why:
                    decoded.refused.append(Refused(frame, index, why.reason, why.rule, why.detail))
            elif content_type == CONFLUENT_AVRO.encode():
                avro.add(number, [index], [value])
            else:
                said = content_type.decode("utf-8", "replace")
                detail = (
                    f"content type {said!r} is not taken; send {JSON}, {CONFLUENT_AVRO} or {ARROW_STREAM}"
                )
                decoded.refused.append(Refused(frame, index, "unknown_schema", CONTENT_TYPE_HEADER, detail))
        return plain

    def _heartbeat(
        self, frame: Frame, index: int, headers: Mapping[str, bytes | None], decoded: Decoded
    ) -> None:
        said = headers.get(WATERMARK_HEADER)
        try:
            if said is None:
                raise ValueError("a record without a value is no event")
            watermark_ms = int(said)
            if abs(watermark_ms) > _FARTHEST_MS:
                raise ValueError("the watermark is no time of this world")
        except ValueError as error:
            detail = f"{error}; a heartbeat needs the header {WATERMARK_HEADER} with epoch milliseconds"
            decoded.refused.append(Refused(frame, index, "malformed", "value", detail))
            return
        known = decoded.heartbeats.get(frame.partition)
        decoded.heartbeats[frame.partition] = watermark_ms if known is None else max(known, watermark_ms)

    def _rows_of_json(
        self,
        frames: Sequence[Frame],
        values: list[bytes],
        frame_of: pl.Series,
        index_of: pl.Series,
        decoded: Decoded,
    ) -> pl.DataFrame:
        columns: list[list[Any]] = [[None] * len(values) for _ in self.columns]
        bad: list[int] = []
        good = 0
        records = map(self._json.decode, values)
        while True:
            good, error = self._take(records, good, columns)
            if error is None:
                break
            # The iterator already stands behind the bad record: note it and go on with the rest.
            position = good + len(bad)
            bad.append(position)
            reason, rule = _why(str(error))
            decoded.refused.append(
                Refused(frames[frame_of[position]], index_of[position], reason, rule, str(error))
            )
        if bad:
            for column in columns:
                del column[good:]
            kept = pl.int_range(len(values), eager=True).is_in(bad).not_()
            frame_of, index_of = frame_of.filter(kept), index_of.filter(kept)
        table = self._table(columns, frames, frame_of, index_of, decoded)
        return table.with_columns(_row=pl.lit(0, dtype=pl.Int32))

    def _table(
        self,
        columns: list[list[Any]],
        frames: Sequence[Frame],
        frame_of: pl.Series,
        index_of: pl.Series,
        decoded: Decoded,
    ) -> pl.DataFrame:
        if frame_of.is_empty():
            return self._empty.drop("_row")
        try:
            series = [
                pl.Series(c.name, v, dtype=c.dtype, strict=True)
                for c, v in zip(self.columns, columns, strict=True)
            ]
        except (OverflowError, TypeError, UnicodeError, pl.exceptions.PolarsError):
            return self._table_without_misfits(columns, frames, frame_of, index_of, decoded)
        return pl.DataFrame([*series, frame_of.alias("_frame"), index_of.alias("_index")])

    def _table_without_misfits(
        self,
        columns: list[list[Any]],
        frames: Sequence[Frame],
        frame_of: pl.Series,
        index_of: pl.Series,
        decoded: Decoded,
    ) -> pl.DataFrame:
        """The rare frame with a value that JSON and the contract allow but no column can hold."""
        misfits: dict[int, Column] = {}
        for column, values in zip(self.columns, columns, strict=True):
            for position, value in enumerate(values):
                if position not in misfits and not _fits(value, column):
                    misfits[position] = column
        if not misfits:
            raise AssertionError(
                f"rows of {self.contract.__name__} fit their columns one by one, not together"
            )
        for position, column in misfits.items():
            detail = f"{column.name} does not fit a column of {column.dtype}"
            decoded.refused.append(
                Refused(frames[frame_of[position]], index_of[position], "out_of_range", column.name, detail)
            )
        kept = [[v for i, v in enumerate(values) if i not in misfits] for values in columns]
        good = pl.int_range(len(frame_of), eager=True).is_in(list(misfits)).not_()
        return self._table(kept, frames, frame_of.filter(good), index_of.filter(good), decoded)

    def _rows_of_arrow(
        self, frames: Sequence[Frame], records: list[_Arrow], decoded: Decoded
    ) -> list[pl.DataFrame]:
        """Rows of these records: those of the same columns as one table, since each table has its price."""
        alike: dict[tuple[Any, ...], list[_Arrow]] = {}
        for record in records:
            alike.setdefault(tuple(record[2].schema.items()), []).append(record)
        tables: list[pl.DataFrame] = []
        for group in alike.values():
            try:
                tables.append(self._conformed(group))
            except NotRows:  # for all of them, or for what one of them holds
                for record in group:
                    try:
                        tables.append(self._conformed([record]))
                    except NotRows as why:
                        frame, index, _ = record
                        decoded.refused.append(
                            Refused(frames[frame], index, why.reason, why.rule, why.detail)
                        )
        return (
            tables if len(alike) < 2 or not tables else [pl.concat(tables).sort("_frame", "_index", "_row")]
        )

    def _conformed(self, records: list[_Arrow]) -> pl.DataFrame:
        heights = [table.height for _, _, table in records]
        whole = pl.concat([table for _, _, table in records], rechunk=True)
        rows = conform(whole, self.columns, unknown_columns=takes_unknown_fields(self.contract))
        first = np.cumsum(heights) - heights
        return rows.with_columns(
            pl.Series("_frame", np.repeat(np.array([n for n, _, _ in records], np.int32), heights)),
            pl.Series("_index", np.repeat(np.array([i for _, i, _ in records], np.int32), heights)),
            pl.Series(
                "_row", np.arange(rows.height, dtype=np.int32) - np.repeat(first, heights).astype(np.int32)
            ),
        )

    def _rows_of_avro(self, frames: Sequence[Frame], bodies: Bodies, decoded: Decoded) -> list[pl.DataFrame]:
        tables, misfits = self._avro.read(bodies)
        decoded.refused += [
            Refused(frames[bad.frame], bad.index, bad.reason, bad.rule, bad.detail) for bad in misfits
        ]
        # Of several schemas, or with bad ones among them, rows come in another order than their records.
        return tables if len(tables) < 2 else [pl.concat(tables).sort("_frame", "_index")]

    def _keeping_the_contract(
        self, frames: Sequence[Frame], table: pl.DataFrame, decoded: Decoded
    ) -> pl.DataFrame:
        """Rows of Arrow and Avro records that hold what JSON's decoder would have taken."""
        for reason, rule, detail, bad in self._breaches(table):
            mask = table.select(bad.alias("bad")).to_series()
            decoded.refused += refuse_rows(frames, table.filter(mask), reason, rule, detail)
            table = table.filter(~mask)
        return drop(table, (OVERFLOW,))

    def _breaches(self, table: pl.DataFrame) -> list[tuple[Reason, str, str, pl.Expr]]:
        """What of the contract the rows break, as reason, rule, detail and the rows' condition."""
        breaches: list[tuple[Reason, str, str, pl.Expr]] = []
        overflow = table.get_column(OVERFLOW)
        some = [] if overflow.null_count() == table.height else overflow.drop_nulls().unique().sort()
        for name in some:
            detail = f"{name} does not fit 64 bits"
            breaches.append(("out_of_range", name, detail, (pl.col(OVERFLOW) == name).fill_null(value=False)))
        for column in self.columns:
            if not column.nullable and table.get_column(column.name).null_count():
                detail = f"{column.name} is null"
                breaches.append(("missing", column.name, detail, pl.col(column.name).is_null()))
        if all(column.surely_valid(table.get_column(column.name)) for column in self.columns):
            return breaches
        broken = table.select((~c.valid()).any().alias(c.name) for c in self.columns)
        for column in self.columns:
            if broken.get_column(column.name).any():
                detail = f"{column.name} is outside the contract's bounds"
                breaches.append(("out_of_range", column.name, detail, ~column.valid()))
        return breaches


def _longest(frame: Frame) -> int:
    """Length of the longest value; the frame's own where that is small already."""
    if frame.size_bytes <= MAX_RECORD_BYTES:
        return frame.size_bytes
    return int(frame.values.bin.size().max() or 0)  # type: ignore[arg-type]


def _why(message: str) -> tuple[Reason, str]:
    """Reason and field of a decoding error, read from msgspec's message."""
    said, _, path = message.rpartition(" - at `$.")
    path = path.rstrip("`") if said else ""
    if "missing required field" in message:
        return "missing", message.split("`")[1]
    if "unknown field" in message:
        return "malformed", message.split("`")[1]
    if path and "got `null`" in message:
        return "missing", path
    if any(sign in message for sign in _BOUNDS):
        return "out_of_range", path or "value"
    return "malformed", path or "value"


_BOUNDS = (" >= ", " <= ", " > ", " < ", "length", "out of range", "multiple of", "matching regex")


def _fits(value: Any, column: Column) -> bool:
    try:
        pl.Series([value], dtype=column.dtype, strict=True)
    except (OverflowError, TypeError, UnicodeError, pl.exceptions.PolarsError):
        return False
    return True
