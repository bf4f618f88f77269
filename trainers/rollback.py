"""Make an older model current again: one more event, under a new version, signed like any other."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from infra.kafka.connection import Connection
from infra.settings import Settings
from schemas import topics
from schemas.errors import Rejected
from schemas.model import Manifest, RolledBack
from trainers.artifact import ENDING
from trainers.bulletin import Bulletin
from trainers.keys import KeyFolder
from trainers.publishing import publishing
from trainers.stores import Stores


class CannotRollBack(Rejected):
    """There is nothing to go back to, or it is live already."""


async def roll_back(
    settings: Settings,
    connection: Connection,
    *,
    name: str,
    to_version: int,
    reason: str,
    now_ms: Callable[[], int] = lambda: int(time.time() * 1000),
) -> RolledBack:
    """Publish a model's older version anew, in the history and as the current one.

    Run it where the trainer runs: the signing keys are there. Should it die between the two topics, the
    trainer says the rest, as it does for a model of its own.

    Raises:
        CannotRollBack: there is no such version, it is live already, or its artifact is gone.
        ArtifactCorrupt: its artifact is missing, or damaged.
        StoreAway, StoreNotWritable: the store does not answer, or refuses.
        InvalidConfiguration: no key signs here.
        PublishingBusy: a trainer does not come to an end with publishing.
    """
    keys = KeyFolder(settings.paths.signing_keys)
    stores = Stores.of(settings)
    bulletin = Bulletin(connection, now_ms=now_ms, trusted=keys.trusted())
    bulletin.registry.remembered = name
    async with publishing(settings.paths.jobs):
        await bulletin.start()
        try:
            champion = bulletin.registry.champion(name)
            old = _target(name, champion, bulletin.registry.versions, to_version)
            artifact = old.artifact
            await stores.bring(artifact.sha256)
            await stores.publish(artifact.sha256)
            if stores.address is not None:
                uri = f"{stores.address}{artifact.sha256}{ENDING}"
                artifact = msgspec.structs.replace(artifact, uri=uri)
            assert champion is not None
            manifest = msgspec.structs.replace(
                old, artifact=artifact, version=bulletin.registry.next_version(name), published_ms=now_ms()
            )
            event = keys.signed(
                RolledBack(
                    name=name,
                    from_version=champion.version,
                    to_artifact_of_version=to_version,
                    reason=reason,
                    manifest=manifest,
                    rolled_back_ms=now_ms(),
                )
            )
            await bulletin.say(topics.MODELS.name, event)
            await bulletin.say(topics.MODELS_CURRENT.name, event)
        finally:
            await bulletin.stop()
    return event


def _target(name: str, champion: Manifest | None, versions: dict[int, Manifest], version: int) -> Manifest:
    if champion is None:
        raise CannotRollBack(
            f"no model {name!r} was ever published here under a trusted key; `tidemill models` lists them"
        )
    if version not in versions:
        known = ", ".join(str(each) for each in sorted(versions)[-20:])
        raise CannotRollBack(f"{name} has no version {version}; its history has {known}")
    old = versions[version]
    if old.artifact.sha256 == champion.artifact.sha256:
        raise CannotRollBack(
            f"{name} version {champion.version}, which is live, has the very weights of version {version}"
        )
    return old
