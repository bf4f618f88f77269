"""What every announcement's contract has in common, and the register of their types.

An announcement is a frozen struct that knows its deterministic id, its subject and its record key.
Rule for unknown fields, which each topic states: an announcement's reader ignores them (a newer Tidemill may
add some, and the envelope keeps the data as they came); a raw event's reader refuses them, by name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import msgspec


class Announcement(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all that Tidemill announces."""

    def event_id(self) -> str:
        """The same for every repeat of this announcement, different for any other."""
        raise NotImplementedError

    def subject(self) -> str:
        """What the event is about, readable: a window, a job, a model version."""
        raise NotImplementedError

    def key(self) -> str:
        """Record key; events of one key keep their order."""
        raise NotImplementedError

    def encoded(self) -> bytes:
        """The value of its record: JSON."""
        return msgspec.json.encode(self)


C = TypeVar("C", bound=type[Announcement])

_BY_TYPE: dict[str, type[Announcement]] = {}
_BY_CLASS: dict[type[Announcement], str] = {}


def announces(noun_and_verb: str, *, version: int = 1) -> Callable[[C], C]:
    """Register a struct as the data of CloudEvents type `tidemill.<noun>.<verb>.v<version>`."""

    def register(contract: C) -> C:
        kind = f"tidemill.{noun_and_verb}.v{version}"
        if kind in _BY_TYPE:
            raise ValueError(f"event type {kind} is declared twice: {_BY_TYPE[kind]} and {contract}")
        _BY_TYPE[kind] = contract
        _BY_CLASS[contract] = kind
        return contract

    return register


def type_of(contract: type[Announcement]) -> str:
    """CloudEvents type of a registered struct."""
    return _BY_CLASS[contract]


def announcement_for(kind: str) -> type[Announcement] | None:
    """Struct registered under a CloudEvents type, or None."""
    return _BY_TYPE.get(kind)


def announcements() -> dict[str, type[Announcement]]:
    """All registered types, by CloudEvents type."""
    return dict(_BY_TYPE)
