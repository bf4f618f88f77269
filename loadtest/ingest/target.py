"""What is asked of a figure, and whether it is met."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """One figure held against a bound; `unit` as a person reads it behind the number."""

    what: str
    found: float
    at_most: float | None = None
    at_least: float | None = None
    unit: str = ""

    @property
    def met(self) -> bool:
        """Whether the figure is within its bound."""
        return (self.at_most is None or self.found <= self.at_most) and (
            self.at_least is None or self.found >= self.at_least
        )

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        bounds = {name: value for name, value in asdict(self).items() if value not in (None, "")}
        return {**bounds, "met": self.met}


def table_of(targets: list[Target]) -> Table:
    """For a person."""
    table = Table("", "found", "asked", "")
    for each in targets:
        asked = f"at most {each.at_most:g}" if each.at_least is None else f"at least {each.at_least:g}"
        table.add_row(
            each.what,
            f"{each.found:,.2f}{each.unit}",
            f"{asked}{each.unit}",
            "met" if each.met else "[red]not met[/]",
        )
    return table
