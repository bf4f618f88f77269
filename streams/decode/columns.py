"""A contract's fields as columns: their Polars types, and which values they may hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
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
    """One field of a contract.

    `name` is the field's name in a record, `attribute` the struct's. `limits` are the contract's own bounds,
    by msgspec's names (`ge`, `max_length`, …). A column that is not `required` has a `default`.
    """

    name: str
    attribute: str
    dtype: pl.DataType
    nullable: bool
    required: bool
    default: Any = None
    limits: tuple[tuple[str, Any], ...] = ()

    def valid(self) -> pl.Expr:
        """True where a value keeps the contract. A null passes: whether it may stand has its own reason."""
        value = pl.col(self.name)
        checks = [_CHECKS[limit](value, bound) for limit, bound in self.limits]
        if self.dtype == pl.Float64:
            checks.append(value.is_finite())
        return pl.all_horizontal(checks).fill_null(value=True) if checks else pl.lit(value=True)

    def surely_valid(self, values: pl.Series) -> bool:
        """Whether all of these keep the contract, as far as their ends tell."""
        if self.dtype == pl.Float64 and not math.isfinite(values.sum()):  # of one that is not no sum is
            return False
        measured = values.str.len_bytes() if self.dtype == pl.String else values
        least, most = measured.min(), measured.max()
        if least is None or most is None:
            return True
        return all(limit in _BY_ENDS and _BY_ENDS[limit](least, most, bound) for limit, bound in self.limits)


_CHECKS: dict[str, Any] = {
    "ge": lambda value, bound: value >= bound,
    "gt": lambda value, bound: value > bound,
    "le": lambda value, bound: value <= bound,
    "lt": lambda value, bound: value < bound,
    "multiple_of": lambda value, bound: value % bound == 0,
    "min_length": lambda value, bound: value.str.len_chars() >= bound,
    "max_length": lambda value, bound: value.str.len_chars() <= bound,
    "pattern": lambda value, bound: value.str.contains(bound),
}

# The same of all values by the least and the most of them; of a character there are one to four bytes.
_BY_ENDS: dict[str, Any] = {
    "ge": lambda least, _, bound: least >= bound,
    "gt": lambda least, _, bound: least > bound,
    "le": lambda _, most, bound: most <= bound,
    "lt": lambda _, most, bound: most < bound,
    "min_length": lambda least, _, bound: least > 4 * (bound - 1),
    "max_length": lambda _, most, bound: most <= bound,
}

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
    return tuple(_column(contract, field) for field in info.fields)


def takes_unknown_fields(contract: type[msgspec.Struct]) -> bool:
    """Whether a record may have fields that the contract does not name."""
    return not contract.__struct_config__.forbid_unknown_fields


def _column(contract: type[msgspec.Struct], field: msgspec.inspect.Field) -> Column:
    kind = _bare(field.type)
    nullable = False
    if isinstance(kind, UnionType):
        rest = [_bare(t) for t in kind.types if not isinstance(t, NoneType)]
        nullable = len(rest) < len(kind.types)
        kind = rest[0] if len(rest) == 1 else kind
    dtype = _DTYPES.get(type(kind))
    if dtype is None:
        raise InvalidConfiguration(
            f"field {field.encode_name!r} of {contract.__name__} is no flat column; "
            "use int, float, str or bool, or one of them and None"
        )
    limits = tuple(
        (limit, getattr(kind, limit)) for limit in _CHECKS if getattr(kind, limit, None) is not None
    )
    return Column(
        name=field.encode_name,
        attribute=field.name,
        dtype=dtype,
        nullable=nullable,
        required=field.required,
        default=None if field.required else field.default,
        limits=limits,
    )


def _bare(kind: Type) -> Type:
    return _bare(kind.type) if isinstance(kind, Metadata) else kind


# What msgspec raises of a record.
_REFUSED = (msgspec.MsgspecError, UnicodeError, RecursionError, ValueError)

Take = Callable[[Iterator[msgspec.Struct], int, list[list[Any]]], tuple[int, Exception | None]]
"""Puts structs into columns from a position on; gives the position behind the last one, and what the iterator
raised instead of the next, if it did. The iterator can then be taken up again."""


@lru_cache(maxsize=64)
def into_columns(contract: type[msgspec.Struct]) -> Take:
    """The loop that parts a contract's structs into columns, written for its fields.

    A struct is taken apart while it is still in the processor's cache, and is gone before the next one comes:
    that costs half of a list of structs read once a field, and leaves the cyclic garbage collector nothing
    to walk. The columns must be long enough.
    """
    fields = [column.attribute for column in columns_of(contract)]
    own = [f"column_{number}" for number in range(len(fields))]
    lines = [
        "def take(structs, at, columns):",
        f"    {', '.join(own)}, = columns",
        "    try:",
        "        for struct in structs:",
        *(f"            {name}[at] = struct.{field}" for name, field in zip(own, fields, strict=True)),
        "            at += 1",
        "    except REFUSED as error:",
        "        return at, error",
        "    return at, None",
    ]
    written: dict[str, Any] = {"REFUSED": _REFUSED}
    exec("\n".join(lines), written)  # field names are identifiers: nothing of a record gets in here
    return written["take"]


def schema_of(contract: type[msgspec.Struct]) -> dict[str, pl.DataType]:
    """Polars schema of a contract."""
    return {c.name: c.dtype for c in columns_of(contract)}
