"""Signs that training data tell what they must not: a feature that is the label, a label before its event.

Looked for before the training, refused by the gate after it: the scores beside a finding show what it did.
"""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from schemas.features import FeatureSpec
from schemas.model import Finding

TELLING = 0.999
"""A feature that by itself orders, or names, so great a share of the labels is the label in other words."""
BACKWARDS = 0.001
"""So great a share of labels that are older than their events is no wrong clock any more."""

_MOST_ROWS = 50_000
_FEWEST_OF_A_CLASS = 20
_ROWS_A_VALUE = 20


def constant_answers(model: str) -> Finding:
    """The challenger answers every row alike."""
    return Finding(
        check="constant_answers",
        subject=model,
        value=0.0,
        limit=0.0,
        detail="the challenger answers every row alike",
    )


def findings(
    rows: pl.DataFrame, spec: FeatureSpec, *, trusted: Sequence[str] = (), label_time: str = "_label_time"
) -> list[Finding]:
    """What is wrong with labelled rows.

    Args:
        rows: `spec.names()`, the label as 0 and 1, `_time`, and the label's own event time.
        trusted: features that may tell the label; `*` trusts all.
    """
    found = _backwards(rows, spec, label_time)
    if "*" not in trusted:
        asked = [name for name in spec.names() if name not in trusted]
        found += _telling(rows, asked, str(spec.label and spec.label.column))
    return found


def _backwards(rows: pl.DataFrame, spec: FeatureSpec, label_time: str) -> list[Finding]:
    """Features are as of the event's time; a label from before it may be among what they looked at."""
    label = spec.label
    if label is None or label_time not in rows.columns or rows.height == 0:
        return []
    # At the very instant, a feature sees the label's row only if it looks at the label's source.
    sees = label.source in {feature.source for feature in spec.features}
    age = pl.col(label_time) - pl.col("_time")
    share = float(rows.select((age <= 0 if sees else age < 0).mean()).item() or 0.0)
    if share <= BACKWARDS:
        return []
    return [
        Finding(
            check="label_before_event",
            subject=label.column,
            value=share,
            limit=BACKWARDS,
            detail=f"{share:.2%} of the labels are older than the event that they are to be told from: "
            "features may look at them; correct the event times",
        )
    ]


def _telling(rows: pl.DataFrame, features: Sequence[str], label: str) -> list[Finding]:
    rows = rows.gather_every(-(-rows.height // _MOST_ROWS) or 1)
    late = pl.col(label) == 1
    if min(rows.select(late.sum(), other=(~late).sum()).row(0)) < _FEWEST_OF_A_CLASS:
        return []
    shares = {**_ordered(rows, features, late), **_named(rows, features, late)}
    return [
        Finding(
            check="feature_tells_label",
            subject=name,
            value=share,
            limit=TELLING,
            detail=f"{how} all by itself; if it is known before, name it in the gate's `trusted`",
        )
        for name, (share, how) in sorted(shares.items())
        if share >= TELLING
    ]


def _ordered(rows: pl.DataFrame, features: Sequence[str], late: pl.Expr) -> dict[str, tuple[float, str]]:
    """AUC of each number alone, whichever way round: 1 where label and feature rise or fall together."""
    numbers = {
        n: pl.col(n).cast(pl.Float64).fill_nan(None)
        for n in features
        if rows.schema[n].is_numeric() or rows.schema[n].is_temporal()
    }
    if not numbers:
        return {}
    ranks = rows.select(value.rank("average").filter(late).sum().alias(n) for n, value in numbers.items())
    positive = rows.select((value.is_not_null() & late).sum().alias(n) for n, value in numbers.items())
    negative = rows.select((value.is_not_null() & ~late).sum().alias(n) for n, value in numbers.items())
    areas: dict[str, tuple[float, str]] = {}
    for name, total, p, q in zip(numbers, ranks.row(0), positive.row(0), negative.row(0), strict=True):
        if min(p, q) >= _FEWEST_OF_A_CLASS:
            area = (total - p * (p + 1) / 2) / (p * q)
            area = max(area, 1 - area)
            areas[name] = (area, f"orders the labels with an AUC of {area:.4f}")
    return areas


def _named(rows: pl.DataFrame, features: Sequence[str], late: pl.Expr) -> dict[str, tuple[float, str]]:
    """How much better than the commoner class a word, or a value's absence, names the label.

    As a share of what there is to gain: the lambda of Goodman and Kruskal (1954).
    """
    base = rows.select(pl.max_horizontal(late.mean(), 1 - late.mean())).item()
    words = [n for n in features if rows.schema[n] in (pl.String, pl.Boolean, pl.Categorical)]
    told: dict[str, tuple[float, str]] = {}
    for name in features:
        kinds = [pl.col(name).is_null()] if rows.get_column(name).null_count() else []
        if name in words:
            kinds.append(pl.col(name))
        for kind in kinds:
            by = rows.group_by(kind.alias("value")).agg(rows=pl.len(), late=late.sum())
            if by.height < 2 or by.height * _ROWS_A_VALUE > rows.height:
                continue  # one value tells nothing; a value of its own for each row names anything
            right = by.select(pl.max_horizontal("late", pl.col("rows") - pl.col("late")).sum()).item()
            share = (right / rows.height - base) / (1 - base)
            said = "its absence" if by.schema["value"] == pl.Boolean and name not in words else "its value"
            if share > told.get(name, (0.0, ""))[0]:
                told[name] = (share, f"{said} names {right / rows.height:.2%} of the labels")
    return told
