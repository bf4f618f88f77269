"""Conditions on how much has come and how long it has been: windows, rows, event time."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta

from schemas.decision import Evaluation
from streams.declared import InvalidPipeline, Place, here
from streams.duration import to_ms
from streams.trigger.condition import Answer, Condition, Look


@dataclass(frozen=True)
class Threshold(Condition):
    """A score of the history, against a threshold that it must reach."""

    text: str
    threshold: float
    unit: str
    place: Place = field(default_factory=here, compare=False)

    def score(self, look: Look) -> float | None:
        """Where it stands; None where there was no training yet."""
        raise NotImplementedError

    def pace(self, look: Look) -> float | None:
        """By how much the score grows a window, as far as one can tell."""
        raise NotImplementedError

    fires_first = True
    """What it says while there was no training yet."""

    def evaluate(self, look: Look) -> Answer:
        score = self.score(look)
        if score is None:
            fired, said = self.fires_first, "no training yet"
        else:
            fired, said = score >= self.threshold, f"{score:g} of {self.threshold:g} {self.unit}"
        pace = None if score is None else self.pace(look)
        forecast = 0.0 if fired else None
        if not fired and score is not None and pace is not None and pace > 0:
            forecast = (self.threshold - score) / pace
        return Answer(
            fired,
            [
                Evaluation(
                    condition=self.text,
                    fired=fired,
                    score=score,
                    threshold=self.threshold,
                    reason=said,
                    forecast_windows=forecast,
                )
            ],
        )


class _Windows(Threshold):
    def pace(self, look: Look) -> float:  # noqa: ARG002
        return 1.0


class Every(_Windows):
    def score(self, look: Look) -> float:
        return float(look.history.windows_since_yes + 1)


class Seen(_Windows):
    def score(self, look: Look) -> float:
        return float(look.history.windows + 1)


class First(_Windows):
    def score(self, look: Look) -> float:
        return float(look.history.windows + 1)

    def evaluate(self, look: Look) -> Answer:
        if look.history.last_yes_end_ms is None:
            return super().evaluate(look)
        said = Evaluation(
            condition=self.text,
            fired=False,
            score=self.score(look),
            threshold=self.threshold,
            reason="there was a first training",
        )
        return Answer(False, [said])


class Rows(Threshold):
    def score(self, look: Look) -> float:
        return float(look.history.rows_since_yes + look.window.summary.rows)

    def pace(self, look: Look) -> float:
        return self.score(look) / (look.history.windows_since_yes + 1)


class Labelled(Threshold):
    def score(self, look: Look) -> float:
        return float(look.history.labelled_since_yes + look.window.labelled)

    def pace(self, look: Look) -> float:
        return self.score(look) / (look.history.windows_since_yes + 1)


class Cooldown(Threshold):
    def score(self, look: Look) -> float | None:
        if look.history.last_yes_end_ms is None:
            return None
        return (look.window.window.end_ms - look.history.last_yes_end_ms) / 1000

    def pace(self, look: Look) -> float:
        return (look.window.window.end_ms - look.window.window.start_ms) / 1000


class Stale(Threshold):
    fires_first = False

    def score(self, look: Look) -> float | None:
        trained = look.history.trained
        newest_ms = look.history.last_yes_end_ms if trained is None else trained.end_ms
        return None if newest_ms is None else (look.window.window.end_ms - newest_ms) / 1000

    def pace(self, look: Look) -> float:
        return (look.window.window.end_ms - look.window.window.start_ms) / 1000


def every(*, windows: int) -> Condition:
    """Every n closed windows since the last training was asked for."""
    return Every(f"every(windows={_at_least_one('every', windows)})", windows, "windows")


def seen(*, windows: int) -> Condition:
    """Once n windows have closed since the beginning: enough history for a first model."""
    return Seen(f"seen(windows={_at_least_one('seen', windows)})", windows, "windows")


def first(*, windows: int) -> Condition:
    """Once n windows have closed, until a first training was asked for; never again.

    A trigger on drift or bias needs one: before a training there is nothing to hold a window against.
    """
    return First(f"first(windows={_at_least_one('first', windows)})", windows, "windows")


def rows(count: int) -> Condition:
    """Once the windows closed since the last training hold n rows."""
    return Rows(f"rows({_at_least_one('rows', count)})", count, "rows")


def labelled(*, rows: int) -> Condition:
    """Once the windows closed since the last training hold n labelled rows."""
    return Labelled(f"labelled(rows={_at_least_one('labelled', rows)})", rows, "labelled rows")


def cooldown(duration: str) -> Condition:
    """At least this much event time since the last training was asked for; before the first it fires."""
    return Cooldown(f"cooldown({duration})", to_ms(duration) / 1000, "s since the last training")


def elapsed(duration: str) -> Condition:
    """Every so much event time since the last training was asked for: a `cooldown` that is the clock."""
    return Cooldown(f"elapsed({duration})", to_ms(duration) / 1000, "s since the last training")


def stale(after: str) -> Condition:
    """The newest data that the last training saw are this old, in event time: the longest allowed staleness.

    Before the first training it does not fire.
    """
    age = timedelta(milliseconds=to_ms(after)).total_seconds()
    return Stale(f"stale({after})", age, "s since the end of the last training's data")


def _at_least_one(name: str, number: int) -> int:
    if number < 1:
        raise InvalidPipeline(here(), f"{name}: {number} would always fire; write at least 1")
    return number
