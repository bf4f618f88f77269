"""What a model event says, once who says it is found to be trusted: read beside the answers.

An event with a vocabulary of thousands of words is 85 kB. To check its signature and to read it whole takes
as long as an answer does, so the event loop reads only whether it is wanted.
"""

from __future__ import annotations

import asyncio
import contextlib

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
    beside_answers: bool,
) -> Manifest:
    """The manifest of a model event, read in a thread; no keys: anybody's word is taken.

    Args:
        beside_answers: whether it gives way to them; a service that has no model yet has none, and reads at
            its start as many events as the log holds.

    Raises:
        SignatureRefused, SignerUnknown: see `TrustedKeys.manifest`.
        msgspec.DecodeError, UnicodeDecodeError: it breaks the contract of a model event.
    """

    def read() -> Manifest:
        with aside() if beside_answers else contextlib.nullcontext():
            if trusted is None:
                return msgspec.json.decode(event, type=kind).manifest
            return trusted.manifest(event, CANARY_SCHEMA if kind is CanaryPublished else SCHEMA)

    return await asyncio.to_thread(read)
