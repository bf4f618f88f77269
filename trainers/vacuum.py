"""The end of artifacts that nobody can still ask for: trials, refused challengers, versions long gone by.

What is needed is `trainers.needed`'s to say. Nobody publishes or rolls back on this machine meanwhile: the
right to publish is held, and let go of after so many removals. An artifact that was put there a short while
ago stays, whoever put it: a trainer elsewhere may be about to tell of it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from aiokafka.errors import KafkaError

from infra.kafka.connection import Connection
from infra.logging import logger
from infra.settings_model import Store
from schemas.errors import Rejected, Retryable
from schemas.signature import TrustedKeys
from trainers.artifact import Kept
from trainers.needed import Needed, needed, unsaid_by
from trainers.publishing import publishing
from trainers.stores import Place, Stores

_MOST_AT_ONCE = 200
"""Removals for which publishing waits."""

log = logger(__name__)


class NotThisStore(Rejected):
    """No event tells of a model, or none of the store's: what is there may be another cluster's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Retention:
    """What stays, and how often it is looked at; see the section `store`."""

    keep_ms: int
    keep_versions: int
    every_s: float | None = None

    @classmethod
    def of(cls, store: Store, *, keep_hours: int | None = None) -> Retention:
        """That of the settings, or with other hours."""
        return cls(
            keep_ms=(keep_hours or store.keep_hours) * 3_600_000,
            keep_versions=store.keep_versions,
            every_s=store.vacuum_interval_ms / 1000 if store.vacuum else None,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Vacuumed:
    """What went from one place, or would go; and why what stayed did, by SHA-256."""

    place: str
    removed: list[Kept]
    stayed: dict[str, str]
    leftovers: int = 0
    """Files of writes that a kill cut off, which never had an artifact's name."""

    @property
    def removed_bytes(self) -> int:
        """Sizes of all that went."""
        return sum(each.size_bytes for each in self.removed)


def unneeded(
    there: list[Kept], reasons: Mapping[str, str], *, now_ms: int, keep_ms: int
) -> tuple[list[Kept], dict[str, str]]:
    """(what is to go, why the rest stays): a pure function."""
    gone: list[Kept] = []
    stayed: dict[str, str] = {}
    for each in there:
        if (reason := reasons.get(each.sha256)) is not None:
            stayed[each.sha256] = reason
        elif each.modified_ms > now_ms - keep_ms:
            stayed[each.sha256] = "it was put there within the retention"
        else:
            gone.append(each)
    return gone, stayed


async def vacuum(
    connection: Connection,
    stores: Stores,
    retention: Retention,
    *,
    jobs: Path,
    trusted: TrustedKeys | None,
    dry_run: bool = False,
    now_ms: Callable[[], int] = lambda: int(time.time() * 1000),
) -> list[Vacuumed]:
    """Remove from the folder, and from the store on S3 if there is one, what nobody can still ask for.

    Args:
        jobs: the trainer's folder of jobs: what they came to and have not said is needed.
        trusted: whose events count among a model's newest versions; None: everybody's.

    Raises:
        NotThisStore: nothing was removed, for nothing shows that the store belongs to this cluster.
        StoreAway: it does not answer, or refuses.
        PublishingBusy: a trainer does not come to an end with publishing.
        KafkaError: the topics cannot be read.
    """
    done: list[Vacuumed] = []
    for place in stores.places:
        while True:
            async with publishing(jobs):
                known = await needed(connection, trusted=trusted)
                unsaid = await asyncio.to_thread(unsaid_by, jobs, known.open_jobs())
                reasons = known.reasons(
                    now_ms=now_ms(),
                    keep_ms=retention.keep_ms,
                    keep_versions=retention.keep_versions,
                    unsaid=unsaid,
                )
                there = await place.kept()
                going, stayed = unneeded(there, reasons, now_ms=now_ms(), keep_ms=retention.keep_ms)
                _refuse_a_strange_store(place, known, going, reasons, there)
                now_going = going if dry_run else going[:_MOST_AT_ONCE]
                if not dry_run:
                    for each in now_going:
                        await place.remove(each.sha256)
                    leftovers = await place.tidy(now_ms() - retention.keep_ms)
                else:
                    leftovers = 0
            done.append(Vacuumed(place=place.title, removed=now_going, stayed=stayed, leftovers=leftovers))
            if len(now_going) == len(going):
                break
    return _by_place(done)


def _by_place(done: list[Vacuumed]) -> list[Vacuumed]:
    places = dict.fromkeys(each.place for each in done)
    return [
        Vacuumed(
            place=place,
            removed=[kept for each in done if each.place == place for kept in each.removed],
            stayed=next(each.stayed for each in reversed(done) if each.place == place),
            leftovers=sum(each.leftovers for each in done if each.place == place),
        )
        for place in places
    ]


def _refuse_a_strange_store(
    place: Place, known: Needed, going: list[Kept], reasons: Mapping[str, str], there: list[Kept]
) -> None:
    if not place.serves or not going or any(each.sha256 in reasons for each in there):
        return
    said = "none of its models lies there" if known.names_any else "no event there tells of a model"
    raise NotThisStore(
        f"{len(going)} artifacts in {place.title} would go, and {said}: is it the store of another cluster? "
        "Nothing was removed; name the right one by store.address or paths.artifacts, or delete it by hand"
    )


async def keep_vacuuming(
    connection: Connection,
    stores: Stores,
    retention: Retention,
    *,
    jobs: Path,
    trusted: TrustedKeys | None,
) -> None:
    """Every so often, until cancelled; what fails is logged and tried again the next time."""
    if retention.every_s is None:
        return
    while True:
        await asyncio.sleep(retention.every_s)
        try:
            for each in await vacuum(connection, stores, retention, jobs=jobs, trusted=trusted):
                if each.removed or each.leftovers:
                    log.info(
                        "removed artifacts that nobody can ask for",
                        place=each.place,
                        artifacts=len(each.removed),
                        mib=round(each.removed_bytes / 2**20, 1),
                        leftovers=each.leftovers,
                    )
        except (Rejected, Retryable, KafkaError, OSError) as error:
            log.warning("artifacts could not be vacuumed, will try again", error=str(error))
