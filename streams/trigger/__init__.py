"""When the windows say: train. Conditions are pure functions of closed windows, and say why either way.

`pace` (counts, event time), `edge` (rows with a tag), `drift`, `bias`, `answers` (how the live model fares),
`steady` (one condition over time);
`condition` is how they combine, `history` what they look back on, `statistic` what they compute.
"""

from streams.trigger.answers import cost, quality
from streams.trigger.bias import bias
from streams.trigger.condition import (
    All,
    Answer,
    AtLeast,
    Condition,
    Look,
    Watched,
    all_parts,
    any_of,
    at_least,
    decide,
    watched_by,
)
from streams.trigger.drift import drift, label_drift
from streams.trigger.edge import edge_cases
from streams.trigger.history import History, Reference
from streams.trigger.pace import cooldown, elapsed, every, first, labelled, rows, seen, stale
from streams.trigger.reference import TRAINING, previous, span
from streams.trigger.steady import hysteresis, once, sustained

__all__ = [
    "TRAINING",
    "All",
    "Answer",
    "AtLeast",
    "Condition",
    "History",
    "Look",
    "Reference",
    "Watched",
    "all_parts",
    "any_of",
    "at_least",
    "bias",
    "cooldown",
    "cost",
    "decide",
    "drift",
    "edge_cases",
    "elapsed",
    "every",
    "first",
    "hysteresis",
    "label_drift",
    "labelled",
    "once",
    "previous",
    "quality",
    "rows",
    "seen",
    "span",
    "stale",
    "sustained",
    "watched_by",
]
