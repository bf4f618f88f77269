"""What the conditions may look back on: a fold over closed windows and what was decided on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from schemas.decision import Evaluation
from schemas.profile import Profile
from schemas.window import Window, WindowClosed
from streams.summary.profile import merge_profiles

_SCORES = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """What a window is held against: a profile, and in words whose."""

    name: str
    profile: Profile


@dataclass(frozen=True, kw_only=True, slots=True)
class History:
    """All windows closed before, as far as a condition may ask; what is "since" is since the last yes.

    Attributes:
        yeses: how many there were.
        tags_since_yes: rows by tag.
        trained: span that the last yes trains on.
        trained_on: profile of that span's windows.
        scores: of each condition by its text, the last few, the newest last.
        states: what a condition carries from window to window, by its text.
        recent: newest windows with their profiles, the newest last.
        gathered: windows of spans that conditions name, by its name, until the span is over.
        named: references of those that are over, by their name.
        keep: how many recent windows are remembered.
        spans: the named spans, as (name, start_ms, end_ms).
    """

    windows: int = 0
    yeses: int = 0
    windows_since_yes: int = 0
    rows_since_yes: int = 0
    labelled_since_yes: int = 0
    last_yes_end_ms: int | None = None
    tags_since_yes: Mapping[str, int] = field(default_factory=dict)
    trained: Window | None = None
    trained_on: Reference | None = None
    scores: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    states: Mapping[str, str] = field(default_factory=dict)
    recent: tuple[tuple[Window, Profile], ...] = ()
    gathered: Mapping[str, tuple[tuple[Window, Profile], ...]] = field(default_factory=dict)
    named: Mapping[str, Reference] = field(default_factory=dict)
    keep: int = 0
    spans: tuple[tuple[str, int, int], ...] = ()

    def after(
        self,
        window: WindowClosed,
        *,
        yes: bool,
        evaluations: Sequence[Evaluation] = (),
        profile: Profile | None = None,
        training: Window | None = None,
    ) -> History:
        """The history once that window has been decided on.

        Args:
            training: the span of event time that a yes trains on.
        """
        following = replace(
            self,
            windows=self.windows + 1,
            yeses=self.yeses + yes,
            windows_since_yes=0 if yes else self.windows_since_yes + 1,
            rows_since_yes=0 if yes else self.rows_since_yes + window.summary.rows,
            labelled_since_yes=0 if yes else self.labelled_since_yes + window.labelled,
            last_yes_end_ms=window.window.end_ms if yes else self.last_yes_end_ms,
            tags_since_yes={} if yes else self._tags_with(window, profile),
            scores=self._scores_with(evaluations),
            states={**self.states, **{e.condition: e.state for e in evaluations if e.state}},
        )
        if profile is not None:
            following = following._remember(window.window, profile)
        if yes and training is not None:
            following = replace(following, trained=training, trained_on=following._profile_of(training))
        return following

    def _tags_with(self, window: WindowClosed, profile: Profile | None) -> Mapping[str, int]:
        looked_back = Counter(profile.tags) if profile is not None else Counter()
        return dict(Counter(self.tags_since_yes) + Counter(window.summary.tags) + looked_back)

    def _scores_with(self, evaluations: Sequence[Evaluation]) -> Mapping[str, tuple[float, ...]]:
        new = {e.condition: e.score for e in evaluations if e.score is not None}
        return {**self.scores, **{c: (*self.scores.get(c, ()), s)[-_SCORES:] for c, s in new.items()}}

    def _remember(self, window: Window, profile: Profile) -> History:
        gathered, named = dict(self.gathered), dict(self.named)
        for name, start_ms, end_ms in self.spans:
            if start_ms <= window.start_ms and window.end_ms <= end_ms and name not in named:
                gathered[name] = (*gathered.get(name, ()), (window, profile))
            over = name in gathered and window.end_ms >= end_ms
            if over and (reference := _reference(gathered.pop(name), name)) is not None:
                named[name] = reference
        recent = (*self.recent, (window, profile))
        return replace(self, recent=recent[-self.keep :] if self.keep else (), gathered=gathered, named=named)

    def _profile_of(self, span: Window) -> Reference | None:
        inside = [(w, p) for w, p in self.recent if span.start_ms <= w.start_ms and w.end_ms <= span.end_ms]
        return _reference(inside, "the windows of the last training")

    def newest(self, windows: int) -> Reference | None:
        """The last n windows together; None without any."""
        return _reference(self.recent[-windows:], f"the last {windows} windows")


def _reference(windows: Sequence[tuple[Window, Profile]], name: str) -> Reference | None:
    chosen: list[tuple[Window, Profile]] = []
    from_ms: dict[str, int] = {}
    # Of windows that overlap, the newest: a row must not count twice. Sessions of two keys share no row.
    for window, profile in sorted(windows, key=lambda each: each[0].end_ms, reverse=True):
        if window.end_ms <= from_ms.get(window.key, window.end_ms):
            chosen.append((window, profile))
            from_ms[window.key] = window.start_ms
    if not chosen:
        return None
    first, last = min(w.start_ms for w, _ in chosen), chosen[0][0].end_ms
    return Reference(
        name=f"{name}, {Window(first, last)}", profile=merge_profiles([p for _, p in reversed(chosen)])
    )
