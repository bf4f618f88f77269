"""Who may publish a model: Ed25519 signatures over its manifest, and the public keys that are trusted.

What is signed is the manifest as it stands in the event, byte for byte, behind one line that names its
schema: `tidemill.model.manifest.v1`, a line feed, then the manifest in its canonical form:

* JSON in UTF-8 without whitespace; the members of every object in the order of their names;
* integers in decimal; any other number as the shortest decimal that reads back as the same IEEE 754 double,
  always with a point or an exponent, so that 1 and 1.0 stay two things; no NaN, no infinity;
* text escaped only where JSON demands it.

A reader has nothing to bring into canonical form: it checks the bytes that it got, and then reads those very
bytes. So fields of a newer Tidemill, which it does not know, are under the signature as well, and there is no
second reading of a number or a repeated name that a forger could use.

A canary's manifest has `tidemill.model.canary.v1` in that first line: what was signed as a canary cannot be
said again as a current model, nor the other way round.

The size and digest of the artifact, the epoch (`version`), the schema of inputs and outputs and all lineage
are parts of the manifest. What stands beside it in an event (a rollback's reason) decides nothing.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Sequence
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from .aside import breathe
from .errors import InvalidConfiguration, Rejected, Retryable
from .model import CanaryPublished, Manifest, Signature, SignedModel

SCHEMA = "tidemill.model.manifest.v1"
CANARY_SCHEMA = "tidemill.model.canary.v1"
_SCHEME = "ed25519:"


class SignatureRefused(Rejected):
    """The model event is unsigned, or none of its signatures holds."""


class SignerUnknown(Retryable):
    """Only keys that are not on the list have signed. The list is a file, which may yet learn of them."""


def canonical(manifest: Manifest) -> bytes:
    """The manifest's bytes as they travel in an event."""
    return msgspec.json.encode(manifest, order="sorted")


def schema_of(event: SignedModel) -> str:
    """What the event's manifest is signed as."""
    return CANARY_SCHEMA if isinstance(event, CanaryPublished) else SCHEMA


def signed_bytes(manifest: bytes, schema: str = SCHEMA) -> bytes:
    """What is signed: the schema's name, and the manifest's bytes."""
    return schema.encode() + b"\n" + manifest


def key_id(public_key: bytes) -> str:
    """A public key's name: the first 16 hex digits of its SHA-256."""
    return hashlib.sha256(public_key).hexdigest()[:16]


def public_key_text(public_key: bytes) -> str:
    """A public key as settings and lists have it: `ed25519:` and the 32 bytes in base64."""
    return _SCHEME + base64.b64encode(public_key).decode()


def read_public_key(text: str) -> bytes:
    """The 32 bytes of a public key.

    Raises:
        InvalidConfiguration: the text is no such key.
    """
    try:
        if not text.startswith(_SCHEME):
            raise ValueError(f"it does not begin with {_SCHEME}")
        key = base64.b64decode(text.removeprefix(_SCHEME), validate=True)
        Ed25519PublicKey.from_public_bytes(key)
    except (ValueError, binascii.Error) as error:
        raise InvalidConfiguration(
            f"{text[:80]!r} is no public key ({error}); copy a line of `tidemill keys` as it is"
        ) from error
    return key


def read_public_keys(text: str) -> list[bytes]:
    """The keys of a list: one a line, `#` begins a comment.

    Raises:
        InvalidConfiguration: a line is no key.
    """
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return [read_public_key(line) for line in lines if line]


class TrustedKeys:
    """The public keys whose models are taken: given one by one, or as a file with one a line.

    A file is read anew for each model event: keys are rotated without a restart.

    Raises:
        InvalidConfiguration: there is no key, or one is none.
    """

    def __init__(self, keys: Sequence[str] | Path) -> None:
        self._file = keys if isinstance(keys, Path) else None
        if isinstance(keys, str):
            raise InvalidConfiguration(
                "give the trusted keys as a list, or as the Path of a file with one key a line"
            )
        self._keys = self._read() if isinstance(keys, Path) else _by_id([read_public_key(k) for k in keys])
        if not self._keys:
            raise InvalidConfiguration(
                "the list of trusted keys is empty: no model could ever be taken; "
                "`tidemill keys` shows the trainer's public keys"
            )

    def __str__(self) -> str:
        return ", ".join(sorted(self._keys)) or "none"

    def manifest(self, event: bytes, schema: str = SCHEMA) -> Manifest:
        """The manifest in a model event's JSON, once a trusted key is found to have signed it.

        Args:
            schema: as what it must have been signed.

        Raises:
            SignatureRefused: unsigned, or none of the signatures holds, or the manifest breaks its contract.
            SignerUnknown: as that, but the list is a file that may yet learn of the key.
        """
        raw, signatures = _taken_apart(event)
        if not signatures:
            raise SignatureRefused("it is not signed, and this client takes signed models only")
        if self._file is not None:
            try:
                self._keys = self._read()
            except InvalidConfiguration as error:
                raise SignerUnknown(str(error)) from error
        known = [each for each in signatures if each.key_id in self._keys]
        content = signed_bytes(raw, schema)
        if not any(_holds(self._keys[each.key_id], each, content) for each in known):
            signers = ", ".join(each.key_id for each in signatures)
            if not known and self._file is not None:
                raise SignerUnknown(
                    f"it is signed by {signers}, and {self._file} lists {self}; "
                    "if that key is the trainer's, add it"
                )
            raise SignatureRefused(
                f"the signature by {signers} is none of a trusted key ({self}) over this manifest"
            )
        breathe()
        try:
            return msgspec.json.decode(raw, type=Manifest)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise SignatureRefused(f"the manifest breaks its contract: {error}") from error

    def _read(self) -> dict[str, Ed25519PublicKey]:
        assert self._file is not None
        try:
            return _by_id(read_public_keys(self._file.read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidConfiguration(
                f"the trusted keys cannot be read from {self._file}: {error}; copy the trainer's list there"
            ) from error


class _Parts(msgspec.Struct):
    manifest: msgspec.Raw
    signatures: list[Signature] = []


def _taken_apart(event: bytes) -> tuple[bytes, list[Signature]]:
    """The manifest's very bytes, and the signatures beside it."""
    try:
        parts = msgspec.json.decode(event, type=_Parts)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SignatureRefused(f"its signatures cannot be read: {error}") from error
    return bytes(parts.manifest), parts.signatures


def _by_id(keys: Sequence[bytes]) -> dict[str, Ed25519PublicKey]:
    return {key_id(key): Ed25519PublicKey.from_public_bytes(key) for key in keys}


def _holds(key: Ed25519PublicKey, signature: Signature, content: bytes) -> bool:
    try:
        key.verify(bytes.fromhex(signature.ed25519), content)
    except InvalidSignature:
        return False
    return True
