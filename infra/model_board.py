"""Every model as people want to see it: versions, the gate's findings, whose key signed, who adopted it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec

from infra.kafka.connection import Connection
from infra.kafka.read import read_to_end
from schemas import topics
from schemas.contract import Announcement
from schemas.envelope import NotAnAnnouncement, open_record, unwrap
from schemas.errors import Rejected, Retryable
from schemas.model import (
    AdoptionRefused,
    CanaryPromoted,
    CanaryPublished,
    CanaryWithdrawn,
    CurrentModel,
    Manifest,
    ModelAdopted,
    ModelFresh,
    ModelStale,
    RolledBack,
    SignedModel,
)
from schemas.signature import SCHEMA, TrustedKeys, schema_of

_Weights = tuple[str, int, str]


@dataclass(slots=True)
class Models:
    """A fold over the topics: in whatever order its events come, and however often, it ends the same."""

    _said: dict[_Weights, tuple[CurrentModel, bool]] = field(default_factory=dict)
    _adopted: dict[tuple[str, str], ModelAdopted] = field(default_factory=dict)
    _refused: dict[tuple[_Weights, str], AdoptionRefused] = field(default_factory=dict)
    _stale: dict[tuple[str, str], ModelStale] = field(default_factory=dict)
    _fresh_ms: dict[tuple[str, str], int] = field(default_factory=dict)
    _canaries: dict[str, CanaryPublished] = field(default_factory=dict)
    _trial_ends: dict[str, tuple[int, str, str]] = field(default_factory=dict)

    def note(self, event: Announcement, *, trusted: bool) -> None:  # noqa: PLR0912  (a case an event type)
        """Take in one event.

        Args:
            trusted: of a model's version: whether a key signed it that is trusted here.
        """
        match event:
            case CanaryPublished(name=name, manifest=manifest):
                known = self._canaries.get(name)
                if trusted and (known is None or manifest.version > known.manifest.version):
                    self._canaries[name] = event
            case CanaryWithdrawn(name=name, version=version):
                self._end_trial(name, version, "withdrawn", event.reason)
            case CurrentModel(name=name, manifest=manifest):
                key = (name, manifest.version, manifest.artifact.sha256)
                if trusted or key not in self._said:
                    self._said[key] = (event, trusted)
                if isinstance(event, CanaryPromoted) and trusted:
                    self._end_trial(name, event.canary_version, "promoted", event.reason)
            case ModelAdopted() if event.canary:
                pass  # what the service answers all other requests with stays as it was
            case ModelAdopted():
                known = self._adopted.get((event.name, event.service))
                if known is None or event.adopted_ms >= known.adopted_ms:
                    self._adopted[event.name, event.service] = event
            case ModelStale():
                stale = self._stale.get((event.name, event.service))
                if stale is None or event.noted_ms >= stale.noted_ms:
                    self._stale[event.name, event.service] = event
            case ModelFresh():
                key = event.name, event.service
                self._fresh_ms[key] = max(event.fresh_ms, self._fresh_ms.get(key, 0))
            case AdoptionRefused():
                self._refused[(event.name, event.version, event.sha256), event.service] = event
            case _:
                pass

    def _end_trial(self, name: str, version: int, outcome: str, reason: str) -> None:
        if version >= self._trial_ends.get(name, (0, "", ""))[0]:
            self._trial_ends[name] = version, outcome, reason

    def _trial(self, name: str) -> dict[str, Any] | None:
        """The newest canary of a model, and what became of it."""
        event = self._canaries.get(name)
        if event is None or event.manifest.canary is None:
            return None
        version = event.manifest.version
        ended = self._trial_ends.get(name, (0, "", ""))
        outcome, reason = ended[1:] if ended[0] == version else ("on trial", "")
        share = event.manifest.canary.share
        return {"version": version, "share": share, "state": outcome, "reason": reason}

    def forget(self, most: int) -> None:
        """Keep the newest so many versions of each model, and what services said of those."""
        by_name: dict[str, list[_Weights]] = {}
        for key in sorted(self._said, key=lambda key: -key[1]):
            by_name.setdefault(key[0], []).append(key)
        if all(len(keys) <= most for keys in by_name.values()):
            return
        kept = {key for keys in by_name.values() for key in keys[:most]}
        self._said = {key: said for key, said in self._said.items() if key in kept}
        self._refused = {at: said for at, said in self._refused.items() if at[0] in kept}

    def manifest(self, name: str, version: int) -> Manifest | None:
        """Of a version, preferably one that a trusted key signed; None where none is known."""
        found = [said for (n, v, _), said in self._said.items() if (n, v) == (name, version)]
        return max(found, key=lambda said: said[1])[0].manifest if found else None

    def rows(self, name: str | None = None) -> list[dict[str, Any]]:
        """All versions, of one model or of all, the newest of each model first.

        `live` is the newest that a trusted key signed; beside it stands the newest `canary`, and its state.
        `adopted_by` names the services that answer with it now, as far as they have said; `stale_at` says why
        it is stale at some of those; `refused_by` names services that would not take it.
        """
        live: dict[str, int] = {}
        for (model, version, _), (_, trusted) in self._said.items():
            if trusted:
                live[model] = max(version, live.get(model, 0))
        keys = sorted(self._said, key=lambda key: (key[0], -key[1], key[2]))
        return [self._row(key, live.get(key[0])) for key in keys if name in {None, key[0]}]

    def _row(self, key: _Weights, live: int | None) -> dict[str, Any]:
        event, trusted = self._said[key]
        name, version, sha256 = key
        manifest, back = event.manifest, event if isinstance(event, RolledBack) else None
        adopted = [e for e in self._adopted.values() if (e.name, e.version, e.sha256) == key]
        return {
            "name": name,
            "version": version,
            "live": trusted and version == live,
            "sha256": sha256,
            "published_ms": manifest.published_ms,
            "weights_of_version": back.to_artifact_of_version if back else version,
            "reason": back.reason if back else "",
            "canary": self._trial(name) if trusted and version == live else None,
            "champion": _measures(manifest.champion),
            "challenger": _measures(manifest.challenger),
            "gate": _gate(event),
            "signed_by": [each.key_id for each in event.signatures],
            "trusted": trusted,
            "adopted_by": {e.service: e.adopted_ms for e in sorted(adopted, key=lambda e: e.service)},
            "stale_at": {e.service: why for e in adopted if (why := self._why_stale(e))},
            "refused_by": {
                service: e.reason for (what, service), e in sorted(self._refused.items()) if what == key
            },
        }

    def _why_stale(self, adopted: ModelAdopted) -> str:
        """What the service said of it, unless it said later that it is fresh, or adopted anew."""
        key = adopted.name, adopted.service
        stale = self._stale.get(key)
        if stale is None or stale.noted_ms < max(adopted.adopted_ms, self._fresh_ms.get(key, 0)):
            return ""
        return stale.why


def _measures(scores: Any) -> dict[str, Any] | None:
    if scores is None:
        return None
    return {each: getattr(scores, each) for each in ("rows", "auc", "log_loss", "accuracy")}


def _gate(event: CurrentModel) -> dict[str, Any] | None:
    comparison = event.manifest.comparison
    if comparison is None:
        return None
    return {
        "metric": comparison.metric,
        "confidence": comparison.confidence,
        **msgspec.to_builtins(comparison.overall),
    }


async def read_models(connection: Connection, *, trusted: TrustedKeys | None) -> Models:
    """What the topics say of models now; without keys no version counts as trusted."""
    models = Models()
    names = (topics.MODELS.name, topics.MODELS_CURRENT.name)
    async for record in read_to_end(connection, dict.fromkeys(names)):
        try:
            envelope = open_record(record.key, record.value, record.headers)
            event = unwrap(envelope)
        except NotAnAnnouncement:
            continue
        ours = isinstance(event, SignedModel) and signed(envelope.data, trusted, schema_of(event))
        models.note(event, trusted=ours)
    return models


def signed(event: bytes, trusted: TrustedKeys | None, schema: str = SCHEMA) -> bool:
    """Whether a trusted key signed the model in these bytes of an event."""
    if trusted is None:
        return False
    try:
        trusted.manifest(event, schema)
    except (Rejected, Retryable):
        return False
    return True
