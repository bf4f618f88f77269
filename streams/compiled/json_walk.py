"""A walk over flat JSON records: which value stands where.

It takes only what msgspec takes, too, and with the same values: an object whose keys are the contract's, each
once; strings without escapes; numbers by JSON's own grammar. A record in which it finds anything else is
msgspec's to read, and to say what is wrong with it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types

from streams.compiled.at_address import HOW, byte, lowest_bit, word

WHOLE, REAL, TRUTH, TEXT = range(4)
"""Kinds of a column."""
NULL, HERE, ABSENT, FAR = 1, 2, 4, 8
"""Of a value: null; read, or its text found; not in the record; a number whose text alone is found."""

_TENS = np.array([10.0**n for n in range(23)])
_MOST_EXACT = 2**53
_MOST_DIGITS = 18
"""So many fit 64 bits whatever they are."""

_U = np.uint64
_signed: Any = np.int64
_ONES, _HIGHS = _U(0x0101010101010101), _U(0x8080808080808080)
_QUOTES, _BACKSLASHES, _SPACES = _ONES * _U(0x22), _ONES * _U(0x5C), _ONES * _U(0x20)
_ZEROS, _SIXES, _TOPS = _ONES * _U(0x30), _ONES * _U(0x06), _ONES * _U(0xF0)
_FOUR, _FIVE = _U(0xFFFFFFFF), _U(0xFFFFFFFFFF)
_NULL, _TRUE, _FALSE = (_U(int.from_bytes(text, "little")) for text in (b"null", b"true", b"false"))
_PAIRS, _BY_PAIRS, _BY_FOURS = _U(0x000000FF000000FF), _U(0x000F424000000064), _U(0x0000271000000001)

_BYTES = types.Array(types.uint8, 1, "C", readonly=True)
_PLACES = types.Array(types.int64, 1, "C", readonly=True)


@njit(**HOW)
def _behind_blanks(at: int, end: int) -> int:
    while at < end and (byte(at) == 0x20 or 0x09 <= byte(at) <= 0x0A or byte(at) == 0x0D):
        at += 1
    return at


@njit(**HOW)
def _is(at: int, words: int, masks: int, count: int) -> bool:
    """Whether these words of a text stand there."""
    for offset in range(0, 8 * count, 8):
        if word(at + offset) & word(masks + offset) != word(words + offset):
            return False
    return True


@njit(**HOW)
def _quote(at: int, end: int) -> int:
    """Where a string ends that begins there; the record's end where it does not, or has escapes."""
    while at < end:
        eight = word(at)
        quote, backslash = eight ^ _QUOTES, eight ^ _BACKSLASHES
        # The lowest mark is right; those above it may be borrowed.
        marks = ((quote - _ONES) & ~quote) | ((backslash - _ONES) & ~backslash) | ((eight - _SPACES) & ~eight)
        marks &= _HIGHS
        if marks:
            at += lowest_bit(marks) >> 3
            return at if at < end and byte(at) == 0x22 else end
        at += 8
    return end


@njit(**HOW)
def _digits(at: int, end: int, value: int, most: int) -> tuple[int, int]:
    """Where digits end, or so many of them; and their value behind that of others."""
    eight = word(at)
    if most >= 8 and at + 8 <= end and (eight & _TOPS) == _ZEROS and ((eight + _SIXES) & _TOPS) == _ZEROS:
        eight -= _ZEROS
        eight = eight * _U(10) + (eight >> _U(8))
        eight = ((eight & _PAIRS) * _BY_PAIRS + ((eight >> _U(16)) & _PAIRS) * _BY_FOURS) >> _U(32)
        value, at, most = value * 100_000_000 + _signed(eight), at + 8, most - 8
    while most > 0 and at < end and 0x30 <= byte(at) <= 0x39:
        value, at, most = value * 10 + byte(at) - 0x30, at + 1, most - 1
    return at, value


@njit(**HOW)
def _number(at: int, end: int) -> tuple[int, int, int, bool]:
    """A number that begins there: where it ends, 0 if it is none; its digits as one number, how many of them
    are behind the point, -1 if there is no point and no exponent; whether that is all there is to it."""
    if at < end and byte(at) == 0x2D:
        at += 1
    begins = at
    at, digits = _digits(at, end, 0, _MOST_DIGITS)
    many = at - begins
    if many == 0 or (many > 1 and byte(begins) == 0x30):
        return 0, 0, 0, False
    places, is_all = -1, True
    if at < end and byte(at) == 0x2E:
        begins = at + 1
        at, digits = _digits(begins, end, digits, _MOST_DIGITS - many)
        places = at - begins
        while at < end and 0x30 <= byte(at) <= 0x39:
            at, is_all = at + 1, False
        if at == begins:
            return 0, 0, 0, False
    if at < end and byte(at) | 0x20 == 0x65:
        at, is_all, places = at + 1, False, max(places, 0)
        if at < end and (byte(at) == 0x2B or byte(at) == 0x2D):
            at += 1
        begins = at
        while at < end and 0x30 <= byte(at) <= 0x39:
            at += 1
        if at == begins:
            return 0, 0, 0, False
    return at, digits, places, is_all


@njit(**HOW)
def _characters(at: int, end: int) -> int:
    """Of a text: its bytes but for those that continue a character."""
    count = 0
    while at < end:
        count += byte(at) & 0xC0 != 0x80
        at += 1
    return count


@njit(
    types.void(
        _BYTES,
        _PLACES,
        _PLACES,
        types.int64,
        types.uint64[:, ::1],
        types.uint64[:, ::1],
        types.int64[::1],
        types.uint8[::1],
        types.int64[::1],
        types.boolean[:, ::1],
        types.int64[:, ::1],
        types.float64[:, ::1],
        types.int64[::1],
        types.int64[:, ::1],
        types.float64[:, ::1],
        types.int64[:, ::1],
        types.int64[:, ::1],
        types.uint8[:, ::1],
        types.uint8[::1],
        types.boolean[::1],
    ),
    **HOW,
)
def walk(  # noqa: PLR0912, PLR0915  # one walk, in which an array is handed on to nobody
    content: np.ndarray,
    begins: np.ndarray,
    ends: np.ndarray,
    first: int,
    words: np.ndarray,
    masks: np.ndarray,
    sizes: np.ndarray,
    kinds: np.ndarray,
    slots: np.ndarray,
    may_lack: np.ndarray,
    bounds: np.ndarray,
    real_bounds: np.ndarray,
    follows: np.ndarray,
    wholes: np.ndarray,
    reals: np.ndarray,
    starts: np.ndarray,
    lengths: np.ndarray,
    states: np.ndarray,
    seen: np.ndarray,
    alike: np.ndarray,
) -> None:
    """Read M records of C columns, as rows from `first` on of N.

    Args:
        content: uint8, in which the records stand, and behind the last one as many bytes as the longest key
            has, and 16 more.
        begins: int64 (M,), where in `content` each record begins, and where it `ends` (M,).
        words: uint64 (C, W), each key with its quotes, filled up with zeros; `masks` has ones where it is,
            and `sizes` (C,) its bytes.
        kinds: uint8 (C,).
        slots: int64 (C,), a column's place in `wholes` (of WHOLE and TRUTH) or in `reals`.
        may_lack: bool (2, C), whether a value may be null, and whether it may be absent.
        bounds: int64 (2, C), least and most of a whole number, or of a text's characters.
        real_bounds: float64 (2, C), the same of a number. A FAR one is not held to them.
        follows: int64 (C + 1,), which column came behind each, and first; learned as it goes.
        wholes: int64 (·, N) and `reals` float64 (·, N): numbers, and 1 for true.
        starts: int64 (C, N), where in `content` a text, or that of a FAR number, begins, and its `lengths`;
            of a value that is not there both are 0.
        states: uint8 (C, N) NULL, HERE, ABSENT or FAR; `seen` (C,) has which of them there are.
        alike: bool (N,), whether the record could be read. Others are null throughout, and not in `seen`.
    """
    columns, width = len(kinds), words.shape[1]
    base = _signed(content.ctypes.data)
    key_words, key_masks = _signed(words.ctypes.data), _signed(masks.ctypes.data)
    for number in range(len(begins)):
        row, at, end = first + number, base + begins[number], base + ends[number]
        had, before, is_alike = 0, columns, False
        at = _behind_blanks(at, end)
        is_open = at < end and byte(at) == 0x7B
        while is_open:
            at = _behind_blanks(at + 1, end)
            column = follows[before]
            key = 8 * width * column
            if not _is(at, key_words + key, key_masks + key, (sizes[column] + 7) >> 3):
                column = 0
                while column < columns:
                    key = 8 * width * column
                    if _is(at, key_words + key, key_masks + key, (sizes[column] + 7) >> 3):
                        break
                    column += 1
                if column == columns:
                    break
                follows[before] = column
            before = column
            at = _behind_blanks(at + sizes[column], end)
            if had >> column & 1 or at >= end or byte(at) != 0x3A:
                break
            had |= 1 << column
            at = _behind_blanks(at + 1, end)
            if at >= end:
                break
            kind, slot, state, letter = kinds[column], slots[column], HERE, byte(at)
            if letter == 0x6E:
                state = NULL
                if not may_lack[0, column] or at + 4 > end or word(at) & _FOUR != _NULL:
                    break
                at += 4
                starts[column, row], lengths[column, row] = 0, 0
            elif kind == TEXT:
                if letter != 0x22:
                    break
                text = at + 1
                at = _quote(text, end)
                size, least, most = at - text, bounds[0, column], bounds[1, column]
                # A character has four bytes at most.
                if at >= end or size < least:
                    break
                if (size > most or size >> 2 < least) and not least <= _characters(text, at) <= most:
                    break
                starts[column, row], lengths[column, row] = text - base, size
                at += 1
            elif kind == TRUTH:
                if at + 4 <= end and word(at) & _FOUR == _TRUE:
                    wholes[slot, row], at = 1, at + 4
                elif at + 5 <= end and word(at) & _FIVE == _FALSE:
                    wholes[slot, row], at = 0, at + 5
                else:
                    break
            else:
                is_negative, text = letter == 0x2D, at
                at, digits, places, is_all = _number(at, end)
                # -0 is a whole number without a sign to msgspec.
                if at == 0 or (is_negative and digits == 0 and places <= 0):
                    break
                if kind == WHOLE:
                    if places >= 0:
                        break
                    whole = -digits if is_negative else digits
                    if not bounds[0, column] <= whole <= bounds[1, column]:
                        break
                    wholes[slot, row] = whole
                elif is_all and digits <= _MOST_EXACT:
                    real = digits / _TENS[max(places, 0)]
                    real = -real if is_negative else real
                    if not real_bounds[0, column] <= real <= real_bounds[1, column]:
                        break
                    reals[slot, row] = real
                else:
                    starts[column, row], lengths[column, row], state = text - base, at - text, FAR
            states[column, row] = state
            seen[column] |= state
            at = _behind_blanks(at, end)
            if at >= end:
                break
            if byte(at) == 0x2C:
                continue
            is_open = False
            is_alike = byte(at) == 0x7D and _behind_blanks(at + 1, end) == end
        for column in range(columns):
            if is_alike and not had >> column & 1:
                is_alike = may_lack[1, column]
                states[column, row] = ABSENT
                starts[column, row], lengths[column, row] = 0, 0
                seen[column] |= ABSENT
        if not is_alike:
            for column in range(columns):
                states[column, row], starts[column, row], lengths[column, row] = NULL, 0, 0
        alike[row] = is_alike
