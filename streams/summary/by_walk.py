"""Accounts of many rows, by compiled walks beside Python's lock."""

from __future__ import annotations

import math
from types import ModuleType

import numpy as np
import polars as pl

from streams.summary.account import Account, Sums
from streams.summary.exact import LARGEST, SMALLEST, exact_parts, exact_whole
from streams.summary.numbers import HALF_BITS, SumsOf, sums_by_pane
from streams.window import Pane


def accounts(rows: pl.DataFrame, start: pl.Expr, walk: ModuleType) -> dict[Pane, Account] | None:
    """See `summarise`; None where the rows lie in more panes than a walk takes.

    Args:
        walk: `compiled.account_walk`.
    """
    starts, times = rows.select(start.cast(pl.Int64).alias("_start"), "_time")
    of_row = np.empty(rows.height, np.uint16)
    panes = np.empty((4, walk.MOST_PANES), np.int64)
    slots = np.zeros(1 << walk.SLOTS_BITS, np.int32)
    count = walk.panes(starts.to_numpy(), times.to_numpy(), of_row, slots, panes)
    if count < 0:
        return None
    columns = sums_by_pane(
        rows,
        count,
        wholes=lambda values: _wholes(values, of_row, panes[1, :count].tolist(), walk),
        reals=lambda values: _reals(values, of_row, count, walk),
    )
    tags = _tags(rows.get_column("_tags"), of_row)
    found: dict[Pane, Account] = {}
    for number in panes[0, :count].argsort().tolist():
        start_ms, in_it, first_ms, last_ms = panes[:, number].tolist()
        found[Pane(start_ms)] = Account(
            rows=in_it,
            tags=tags.get(number, {}),
            columns=columns[number],
            first_ms=first_ms,
            last_ms=last_ms,
        )
    return found


def _tags(tags: pl.Series, of_row: np.ndarray) -> dict[int, dict[str, int]]:
    many = tags.list.len()
    panes = np.repeat(of_row, (many.fill_null(0) if tags.null_count() else many).to_numpy())
    said = tags.explode(empty_as_null=False, keep_nulls=False)
    names = said.unique().drop_nulls().sort()
    found: dict[int, dict[str, int]] = {}
    if names.is_empty():
        return found
    if said.null_count():
        panes, said = panes[said.is_not_null().to_numpy()], said.drop_nulls()
    number = said.cast(pl.Enum(names)).to_physical().to_numpy()
    counts = np.bincount(panes * np.int64(len(names)) + number)
    for at in np.flatnonzero(counts).tolist():
        pane, name = divmod(at, len(names))
        found.setdefault(pane, {})[names[name]] = int(counts[at])
    return found


def _wholes(values: np.ndarray, of_row: np.ndarray, rows: list[int], walk: ModuleType) -> SumsOf:
    found = np.zeros((len(rows), 6), np.int64)
    found[:, :2] = 1 << 2 * HALF_BITS, -(1 << 2 * HALF_BITS)
    walk.wholes(values, of_row, found)
    for pane, (least, most, total, upper, mixed, lower) in enumerate(found.tolist()):
        squares = (upper << 2 * HALF_BITS) + (mixed << HALF_BITS + 1) + lower
        yield pane, Sums(rows[pane], exact_whole(total), exact_whole(squares), float(least), float(most))


def _reals(values: np.ndarray, of_row: np.ndarray, panes: int, walk: ModuleType) -> SumsOf:
    counts = np.zeros(panes, np.int64)
    ends = np.repeat([[math.inf, -math.inf]], panes, axis=0)
    sums = np.zeros((panes, walk.SUM_PARTS), np.int64)
    squares = np.zeros((panes, walk.SQUARES_PARTS), np.int64)
    walk.reals(values, of_row, SMALLEST, LARGEST, counts, ends, sums, squares)
    for pane in np.flatnonzero(counts).tolist():
        total = exact_parts(sums[pane], walk.PART_BITS, walk.BELOW)
        squared = exact_parts(squares[pane], walk.PART_BITS, walk.SQUARES_BELOW)
        # No minus zero: which of two equal zeros is least is a matter of order.
        least, most = ends[pane].tolist()
        yield pane, Sums(int(counts[pane]), total, squared, least + 0.0, most + 0.0)
