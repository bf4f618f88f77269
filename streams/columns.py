"""A contract's fields as columns: their Polars types, and which values they may hold."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import msgspec
import polars as pl
from msgspec.inspect import (
    BoolType,
    FloatType,
    IntType,
    Metadata,
    NoneType,
    StrType,
    StructType,
    Type,
    UnionType,
    type_info,
)

from schemas.errors import InvalidConfiguration


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """One field: `low` and `high` bound a number's value or a text's length, both ends included."""

    name: str
    dtype: pl.DataType
    nullable: bool
    low: float | None = None
    high: float | None = None

    def valid(self) -> pl.Expr:
        """True where a value keeps the contract; a null, where it may be one."""
        value = pl.col(self.name)
        checks = []
        if self.dtype == pl.Float64:
            checks.append(value.is_finite())
        measured = value.str.len_chars() if self.dtype == pl.String else value
        if self.low is not None:
            checks.append(measured >= self.low)
        if self.high is not None:
            checks.append(measured <= self.high)
        # A null leaves each check null; whether it may stand is asked apart, for its own reason.
        return pl.all_horizontal(checks).fill_null(value=True) if checks else pl.lit(value=True)


_DTYPES: dict[type[Type], pl.DataType] = {
    IntType: pl.Int64(),
    FloatType: pl.Float64(),
    StrType: pl.String(),
    BoolType: pl.Boolean(),
}


@lru_cache(maxsize=64)
def columns_of(contract: type[msgspec.Struct]) -> tuple[Column, ...]:
    """Columns of a flat contract, in its fields' order.

    Raises:
        InvalidConfiguration: a field is neither int, float, str nor bool, nor one of them or None.
    """
    info = type_info(contract)
    assert isinstance(info, StructType)
    return tuple(_column(contract, f.encode_name, f.type) for f in info.fields)


def _column(contract: type[msgspec.Struct], name: str, kind: Type) -> Column:
    kind = _bare(kind)
    nullable = False
    if isinstance(kind, UnionType):
        rest = [_bare(t) for t in kind.types if not isinstance(t, NoneType)]
        nullable = len(rest) < len(kind.types)
        kind = rest[0] if len(rest) == 1 else kind
    dtype = _DTYPES.get(type(kind))
    if dtype is None:
        raise InvalidConfiguration(
            f"field {name!r} of {contract.__name__} is no flat column; "
            "use int, float, str or bool, or one of them and None"
        )
    return Column(name=name, dtype=dtype, nullable=nullable, **_bounds(kind))


def _bare(kind: Type) -> Type:
    return _bare(kind.type) if isinstance(kind, Metadata) else kind


def _bounds(kind: Any) -> dict[str, float | None]:
    if isinstance(kind, StrType):
        return {"low": kind.min_length, "high": kind.max_length}
    if isinstance(kind, IntType | FloatType):
        return {"low": kind.ge, "high": kind.le}
    return {}


def schema_of(contract: type[msgspec.Struct]) -> dict[str, pl.DataType]:
    """Polars schema of a contract."""
    return {c.name: c.dtype for c in columns_of(contract)}
