"""The part of `tidemill doctor` that asks the artifact store on S3, which is the trainer's to know."""

from __future__ import annotations

from collections.abc import Iterator

from infra import stopping
from infra.doctor import Check
from infra.settings_model import Settings
from schemas.errors import InvalidConfiguration


def artifact_store(settings: Settings) -> Iterator[Check]:
    """The store answers, takes our credentials, and an object can be written, read back, listed and removed.

    The one thing that a check leaves anywhere, and removes again: an object that is no artifact.
    """
    if settings.store.address is None:
        return
    from trainers.artifact import StoreAway
    from trainers.object_store import object_store

    remedy = (
        "see that store.address names a bucket that is there, store.endpoint and store.region who keeps it, "
        "and that the credentials may write, read, list and delete below it"
    )
    impatient = settings.store.model_copy(
        update={"retries": 0, "timeout_s": settings.doctor.connect_timeout_s}
    )
    try:
        store = object_store(impatient)
        assert store is not None
        stopping.run(store.probe())
    except (StoreAway, InvalidConfiguration) as error:
        yield Check(name="store", ok=False, detail=str(error), remedy=remedy)
        return
    yield Check(
        name="store", ok=True, detail=f"{store.address} can be written, read, listed and removed from"
    )
