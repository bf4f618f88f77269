"""Decoding: from records' bytes to a frame of rows, the bad ones set apart and the good ones kept.

A record is JSON of the source's contract, or, by its content type, an Arrow IPC stream of many rows with
the contract's columns. A record with a watermark header and no value is a heartbeat: no event, but a
producer's word that nothing earlier follows.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import msgspec
import polars as pl

from schemas.dead_letter import Reason
from schemas.envelope import ARROW_STREAM, JSON
from schemas.topics import CONTENT_TYPE_HEADER, WATERMARK_HEADER
from streams.columns import Column, columns_of
from streams.transport.frame import Frame, Headers


@dataclass(frozen=True, slots=True)
class Refused:
    """A record, or a row of an Arrow record, that cannot be an event; `value` is a row's own bytes."""

    frame: Frame
    index: int
    reason: Reason
    rule: str
    detail: str
    row: int = 0
    value: bytes | None = None


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
    """Decodes records of one contract."""

    def __init__(self, contract: type[msgspec.Struct]) -> None:
        self.contract = contract
        self.columns = columns_of(contract)
        self._json = msgspec.json.Decoder(contract)
        names = [c.name for c in self.columns]
        getter = attrgetter(*names)
        self._fields: Callable[[Any], tuple] = getter if len(names) > 1 else lambda o: (getter(o),)
        self._empty = pl.DataFrame(schema=self._schema())

    def _schema(self) -> dict[str, Any]:
        own: dict[str, Any] = {c.name: c.dtype for c in self.columns}
        return own | {"_frame": pl.Int32, "_index": pl.Int32, "_row": pl.Int32}

    def decode(self, frames: Sequence[Frame]) -> Decoded:
        """Decode all records of these frames; never raises for what a record holds."""
        decoded = Decoded(self._empty)
        values: list[bytes] = []
        frame_of: list[pl.Series] = []
        index_of: list[pl.Series] = []
        tables: list[pl.DataFrame] = []
        for number, frame in enumerate(frames):
            plain = self._set_apart(frame, number, decoded, tables)
            values += frame.values if plain is None else [frame.values[i] for i in plain]  # type: ignore[misc]
            indices = range(len(frame)) if plain is None else plain
            index_of.append(pl.Series("_index", indices, dtype=pl.Int32))
            frame_of.append(pl.repeat(number, len(indices), dtype=pl.Int32, eager=True))
        if values:
            tables.insert(
                0, self._rows_of_json(frames, values, pl.concat(frame_of), pl.concat(index_of), decoded)
            )
        if tables:
            decoded.rows = pl.concat(tables)
        decoded.rows = self._finite(frames, decoded.rows, decoded)
        decoded.events = decoded.rows.height + len(decoded.refused)
        return decoded

    def _set_apart(
        self, frame: Frame, number: int, decoded: Decoded, tables: list[pl.DataFrame]
    ) -> list[int] | None:
        """Handle what is no plain JSON record; None when all of the frame is."""
        if not frame.headers and None not in frame.values:
            return None
        plain: list[int] = []
        for index, value in enumerate(frame.values):
            headers = dict(frame.headers.get(index, ()))
            content_type = headers.get(CONTENT_TYPE_HEADER, JSON.encode()).split(b";")[0].strip()
            if not value:
                self._heartbeat(frame, index, headers, decoded)
            elif content_type == JSON.encode():
                plain.append(index)
            elif content_type == ARROW_STREAM.encode():
                tables.append(self._rows_of_arrow(frame, number, index, value, decoded))
            else:
                said = content_type.decode("utf-8", "replace")
                detail = f"content type {said!r} is not taken; send {JSON} or {ARROW_STREAM}"
                decoded.refused.append(Refused(frame, index, "unknown_schema", CONTENT_TYPE_HEADER, detail))
        return plain

    def _heartbeat(self, frame: Frame, index: int, headers: dict[str, bytes], decoded: Decoded) -> None:
        said = headers.get(WATERMARK_HEADER)
        try:
            if said is None:
                raise ValueError("a record without a value is no event")
            watermark_ms = int(said)
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
        structs: list[msgspec.Struct] = []
        bad: list[int] = []
        records = iter(values)
        while True:
            try:
                structs.extend(map(self._json.decode, records))
            except (msgspec.MsgspecError, UnicodeError, RecursionError, ValueError) as error:
                # The iterator already stands behind the bad record: note it and go on with the rest.
                position = len(structs) + len(bad)
                bad.append(position)
                reason, rule = _why(str(error))
                decoded.refused.append(
                    Refused(frames[frame_of[position]], index_of[position], reason, rule, str(error))
                )
            else:
                break
        if bad:
            good = pl.int_range(len(values), eager=True).is_in(bad).not_()
            frame_of, index_of = frame_of.filter(good), index_of.filter(good)
        table = self._table(structs, frames, frame_of, index_of, decoded)
        return table.with_columns(_row=pl.lit(0, dtype=pl.Int32))

    def _table(
        self,
        structs: list[msgspec.Struct],
        frames: Sequence[Frame],
        frame_of: pl.Series,
        index_of: pl.Series,
        decoded: Decoded,
    ) -> pl.DataFrame:
        if not structs:
            return self._empty.drop("_row")
        columns = list(zip(*map(self._fields, structs), strict=True))
        try:
            series = [
                pl.Series(c.name, v, dtype=c.dtype, strict=True)
                for c, v in zip(self.columns, columns, strict=True)
            ]
        except (OverflowError, TypeError, UnicodeError, pl.exceptions.PolarsError):
            return self._table_without_misfits(structs, columns, frames, frame_of, index_of, decoded)
        return pl.DataFrame([*series, frame_of.alias("_frame"), index_of.alias("_index")])

    def _table_without_misfits(
        self,
        structs: list[msgspec.Struct],
        columns: list[tuple],
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
        kept = [s for i, s in enumerate(structs) if i not in misfits]
        good = pl.int_range(len(structs), eager=True).is_in(list(misfits)).not_()
        return self._table(kept, frames, frame_of.filter(good), index_of.filter(good), decoded)

    def _rows_of_arrow(
        self, frame: Frame, number: int, index: int, value: bytes, decoded: Decoded
    ) -> pl.DataFrame:
        try:
            table = pl.read_ipc_stream(io.BytesIO(value))
        except Exception as error:  # the reader raises what its Rust parts raise
            detail = f"no Arrow IPC stream: {error}"
            decoded.refused.append(Refused(frame, index, "malformed", "value", detail))
            return self._empty
        names = [c.name for c in self.columns]
        if set(table.columns) != set(names):
            odd = sorted(set(table.columns) ^ set(names))
            detail = f"columns differ from the contract {self.contract.__name__} in {', '.join(odd)}"
            decoded.refused.append(Refused(frame, index, "unknown_schema", "columns", detail))
            return self._empty
        try:
            table = table.select(pl.col(c.name).cast(c.dtype, strict=True) for c in self.columns)
        except pl.exceptions.PolarsError as error:
            detail = f"a column cannot be cast to the contract's type: {error}"
            decoded.refused.append(Refused(frame, index, "unknown_schema", "columns", detail))
            return self._empty
        table = table.with_columns(
            _frame=pl.lit(number, dtype=pl.Int32),
            _index=pl.lit(index, dtype=pl.Int32),
            _row=pl.int_range(pl.len(), dtype=pl.Int32),
        )
        required = [c for c in self.columns if not c.nullable]
        for column in required:
            absent = pl.col(column.name).is_null()
            table = _refuse(
                [frame],
                table.with_columns(_frame=pl.lit(0, dtype=pl.Int32)),
                absent,
                "missing",
                column.name,
                f"{column.name} is null",
                decoded,
            )
        for column in self.columns:
            table = _refuse(
                [frame],
                table,
                ~column.valid(),
                "out_of_range",
                column.name,
                f"{column.name} is outside the contract's bounds",
                decoded,
            )
        return table.with_columns(_frame=pl.lit(number, dtype=pl.Int32))

    def _finite(self, frames: Sequence[Frame], rows: pl.DataFrame, decoded: Decoded) -> pl.DataFrame:
        """Refuse infinities, which JSON can write as 1e999 and no rule expects."""
        floats = [c.name for c in self.columns if c.dtype == pl.Float64]
        if not floats or rows.height == 0:
            return rows
        infinite = pl.any_horizontal(pl.col(floats).is_finite().not_().fill_null(value=False))
        return _refuse(
            frames, rows, infinite, "out_of_range", "finite", "a number is infinite or NaN", decoded
        )


def _refuse(
    frames: Sequence[Frame],
    rows: pl.DataFrame,
    bad: pl.Expr,
    reason: Reason,
    rule: str,
    detail: str,
    decoded: Decoded,
) -> pl.DataFrame:
    """Rows without the bad ones, which are noted."""
    mask = rows.select(bad.alias("bad")).to_series()
    if not mask.any():
        return rows
    decoded.refused += refuse_rows(frames, rows.filter(mask), reason, rule, detail)
    return rows.filter(~mask)


def refuse_rows(
    frames: Sequence[Frame], rows: pl.DataFrame, reason: Reason, rule: str, detail: str
) -> list[Refused]:
    """One refusal a row; a row of an Arrow record carries its own bytes."""
    refused = []
    own = [c for c in rows.columns if not c.startswith("_")]
    for position, (number, index, row) in enumerate(rows.select("_frame", "_index", "_row").iter_rows()):
        frame = frames[number]
        value = None
        if _is_arrow(frame.headers.get(index, ())):
            sink = io.BytesIO()
            rows[position].select(own).write_ipc_stream(sink)
            value = sink.getvalue()
        refused.append(Refused(frame, index, reason, rule, detail, row, value))
    return refused


def _is_arrow(headers: Headers) -> bool:
    return dict(headers).get(CONTENT_TYPE_HEADER, b"").startswith(ARROW_STREAM.encode())


def _why(message: str) -> tuple[Reason, str]:
    """Reason and field of a decoding error, read from msgspec's message."""
    path = message.rpartition(" - at `$.")[2].rstrip("`") if " - at `$." in message else ""
    if "missing required field" in message:
        return "missing", message.split("`")[1]
    if "unknown field" in message:
        return "malformed", message.split("`")[1]
    if "got `null`" in message:
        return "missing", path
    if any(sign in message for sign in (" >= ", " <= ", "length", "out of range")):
        return "out_of_range", path or "value"
    return "malformed", path or "value"


def _fits(value: Any, column: Column) -> bool:
    try:
        pl.Series([value], dtype=column.dtype, strict=True)
    except (OverflowError, TypeError, UnicodeError, pl.exceptions.PolarsError):
        return False
    return True
