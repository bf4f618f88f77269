"""A model's published versions, from its topic or from a file of its events."""

from __future__ import annotations

from pathlib import Path

import msgspec

from infra.kafka.connection import Connection
from infra.kafka.read import read_to_end
from infra.why import NothingKnown
from schemas import topics
from schemas.envelope import NotAnAnnouncement, open_record, unwrap
from schemas.errors import InvalidConfiguration
from schemas.model import CurrentModel, Manifest


async def published(connection: Connection) -> list[Manifest]:
    """Manifests of all models on the topic, the newest last; a repeat counts once."""
    found: dict[str, Manifest] = {}
    async for record in read_to_end(connection, {topics.MODELS.name: None}):
        try:
            envelope = open_record(record.key, record.value, record.headers)
            event = unwrap(envelope)
        except NotAnAnnouncement:
            continue
        if isinstance(event, CurrentModel):
            found.setdefault(envelope.id, event.manifest)
    return list(found.values())


def published_in(file: Path) -> list[Manifest]:
    """Manifests in a file of events, one JSON object a line, as `tidemill watch --json` prints them.

    Lines that are no model's are passed over.

    Raises:
        InvalidConfiguration: it cannot be read, or a line is no JSON.
    """
    found = []
    try:
        lines = file.read_bytes().splitlines()
    except OSError as error:
        raise InvalidConfiguration(f"cannot read the events in {file}: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            event = msgspec.json.decode(line, type=dict)
        except msgspec.DecodeError as error:
            raise InvalidConfiguration(f"{file}:{number} is no JSON object: {error}") from error
        data = event.get("data", event)
        if isinstance(data, dict) and "manifest" in data:
            try:
                found.append(msgspec.convert(data["manifest"], Manifest))
            except msgspec.ValidationError as error:
                raise InvalidConfiguration(f"{file}:{number} holds no model's manifest: {error}") from error
    return found


def pick(manifests: list[Manifest], model: str, version: int | None) -> Manifest:
    """That version of a model, or its newest.

    Raises:
        NothingKnown: there is none.
    """
    own = {manifest.version: manifest for manifest in manifests if manifest.name == model}
    if not own:
        names = ", ".join(sorted({manifest.name for manifest in manifests})) or "none yet"
        raise NothingKnown(f"no model {model!r} has been published; published are: {names}")
    if version is None:
        return own[max(own)]
    if version not in own:
        raise NothingKnown(
            f"model {model} has no version {version}; it has {', '.join(map(str, sorted(own)))}"
        )
    return own[version]


def by_weights(manifests: list[Manifest], model: str, sha256: str | None) -> Manifest | None:
    """The first version of a model with those weights, or None."""
    return next((m for m in manifests if m.name == model and m.artifact.sha256 == sha256), None)
