"""Tags by a model: rows that a published model gives a high enough chance carry the tag.

A batch is answered by one version, the newest that the worker holds, and its commit says which: the tag is in
the dataset with the rows, so whoever reads it later needs neither the model nor its luck of the moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import polars as pl
import structlog

from schemas.errors import InvalidConfiguration, Rejected
from streams.tag import ByModel, Tagging

# A cluster or a store that is away holds no rows up for longer.
_SETTLE_S = 30.0

log = structlog.get_logger(__name__)


class Answers(Protocol):
    """A model version that answers: `schemas.client.load.LoadedModel`."""

    @property
    def version(self) -> int:
        """Of the model, as its event gave it."""
        ...

    def predict(self, columns: Mapping[str, Any]) -> Any:
        """Probabilities (N,) of N rows by column."""
        ...


class Models(Protocol):
    """Where the models of a pipeline's tags are found."""

    def current(self, name: str) -> Answers | None:
        """The newest version that is held, or None where there is none yet."""
        ...


def by_models(
    tagging: Sequence[Tagging], rows: pl.DataFrame, models: Models | None
) -> tuple[pl.DataFrame, dict[str, dict[str, Any]]]:
    """Rows with the tags that models give, behind those they have; and by tag, who answered.

    A tag whose model is not there yet, or takes columns that the row does not have, is on no row: the account
    says so, with `version` None and why.

    Args:
        rows: cleaned and derived, with `_tags`.
    """
    used: dict[str, dict[str, Any]] = {}
    for tag in tagging:
        if not isinstance(tag, ByModel):
            continue
        used[tag.name] = {"model": tag.model, "version": None}
        answering = None if models is None else models.current(tag.model)
        if answering is None:
            used[tag.name]["why"] = "no version of it is held"
            continue
        if rows.height == 0:
            del used[tag.name]
            continue
        try:
            chances = answering.predict({c: rows.get_column(c) for c in rows.columns if c[0] != "_"})
            has = pl.Series([float(chance) >= tag.above for chance in chances], dtype=pl.Boolean)
        except Rejected as error:
            log.warning("a model cannot tag", tag=tag.name, model=tag.model, error=str(error))
            used[tag.name]["why"] = str(error)[:500]
            continue
        used[tag.name]["version"] = answering.version
        if has.any():
            with_it = pl.concat_list("_tags", pl.lit(tag.name))
            rows = rows.with_columns(_tags=pl.when(has).then(with_it).otherwise(pl.col("_tags")))
    return rows, used


class Following:
    """The worker's own followers of the models that tag its rows; as a service follows them.

    Args:
        names: of models.
        stores: base addresses of artifact stores.
        trusted_keys: a file of public keys; None believes whoever may write to the cluster.
        s3: how stores on S3 are reached: `endpoint`, `region`, `access_key_id`, `secret_access_key`; what is
            missing is taken from the environment, as AWS's own tools do.

    Raises:
        InvalidConfiguration: no store is named.
    """

    def __init__(
        self,
        names: Collection[str],
        *,
        client: Mapping[str, Any],
        stores: Sequence[str],
        service: str,
        cache_dir: Path,
        trusted_keys: Path | None = None,
        s3: Mapping[str, Any] | None = None,
    ) -> None:
        if names and not stores:
            raise InvalidConfiguration(
                f"rows are tagged by model {', '.join(sorted(names))}, and the worker knows no store to take "
                'it from: set worker.model_stores = ["http://models:8700/"]'
            )
        # By name: a worker whose pipeline has no such tag starts without torch.
        self._followers = None
        if names:
            self._followers = importlib.import_module("schemas.client").ModelFollowers(
                sorted(names),
                client=client,
                stores=list(stores),
                service=service,
                cache_dir=cache_dir,
                trusted_keys=trusted_keys,
                s3=s3,
            )

    async def start(self) -> None:
        """Begin to follow, and wait a while for what is current now: rows that wait are tagged by it."""
        if self._followers is None:
            return
        await self._followers.start()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SETTLE_S):
                await self._followers.settled()
        for name in self._followers:
            if self.current(name) is None:
                log.warning("no model to tag by yet", model=name)

    async def stop(self) -> None:
        """Stop following."""
        if self._followers is not None:
            await self._followers.stop()

    def current(self, name: str) -> Answers | None:
        """See `Models`."""
        return None if self._followers is None else self._followers[name].current
