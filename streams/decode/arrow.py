"""Arrow records: many rows in one value, held to the same contract as a JSON record of one."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl
from polars.exceptions import PanicException

from schemas.dead_letter import Reason
from schemas.errors import Rejected
from streams.decode.arrow_walk import Damaged, check_lengths
from streams.decode.columns import Column

OVERFLOW = "_overflow"
# Whole numbers of these types may not fit 64 bits with a sign.
_WIDER = (pl.UInt64, pl.Int128, pl.UInt128)


class NotRows(Rejected):
    """The record as a whole is not the rows that it should be."""

    def __init__(self, reason: Reason, rule: str, detail: str) -> None:
        super().__init__(detail)
        self.reason: Reason = reason
        self.rule, self.detail = rule, detail


def read_table(value: bytes) -> pl.DataFrame:
    """The table of an Arrow IPC stream, as it came.

    Raises:
        NotRows: it is no whole Arrow stream.
    """
    try:
        check_lengths(value)
        return pl.read_ipc_stream(value)
    except Damaged as error:
        raise NotRows("malformed", "value", str(error)) from error
    except (Exception, PanicException) as error:  # the reader raises what its Rust parts raise
        raise NotRows("malformed", "value", f"no Arrow IPC stream: {_first_line(error)}") from error


def conform(table: pl.DataFrame, columns: Sequence[Column], *, unknown_columns: bool = False) -> pl.DataFrame:
    """A table of somebody else's in the contract's columns and types.

    A whole number that no 64 bits hold becomes null, and the column `_overflow` names the one that it was in.

    Args:
        unknown_columns: whether columns that the contract does not name may be there; they are left out.

    Raises:
        NotRows: its columns are not the contract's.
    """
    known = {c.name for c in columns}
    if not unknown_columns and (odd := [c for c in table.columns if c not in known]):
        raise NotRows("unknown_schema", odd[0], f"the contract has no column {odd[0]!r}")
    for column in columns:
        if column.name not in table.columns:
            if column.required:
                raise NotRows("missing", column.name, f"the column {column.name!r} is not there")
            table = table.with_columns(pl.lit(column.default, dtype=column.dtype).alias(column.name))
        elif not _holds(column, found := table.schema[column.name]):
            detail = f"column {column.name!r} holds {found}; the contract says {column.dtype}"
            raise NotRows("unknown_schema", column.name, detail)
    schema = table.schema
    integers = [c.name for c in columns if c.dtype == pl.Int64 and schema[c.name] in _WIDER]
    overflows = [
        pl.when(pl.col(c).is_not_null() & pl.col(c).cast(pl.Int64, strict=False).is_null()).then(pl.lit(c))
        for c in integers
    ]
    try:
        return table.select(
            *(
                pl.col(c.name) if schema[c.name] == c.dtype else pl.col(c.name).cast(c.dtype, strict=False)
                for c in columns
            ),
            pl.coalesce(pl.lit(None, dtype=pl.String), *overflows).alias(OVERFLOW),
        )
    except (pl.exceptions.PolarsError, PanicException) as error:
        raise NotRows("malformed", "value", f"the columns cannot be read: {_first_line(error)}") from error


def _holds(column: Column, found: pl.DataType) -> bool:
    """Whether values of that type are the contract's, as they would be in JSON."""
    if found == pl.Null:
        return True
    if column.dtype == pl.Int64:
        return found.is_integer()
    if column.dtype == pl.Float64:
        return found.is_float() or found.is_integer()
    if column.dtype == pl.String:
        return found in (pl.String, pl.Categorical, pl.Enum)
    return found == column.dtype


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0][:200]
