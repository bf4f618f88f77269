"""Dead letters as a person reads them: origin, reason, and the beginning of their bytes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from infra.page.recent import Recent
from schemas.dead_letter import DeadLetter, RecordRedriven

_KEPT = 200
_SHOWN_BYTES = 2_048
_NAMES = 200


@dataclass(frozen=True, slots=True)
class _Letter:
    said: dict[str, Any]
    offset: int


class Letters:
    """The newest letters, and counts of all."""

    def __init__(self) -> None:
        self.total = 0
        self._reasons: Counter[str] = Counter()
        self._rules: Counter[str] = Counter()
        self._letters: Recent[str, _Letter] = Recent(_KEPT)
        self._again: Recent[str, dict[str, Any]] = Recent(_KEPT)

    def note(self, event: DeadLetter | RecordRedriven, *, offset: int) -> None:
        """Take in one event; `offset` is that of its record on the dead letters' topic."""
        if isinstance(event, RecordRedriven):
            self._again[event.letter_id] = {"offset": event.to_offset, "at_ms": event.redriven_ms}
            return
        self.total += 1
        self._reasons[event.reason] += 1
        # Rules are of pipelines that somebody wrote, so few; were they not, the rest counts as one.
        self._rules[event.rule if event.rule in self._rules or len(self._rules) < _NAMES else "others"] += 1
        self._letters[event.event_id()] = _Letter(_said(event), offset)

    def place(self, letter_id: str) -> int | None:
        """Offset of a letter on the dead letters' topic; None for one that is not among the newest."""
        found = self._letters.get(letter_id)
        return None if found is None else found.offset

    def as_json(self) -> dict[str, Any]:
        """For the page and for programs."""
        return {
            "total": self.total,
            "by_reason": dict(self._reasons.most_common()),
            "by_rule": dict(self._rules.most_common(50)),
            "letters": [
                {**letter.said, "redriven": self._again.get(letter.said["id"])}
                for letter in self._letters.newest(_KEPT)
            ],
        }


def _said(letter: DeadLetter) -> dict[str, Any]:
    value = letter.record_value
    shown = (value or b"")[:_SHOWN_BYTES]
    try:
        text, form = shown.decode("utf-8"), "text"
    except UnicodeDecodeError as error:
        if len(shown) - error.start < 4 and value is not None and len(value) > len(shown):
            text, form = shown[: error.start].decode("utf-8"), "text"  # cut within a character
        else:
            text, form = shown.hex(" "), "hex"
    return {
        "id": letter.event_id(),
        "pipeline": letter.pipeline,
        "topic": letter.topic,
        "partition": letter.partition,
        "offset": letter.offset,
        "row": letter.row,
        "reason": letter.reason,
        "rule": letter.rule,
        "detail": letter.detail[:2_000],
        "at_ms": letter.timestamp_ms,
        "key": None if letter.record_key is None else letter.record_key[:200].decode("utf-8", "replace"),
        "size_bytes": None if value is None else len(value),
        "form": form,
        "bytes": text,
    }
