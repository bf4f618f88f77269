"""A CSV's text as its topic's contract has it, so that no value's type is guessed from the values beside it.

Guessing reads the whole file a second time, takes "00123" for a number, and one word in a column of numbers
makes text of them all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import msgspec
import polars as pl
from msgspec.inspect import (
    BoolType,
    FloatType,
    IntType,
    Metadata,
    NoneType,
    StructType,
    Type,
    UnionType,
    type_info,
)

_DTYPES: dict[type[Type], pl.DataType] = {
    IntType: pl.Int64(),
    FloatType: pl.Float64(),
    BoolType: pl.Boolean(),
}
_TRUE, _FALSE = ("true", "True", "TRUE"), ("false", "False", "FALSE")

Odd = Mapping[int, Mapping[str, Any]]
"""By position: rows with a value that is none of its field's type, each as it is to be sent."""


def types_of(contracts: Sequence[type[msgspec.Struct]]) -> dict[str, pl.DataType]:
    """Types of the fields that are numbers or booleans in all contracts that have them; others are text."""
    found: dict[str, set[type[Type]]] = {}
    for contract in contracts:
        info = type_info(contract)
        assert isinstance(info, StructType)
        for each in info.fields:
            found.setdefault(each.encode_name, set()).update(_kinds(each.type))
    return {name: _DTYPES[kind] for name, (kind, *more) in found.items() if not more and kind in _DTYPES}


def _kinds(kind: Type) -> set[type[Type]]:
    if isinstance(kind, Metadata):
        return _kinds(kind.type)
    if isinstance(kind, UnionType):
        return {own for each in kind.types for own in _kinds(each)}
    return set() if isinstance(kind, NoneType) else {type(kind)}


def typed(text: pl.DataFrame, types: Mapping[str, pl.DataType]) -> tuple[pl.DataFrame, Odd]:
    """Text columns under their types.

    Args:
        text: of strings alone; an empty one of a number or a boolean is null.

    Returns:
        The table, and those of its rows that hold what is no such value: there it is null. In an odd row
        that value stands as the text it is, so that its dead letter shows it; 3.0 for an integer is 3.0.
    """
    own = {name: dtype for name, dtype in types.items() if name in text.columns}
    table = text.with_columns(_cast(pl.col(name), dtype) for name, dtype in own.items())
    lost = [name for name in own if table.get_column(name).null_count() != text.get_column(name).null_count()]
    if not lost:
        return table, {}
    is_odd = {
        name: (table.get_column(name).is_null() & text.get_column(name).is_not_null())
        & (text.get_column(name) != "")
        for name in lost
    }
    positions = reduce(lambda one, other: one | other, is_odd.values()).arg_true()
    rows = table.gather(positions).to_dicts() if len(positions) else []
    stood = text.select(lost).gather(positions).to_dicts() if len(positions) else []
    for position, row, said in zip(positions, rows, stood, strict=True):
        for name in lost:
            if is_odd[name][position]:
                row[name] = _number(said[name]) if own[name] == pl.Int64 else said[name]
    return table, dict(zip(positions.to_list(), rows, strict=True))


def _cast(column: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    if dtype == pl.Boolean:
        return (
            pl.when(column.is_in(_TRUE))
            .then(True)
            .when(column.is_in(_FALSE))
            .then(False)
            .alias(column.meta.output_name())
        )
    cast = column.cast(dtype, strict=False)
    return pl.when(cast.is_finite()).then(cast) if dtype == pl.Float64 else cast


def _number(text: str) -> float | str:
    """A whole number written with a point, as tables with holes write them; else the text itself."""
    try:
        number = float(text)
    except ValueError:
        return text
    return number if number.is_integer() else text
