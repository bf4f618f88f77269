"""The question that all models of the measurement are asked. Apart from them: whoever asks needs no torch."""

from __future__ import annotations

from typing import Any

WORDS = {"carrier": 16, "origin": 3, "dest": 105, "tailnum": 4000}
"""Columns of words, and how many there are of each."""
NUMBERS = 60
"""Columns of numbers."""


def question(rows: int) -> dict[str, list[Any]]:
    """Columns of so many rows."""
    asked: dict[str, list[Any]] = {
        name: [f"{name}-{row * 7 % count}" for row in range(rows)] for name, count in WORDS.items()
    }
    return asked | {
        f"number_{number}": [number / 20 - row for row in range(rows)] for number in range(NUMBERS)
    }
