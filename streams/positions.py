"""Where reading starts, and what it means when the cluster no longer has what lies there."""

from __future__ import annotations

from schemas.errors import InvalidConfiguration


class PositionLost(InvalidConfiguration):
    """The records at the ledger's position are not on the cluster: expired, or the topic was made anew."""


def check_position(topic: str, partition: int, at: int | None, *, first: int, end: int) -> None:
    """Hold the ledger's position against what the cluster has. Nothing is ever reset silently.

    Raises:
        PositionLost: it is not within [first, end].
    """
    if at is None:
        return
    name = f"{topic}/{partition}"
    if at < first:
        raise PositionLost(
            f"{name}: the ledger stands at offset {at}, but the topic begins at {first}: {first - at} "
            "records expired unread; give the pipeline a new name to begin with what is there"
        )
    if at > end:
        raise PositionLost(
            f"{name}: the ledger stands at offset {at}, but the topic ends at {end}: it was deleted and made "
            "anew, or lost its newest records; give the pipeline a new name to read it from its beginning"
        )
