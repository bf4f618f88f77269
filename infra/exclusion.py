"""Spans of event time that a person excluded from training, as a dataset's log has them.

An exclusion is a commit without rows: its metadata says what was decided, by whom and why, and which spans
stand excluded from then on. A transaction of the table names the version of the newest such commit, so that
whoever opens any version knows at once what was excluded there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

from infra.dataset import Dataset, open_table
from schemas.window import Window

EXCLUSION = "excluded"
"""Under which name the table's transactions hold the version of the newest decision about a span."""


class Exclusion(Struct, frozen=True, kw_only=True):
    """A span that stands excluded, who decided it, when (epoch ms) and why."""

    span: Window
    reason: str
    by: str
    at_ms: int


class Decided(Struct, frozen=True, kw_only=True):
    """What one commit says: a span is excluded, or no longer; and all that stand excluded from then on."""

    excludes: bool
    span: Window
    reason: str
    by: str
    standing: tuple[Exclusion, ...]


def decision_of(metadata: Mapping[str, Any]) -> Decided | None:
    """What a commit decides about a span; None where it is any other commit."""
    said = metadata.get(EXCLUSION)
    return None if said is None else msgspec.convert(said, Decided)


def excluded_at(uri: str, version: int | None = None) -> tuple[Exclusion, ...]:
    """The spans that stand excluded at a version of the dataset, or at its newest; in the order of time.

    Raises:
        DatasetUnreadable: there is no dataset, no such version, or the log lacks the decision's entry.
    """
    at = open_table(uri, version).transaction_version(EXCLUSION)
    decided = None if at is None else decision_of(Dataset(uri).commit(at).metadata)
    return () if decided is None else decided.standing
