"""A small declarative network for rows of mixed columns: it travels as weights and plain data, never as code.

Shapes: N rows, C categorical columns, V numeric columns, T times of the calendar.

    codes_NC  int64, 0 for a value that the vocabulary lacks
    values_NV float32, about -1.7 to 1.7 by quantile or standardised, 0 where absent
    absent_NV float32, 1 where absent
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import numpy as np
import torch
from torch import nn

from .aside import breathe

Columns = Mapping[str, Any]

_CLIP = 4.0
# Evenly spread over [-_SPREAD, _SPREAD], a value's rank has a standard deviation of about one.
_SPREAD = 3**0.5
_HOUR_MS = 3_600_000
_DAY_MS = 86_400_000


class TabularNetwork(nn.Module):
    """Embeddings of categories beside numbers on one scale, then a perceptron; one logit a row.

    `config` is plain data:
        categorical: [{"name", "vocabulary": [...], "dim"}]; with "of": [two categorical names declared
            before it], a word is a pair of theirs,
        numeric: [{"name", "mean", "scale"}], or [{"name", "knots"}]: rising quantiles, between which a
            number is placed by interpolation, so that neither tails nor units matter,
        calendar: {"column", "zone"} or null: hour, weekday and time of day of a column of epoch ms,
        hidden: [sizes], dropout: share dropped in training.
    """

    architecture = "tabular"

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        # A copy, and a quick one: a service builds this network while it answers with another.
        self.config: dict[str, Any] = msgspec.to_builtins(dict(config))
        self._categorical = self.config["categorical"]
        self._numeric = self.config["numeric"]
        self._calendar = self.config.get("calendar")
        breathe()
        self._knots = [
            np.array(c["knots"], dtype=np.float64) if "knots" in c else None for c in self._numeric
        ]
        self._codes = [_codes(c["vocabulary"]) for c in self._categorical]
        self._place = {c["name"]: i for i, c in enumerate(self._categorical)}
        self._pairs = {i: self._pairs_known(i) for i, c in enumerate(self._categorical) if "of" in c}
        embeddings = {c["name"]: nn.Embedding(len(c["vocabulary"]) + 1, c["dim"]) for c in self._categorical}
        for embedding in embeddings.values():
            nn.init.normal_(embedding.weight, std=0.05)
        self.embeddings = nn.ModuleDict(embeddings)
        width = sum(c["dim"] for c in self._categorical) + 2 * len(self._numeric)
        layers: list[nn.Module] = []
        for size in self.config["hidden"]:
            layers += [nn.Linear(width, size), nn.SiLU(), nn.Dropout(self.config.get("dropout", 0.0))]
            width = size
        self.head = nn.Sequential(*layers, nn.Linear(width, 1))

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> TabularNetwork:
        """The network that a model's manifest describes, its weights still random."""
        return cls(config)

    def encode(self, columns: Columns) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Columns of N rows to (codes_NC, values_NV, absent_NV); no loop over rows of numpy columns.

        A column that is missing counts as absent throughout.
        """
        columns = self._with_calendar(columns)
        rows = len(next(iter(columns.values()))) if columns else 0
        codes = np.zeros((rows, len(self._categorical)), dtype=np.int64)
        for i, (declared, known) in enumerate(zip(self._categorical, self._codes, strict=True)):
            breathe()
            if i in self._pairs:
                first, second = (codes[:, self._place[name]] for name in declared["of"])
                codes[:, i] = self._pairs[i].codes(first, second)
            elif declared["name"] in columns:
                codes[:, i] = _looked_up(columns[declared["name"]], known)
        values = np.full((rows, len(self._numeric)), np.nan)
        for i, (declared, knots) in enumerate(zip(self._numeric, self._knots, strict=True)):
            breathe()
            if declared["name"] in columns:
                values[:, i] = _scaled(_floats(columns[declared["name"]]), declared, knots)
        breathe()
        absent = ~np.isfinite(values)
        values[absent] = 0.0
        return (
            torch.from_numpy(codes),
            torch.from_numpy(values.astype(np.float32)),
            torch.from_numpy(absent.astype(np.float32)),
        )

    def forward(self, codes: torch.Tensor, values: torch.Tensor, absent: torch.Tensor) -> torch.Tensor:
        """Logits (N,)."""
        breathe()
        parts = [embedding(codes[:, i]) for i, embedding in enumerate(self.embeddings.values())]
        return self.head(torch.cat([*parts, values, absent], dim=1)).squeeze(1)

    def predict(self, columns: Columns) -> np.ndarray:
        """Probabilities (N,) as float64."""
        was_training = self.training
        self.eval()
        device = next(self.parameters()).device
        with torch.inference_mode():
            chance = torch.sigmoid(self(*(t.to(device) for t in self.encode(columns))))
        self.train(was_training)
        return chance.double().cpu().numpy()

    def take_over(self, weights: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> bool:
        """Start from another network's weights, words matched by name. False where the shapes differ.

        A vocabulary may have grown or lost words: known words keep their vectors, new ones start afresh.
        """
        own = self.state_dict()
        theirs = {c["name"]: c["vocabulary"] for c in config["categorical"]}
        taken = dict(own)
        for name, tensor in own.items():
            other = weights.get(name)
            if other is None:
                return False
            column = name.split(".")[1] if name.startswith("embeddings.") else None
            if column is not None:
                if other.shape[1] != tensor.shape[1]:
                    return False
                merged = tensor.clone()
                merged[0] = other[0]
                place = _codes(theirs.get(column, []))
                for word, code in self._codes[self._place[column]].items():
                    if word in place:
                        merged[code] = other[place[word]]
                taken[name] = merged
            elif other.shape != tensor.shape:
                return False
            else:
                taken[name] = other
        self.load_state_dict(taken)
        return True

    def _pairs_known(self, i: int) -> _Pairs:
        breathe()
        first, second = (self._codes[self._place[name]] for name in self._categorical[i]["of"])
        known = {
            (first[one], second[other]): code
            for (one, other), code in self._codes[i].items()
            if one in first and other in second
        }
        return _Pairs(known, width=len(second) + 1)

    def _with_calendar(self, columns: Columns) -> Columns:
        if self._calendar is None or self._calendar["column"] not in columns:
            return columns
        return {**columns, **calendar(columns[self._calendar["column"]], zone=self._calendar["zone"])}


class _Pairs:
    """Codes of pairs by the codes of their parts.

    It takes room for the pairs that there are: a table of all that there could be would grow with the product
    of two vocabularies, which a small model may have.
    """

    def __init__(self, known: Mapping[tuple[int, int], int], *, width: int) -> None:
        """`known` holds parts' codes from 1; `width` is one more than the second's largest."""
        self._width = width
        places = np.array([one * width + other for one, other in known], dtype=np.int64)
        order = np.argsort(places)
        # One more behind all others, which no pair has: whatever is looked for has a place.
        self._places = np.append(places[order], np.iinfo(np.int64).max)
        self._found = np.append(np.array(list(known.values()), dtype=np.int64)[order], 0)

    def codes(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Codes (N,) of N pairs; 0 for one that is not known, or whose part is not."""
        wanted = first * self._width + second
        at = np.searchsorted(self._places, wanted)
        return np.where(self._places[at] == wanted, self._found[at], 0)


def calendar(times_ms: Any, *, zone: str) -> dict[str, np.ndarray]:
    """`hour`, `weekday` (Monday is 0) and `minute_of_day` of epoch ms, in a time zone.

    The zone's offset is looked up once for each hour that occurs, not for each row.
    """
    times = np.asarray(_floats(times_ms), dtype=np.float64)
    known = np.where(np.isfinite(times), times, 0.0).astype(np.int64)
    hours, inverse = np.unique(known // _HOUR_MS, return_inverse=True)
    where = ZoneInfo(zone)
    offsets = np.array([_offset_ms(int(hour), where) for hour in hours], dtype=np.int64)
    local = known + offsets[inverse] if len(hours) else known
    return {
        "hour": local // _HOUR_MS % 24,
        # 1 January 1970 was a Thursday.
        "weekday": (local // _DAY_MS + 3) % 7,
        "minute_of_day": (local // 60_000 % 1440).astype(np.float64),
    }


def _offset_ms(hour: int, where: ZoneInfo) -> int:
    """What local time adds to UTC at the start of an hour since 1970."""
    offset = datetime.fromtimestamp(hour * 3600, where).utcoffset()
    assert offset is not None  # the time is aware
    return int(offset.total_seconds() * 1000)


def _codes(vocabulary: Sequence[Any]) -> dict[Any, int]:
    """Code of each word, from 1; pairs come as lists once they have been JSON."""
    breathe()
    codes = range(1, len(vocabulary) + 1)
    try:
        return dict(zip(vocabulary, codes, strict=True))
    except TypeError:  # lists are no keys
        return {
            tuple(w) if isinstance(w, list) else w: code for w, code in zip(vocabulary, codes, strict=True)
        }


def _looked_up(column: Any, known: Mapping[Any, int]) -> np.ndarray:
    """Codes (N,) of a column of words; 0 for null and for words unknown."""
    if isinstance(column, np.ndarray) and column.dtype != object:
        words, inverse = np.unique(column, return_inverse=True)
        return np.array([known.get(word, 0) for word in words.tolist()], dtype=np.int64)[inverse]
    return np.array([known.get(word, 0) for word in _listed(column)], dtype=np.int64)


def _listed(column: Any) -> Sequence[Any]:
    for method in ("to_list", "tolist"):
        if hasattr(column, method):
            return getattr(column, method)()
    return column


def _scaled(values: np.ndarray, declared: Mapping[str, Any], knots: np.ndarray | None) -> np.ndarray:
    """Values on the scale that a numeric column declares; NaN stays NaN, infinity becomes it."""
    values = np.where(np.isfinite(values), values, np.nan)
    if knots is not None:
        return np.interp(values, knots, _ranks(len(knots)))
    return np.clip((values - declared["mean"]) / declared["scale"], -_CLIP, _CLIP)


@lru_cache
def _ranks(count: int) -> np.ndarray:
    """Where so many quantiles stand on the common scale."""
    return np.linspace(-_SPREAD, _SPREAD, count)


def _floats(column: Any) -> np.ndarray:
    """Any column of numbers as float64, absent ones as NaN."""
    array = column.to_numpy() if hasattr(column, "to_numpy") else np.asarray(column)
    if array.dtype == object:
        array = np.array([np.nan if v is None else v for v in array])
    return array.astype(np.float64)
