"""The cluster that a command asks: named in the settings, or running here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from infra.settings import Settings
from schemas.errors import InvalidConfiguration

if TYPE_CHECKING:
    from infra.kafka.connection import Connection


def the_cluster(settings: Settings) -> Connection:
    """The connection to it.

    Raises:
        InvalidConfiguration: there is none.
    """
    from infra.kafka.cluster import find_cluster

    connection = find_cluster(settings)
    if connection is None:
        raise InvalidConfiguration(
            "no broker runs here; start one by `tidemill up`, or name your cluster in tidemill.toml"
        )
    return connection
