"""Networks that a model event can name: the client library's own, so that no code travels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from schemas.errors import Rejected
from schemas.tabular import TabularNetwork


class UnknownArchitecture(Rejected):
    """No network of that name is here."""


def network(name: str, config: Mapping[str, Any]) -> TabularNetwork:
    """An untrained network from plain data.

    Raises:
        UnknownArchitecture: this version knows no network of that name.
    """
    if name != TabularNetwork.architecture:
        raise UnknownArchitecture(
            f"architecture {name!r} is not known here; only {TabularNetwork.architecture!r}"
        )
    return TabularNetwork.from_config(config)
