"""What a model event says, once who says it is found to be trusted: read beside the answers.

An event with a vocabulary of thousands of words is 85 kB. To check its signature and to read it whole takes
as long as an answer does, so the event loop of a service that answers reads only whether it is wanted.
"""

from __future__ import annotations

import asyncio

import msgspec

from ..aside import aside
from ..canary import CanaryTerms
from ..model import CanaryPublished, CurrentModel, Manifest, SignedModel
from ..raw import TimeMs
from ..signature import CANARY_SCHEMA, SCHEMA, TrustedKeys


class Claim(msgspec.Struct):
    """As much of a model's manifest as says whether it is wanted; nobody has vouched for it yet."""

    name: str
    version: int
    published_ms: TimeMs
    canary: CanaryTerms | None = None


class _Claiming(msgspec.Struct):
    manifest: Claim


def claimed(event: bytes) -> Claim:
    """What a model event claims to be.

    Raises:
        msgspec.DecodeError, UnicodeDecodeError: it breaks the contract of a model event.
    """
    return msgspec.json.decode(event, type=_Claiming).manifest


async def vouched(
    event: bytes,
    trusted: TrustedKeys | None,
    kind: type[SignedModel] = CurrentModel,
    *,
    at_once: bool = False,
) -> Manifest:
    """The manifest of a model event; no keys: anybody's word is taken.

    Args:
        at_once: read here and now; else in a thread that gives way to answers.

    Raises:
        SignatureRefused, SignerUnknown: see `TrustedKeys.manifest`.
        msgspec.DecodeError, UnicodeDecodeError: it breaks the contract of a model event.
    """

    def read() -> Manifest:
        if trusted is None:
            return msgspec.json.decode(event, type=kind).manifest
        return trusted.manifest(event, CANARY_SCHEMA if kind is CanaryPublished else SCHEMA)

    def read_aside() -> Manifest:
        with aside():
            return read()

    return read() if at_once else await asyncio.to_thread(read_aside)
