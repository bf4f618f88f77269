"""What stands at an address, for compiled loops.

numba counts references to an array each time it is handed on, which was half of a walk over JSON; numbers it
hands on for nothing. Who reads by address sees to it that what is read is there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
from llvmlite import ir
from numba import config, types
from numba.extending import intrinsic

if config.DISABLE_JIT:  # type: ignore[attr-defined]  # there is nothing here to interpret
    raise ImportError("NUMBA_DISABLE_JIT is set")

HOW: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy"}
"""How a loop is compiled."""


def _byte(_: Any, _address: types.Type) -> Any:
    def load(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())
        return builder.zext(builder.load(pointer), ir.IntType(64))

    return types.int64(types.int64), load


def _word(_: Any, _address: types.Type) -> Any:
    """Eight bytes, the first one lowest."""

    def load(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.load(pointer, align=1)

    return types.uint64(types.int64), load


def _lowest_bit(_: Any, _of: types.Type) -> Any:
    """Its number, of a word that is not 0."""

    def count(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), count


def _put_word(_: Any, _address: types.Type, _value: types.Type) -> Any:
    """Eight bytes, the lowest one first."""

    def store(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        builder.store(arguments[1], pointer, align=1)
        return context.get_dummy_value()

    return types.none(types.int64, types.uint64), store


def _put_byte(_: Any, _address: types.Type, _value: types.Type) -> Any:
    def store(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())
        builder.store(builder.trunc(arguments[1], ir.IntType(8)), pointer)
        return context.get_dummy_value()

    return types.none(types.int64, types.int64), store


byte = cast("Callable[[int], int]", intrinsic(_byte))
word = cast("Callable[[int], np.uint64]", intrinsic(_word))
lowest_bit = cast("Callable[[np.uint64], int]", intrinsic(_lowest_bit))
put_word = cast("Callable[[int, np.uint64], None]", intrinsic(_put_word))
put_byte = cast("Callable[[int, int], None]", intrinsic(_put_byte))
