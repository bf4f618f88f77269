"""Profiles of windows: made from a window's rows when it closes, and merged into references."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import polars as pl

from schemas.profile import ColumnProfile, Profile, SliceProfile
from streams.summary.sketch import merged, pack, points_of, unpack

_CATEGORIES = 256
_SLICES = 64
# A label of so few values is profiled by value: 0 and 1, or classes.
_LABEL_VALUES = 16


def profile_of(
    rows: pl.DataFrame,
    columns: Iterable[str],
    *,
    label: str | None = None,
    slices: Iterable[str] = (),
    tags: str | None = None,
) -> Profile:
    """The profile of a window's rows, in any order.

    Args:
        rows: (N, …) with these columns; the label's column is null where no label has come.
        columns: what is profiled; columns that are neither numbers, text nor true and false are left out.
        label: the label's column.
        slices: columns whose values part the rows.
        tags: a column of lists of tags that are to be counted.
    """
    profiled = {c: column_profile(rows.get_column(c)) for c in columns if _can_be_profiled(rows.schema[c])}
    return Profile(
        rows=rows.height,
        columns=profiled,
        label=None if label is None else _label_profile(rows.get_column(label)),
        tags={} if tags is None else _count_tags(rows.get_column(tags)),
        slices={column: _slices(rows, column, label) for column in slices},
    )


def _count_tags(tags: pl.Series) -> dict[str, int]:
    return dict(sorted(Counter(tags.explode(empty_as_null=True).drop_nulls().to_list()).items()))


def column_profile(values: pl.Series) -> ColumnProfile:
    """Numbers as a sketch, all else by value."""
    if values.dtype.is_numeric():
        numbers = values.cast(pl.Float64).drop_nulls()
        # float32 holds what a sketch says: what is infinite there is as good as missing.
        numbers = numbers.filter(numbers.cast(pl.Float32).is_finite())
        packed, error = pack(points_of(numbers.to_numpy()))
        return ColumnProfile(
            rows=len(values), missing=len(values) - len(numbers), kll=packed, rank_error=error
        )
    counts = Counter(dict(values.drop_nulls().cast(pl.String).value_counts().iter_rows()))
    return _by_value(counts, rows=len(values), missing=values.null_count())


def _by_value(counts: Mapping[str, int], *, rows: int, missing: int, other: int = 0) -> ColumnProfile:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ColumnProfile(
        rows=rows,
        missing=missing,
        categories=dict(ordered[:_CATEGORIES]),
        other=other + sum(count for _, count in ordered[_CATEGORIES:]),
    )


def _label_profile(labels: pl.Series) -> ColumnProfile:
    if labels.dtype.is_numeric() and labels.drop_nulls().n_unique() <= _LABEL_VALUES:
        return column_profile(labels.cast(pl.Float64).cast(pl.String))
    return column_profile(labels)


def _slices(rows: pl.DataFrame, column: str, label: str | None) -> dict[str, SliceProfile]:
    """The most frequent values of a slice column; rows without a value are in none."""
    truth = pl.lit(None, dtype=pl.Float64) if label is None else pl.col(label).cast(pl.Float64)
    counted = (
        rows.select(pl.col(column).cast(pl.String).alias("value"), truth.alias("truth"))
        .drop_nulls("value")
        .group_by("value")
        .agg(
            rows=pl.len(),
            labelled=pl.col("truth").is_not_null().sum(),
            label_sum=pl.col("truth").sum(),
        )
        .sort(["rows", "value"], descending=[True, False])
        .head(_SLICES)
    )
    return {
        value: SliceProfile(rows=n, labelled=labelled, label_sum=total)
        for value, n, labelled, total in counted.iter_rows()
    }


def merge_profiles(profiles: Sequence[Profile]) -> Profile:
    """All their rows together. A column that some lack is merged over those that have it."""
    names = dict.fromkeys(name for profile in profiles for name in profile.columns)
    labels = [profile.label for profile in profiles if profile.label is not None]
    sliced = dict.fromkeys(column for profile in profiles for column in profile.slices)
    return Profile(
        rows=sum(profile.rows for profile in profiles),
        columns={n: _merge_columns([p.columns[n] for p in profiles if n in p.columns]) for n in names},
        label=_merge_columns(labels) if labels else None,
        tags=dict(sorted(sum((Counter(p.tags) for p in profiles), Counter()).items())),
        slices={c: _merge_slices([p.slices[c] for p in profiles if c in p.slices]) for c in sliced},
    )


def _merge_columns(parts: Sequence[ColumnProfile]) -> ColumnProfile:
    rows, missing = sum(p.rows for p in parts), sum(p.missing for p in parts)
    counts: Counter[str] = Counter()
    for part in parts:
        counts.update(part.categories)
    if counts:
        return _by_value(counts, rows=rows, missing=missing, other=sum(p.other for p in parts))
    packed, error = pack(merged([unpack(p.kll, p.rank_error) for p in parts]))
    return ColumnProfile(rows=rows, missing=missing, kll=packed, rank_error=error)


def _merge_slices(parts: Sequence[Mapping[str, SliceProfile]]) -> dict[str, SliceProfile]:
    whole: dict[str, SliceProfile] = {}
    for part in parts:
        for value, each in part.items():
            so_far = whole.get(value, SliceProfile(rows=0))
            whole[value] = SliceProfile(
                rows=so_far.rows + each.rows,
                labelled=so_far.labelled + each.labelled,
                label_sum=so_far.label_sum + each.label_sum,
            )
    return whole


def _can_be_profiled(dtype: pl.DataType) -> bool:
    return dtype.is_numeric() or dtype in (pl.String, pl.Boolean, pl.Categorical)
