"""Pieces of bytes become columns, and columns pieces: the same as Python's slices of them."""

from __future__ import annotations

import gc
from collections.abc import Sequence

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams import compiled
from streams.cut import binaries, texts
from streams.lay import side_by_side

# Beside what one word holds, and what a view of Arrow's holds by itself (12).
PIECES = st.lists(st.none() | st.binary(max_size=40) | st.sampled_from([b"", b"x" * 8, b"y" * 12, b"z" * 13]))


def laid_out(
    pieces: Sequence[bytes | None], gap: bytes = b"\xffgap"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Content in which the pieces stand with something between, where each begins, and its bytes."""
    begins, sizes, content = [], [], bytearray()
    for piece in pieces:
        content += gap
        begins.append(len(content))
        sizes.append(-1 if piece is None else len(piece))
        content += piece or b""
    whole = np.frombuffer(bytes(content) + b"\xee" * compiled.loading().result().cut.WORD, np.uint8)
    return whole, np.array(begins, np.int64), np.array(sizes, np.int64)


@given(pieces=PIECES)
@settings(deadline=None)
def test_pieces_come_as_they_stand_there(pieces: list[bytes | None]) -> None:
    walk = compiled.loading().result().cut
    found = binaries(*laid_out(pieces), walk)
    assert (found.dtype, found.to_list()) == (pl.Binary, pieces)


@given(pieces=st.lists(st.text(max_size=20)))
@settings(deadline=None)
def test_texts_come_as_they_stand_there(pieces: list[str]) -> None:
    walk = compiled.loading().result().cut
    found = texts(*laid_out([piece.encode() for piece in pieces]), walk)
    assert (found.dtype, found.to_list()) == (pl.String, pieces)


@pytest.mark.parametrize("bad", [b"\xff", b"abcdefgh\xc3", b"\xed\xa0\x80", b"0123456789abcde\x80"])
def test_what_is_no_text_is_noticed_wherever_it_stands(bad: bytes) -> None:
    walk = compiled.loading().result().cut
    for pieces in ([bad], [b"good", bad], [bad, b"good"], [b"good" * 5, bad, b"\xc3\xa9"]):
        with pytest.raises(pl.exceptions.PolarsError):
            texts(*laid_out(pieces), walk)


def test_bytes_between_the_pieces_are_none_of_their_text() -> None:
    walk = compiled.loading().result().cut
    assert texts(*laid_out([b"abc", b"defghijklmnop"], gap=b"\xff\xfe"), walk).to_list() == [
        "abc",
        "defghijklmnop",
    ]


def test_columns_outlive_what_they_were_cut_from() -> None:
    walk = compiled.loading().result().cut
    pieces = [f"piece-{number:020d}".encode() for number in range(5_000)]
    kept = []
    for _ in range(20):
        found = binaries(*laid_out(pieces), walk)
        kept.append(found.slice(100, 50))
        del found
        gc.collect()
        np.full(1_000_000, 0xAB, np.uint8)
    assert all(each.to_list() == pieces[100:150] for each in kept)


@given(
    parts=st.lists(st.lists(st.binary(max_size=40) | st.binary(min_size=100, max_size=300)), max_size=4),
    skipped=st.integers(0, 5),
)
@settings(deadline=None)
def test_values_are_laid_side_by_side_from_whatever_buffers_they_stand_in(
    parts: list[list[bytes]], skipped: int
) -> None:
    walk = compiled.loading().result().cut
    empty = pl.Series([], dtype=pl.Binary)
    cut = [binaries(*laid_out(part), walk) if len(part) % 2 else empty for part in parts]
    made = [pl.Series(part, dtype=pl.Binary) for part in parts]
    values = pl.concat([empty, *cut, *made])[skipped:]
    for each in (values, values.gather([*range(0, len(values), 3)]), values.rechunk(), values.reverse()):
        content, offsets = side_by_side(each, walk, room=24)
        expected = each.to_list()
        assert content[: offsets[-1]].tobytes() == b"".join(expected)
        assert len(content) == offsets[-1] + 24
        ends = np.cumsum([0, *map(len, expected)])
        assert offsets.tolist() == ends.tolist()
