"""The trainer's signing keys: a folder that nobody else reads, and the list of public keys for services.

    keys/<key id>.pem   a private key, PKCS 8, mode 0600
    keys/trusted.txt    public keys, one a line: what services put on their allow-list

Every private key in the folder signs every model. To rotate is to make one more key, to bring the longer list
to the services, and then to retire the old key: at no moment is there a service that knows neither.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from infra import atomic_file
from infra.logging import logger
from schemas.errors import InvalidConfiguration
from schemas.model import Manifest, Signature, SignedModel
from schemas.signature import (
    TrustedKeys,
    canonical,
    key_id,
    public_key_text,
    read_public_keys,
    schema_of,
    signed_bytes,
)

TRUSTED_FILE = "trusted.txt"
_ENDING = ".pem"

E = TypeVar("E", bound=SignedModel)

log = logger(__name__)


@dataclass(frozen=True, slots=True)
class Key:
    """A public key, and whether its private half lies here and signs."""

    id: str
    public: str
    signs: bool


class KeyFolder:
    """Makes, lists and retires keys, and signs with them. Nothing is cached: a rotation needs no restart."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def trusted_file(self) -> Path:
        """The list of public keys, as services take it."""
        return self.folder / TRUSTED_FILE

    def make(self) -> Key:
        """A new key pair: from now on it signs too, and is on the list.

        Raises:
            InvalidConfiguration: the folder cannot be written, or others may read it.
        """
        private = Ed25519PrivateKey.generate()
        public = _public_bytes(private)
        pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        path = self._path(key_id(public))
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            # On the list before it signs: a service on this machine never meets an unknown signer.
            self._write_list([*self._public_keys(), public])
            staged = path.with_suffix(".new")
            with os.fdopen(os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
                os.fchmod(out.fileno(), 0o600)
                out.write(pem)
                out.flush()
                os.fsync(out.fileno())
            staged.replace(path)
        except OSError as error:
            raise InvalidConfiguration(
                f"no key can be kept in {self.folder}: {error}; "
                "set paths.signing_keys to a folder of this user's own"
            ) from error
        return Key(key_id(public), public_key_text(public), signs=True)

    def ensure(self) -> None:
        """Make a first key pair if there is none; what lies there is checked.

        Raises:
            InvalidConfiguration: the folder cannot be used, or others can read a private key.
        """
        if not self._private_files():
            made = self.make()
            log.info("made a key that signs models", key=made.id, trusted=str(self.trusted_file))
        own = [_public_bytes(key) for key in self._private_keys()]
        if lacking := [key for key in own if key not in self._public_keys()]:
            self._write_list([*self._public_keys(), *lacking])

    def listed(self) -> list[Key]:
        """All keys on the list, oldest first."""
        signing = self.signing()
        return [
            Key(key_id(public), public_key_text(public), signs=key_id(public) in signing)
            for public in self._public_keys()
        ]

    def signing(self) -> frozenset[str]:
        """Ids of the keys that sign."""
        return frozenset(path.stem for path in self._private_files())

    def retire(self, identity: str) -> None:
        """Take a key off the list and delete its private half.

        Raises:
            InvalidConfiguration: there is no such key, or it is the only one that signs.
        """
        known = {key.id: key for key in self.listed()}
        if identity not in known:
            raise InvalidConfiguration(f"no key {identity!r} here; there are {', '.join(known) or 'none'}")
        if known[identity].signs and sum(key.signs for key in known.values()) == 1:
            raise InvalidConfiguration(
                f"{identity} is the only key that signs; make its successor first: tidemill keys rotate"
            )
        self._path(identity).unlink(missing_ok=True)
        self._write_list([key for key in self._public_keys() if key_id(key) != identity])

    def trusted(self) -> TrustedKeys:
        """The list as a check of model events.

        Raises:
            InvalidConfiguration: it is empty or cannot be read.
        """
        return TrustedKeys(self.trusted_file)

    def signed(self, event: E) -> E:
        """The event with a signature by each private key here, over its manifest as it will travel.

        Raises:
            InvalidConfiguration: there is no key, one is broken, or others can read it.
        """
        # Through JSON and back, as every reader gets it: an int where a float is declared would be signed as
        # one thing and said again, after a restart, as another.
        manifest = msgspec.json.decode(canonical(event.manifest), type=Manifest)
        content = signed_bytes(canonical(manifest), schema_of(event))
        signatures = [
            Signature(key_id=key_id(_public_bytes(key)), ed25519=key.sign(content).hex())
            for key in self._private_keys()
        ]
        if not signatures:
            raise InvalidConfiguration(f"no signing key lies in {self.folder}; make one: tidemill keys make")
        return msgspec.structs.replace(event, manifest=manifest, signatures=signatures)

    def _private_files(self) -> list[Path]:
        return sorted(self.folder.glob(f"*{_ENDING}"))

    def _private_keys(self) -> list[Ed25519PrivateKey]:
        keys = []
        for path in self._private_files():
            try:
                mode = path.stat().st_mode
                key = load_pem_private_key(path.read_bytes(), password=None)
            except (OSError, ValueError, TypeError) as error:
                raise InvalidConfiguration(
                    f"the signing key {path} cannot be read: {error}; remove it, and make another: "
                    "tidemill keys rotate"
                ) from error
            if mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise InvalidConfiguration(
                    f"the signing key {path} can be read by others (mode {stat.S_IMODE(mode):04o}): "
                    f"chmod 600 {path}, or retire it if somebody may have"
                )
            if not isinstance(key, Ed25519PrivateKey):
                raise InvalidConfiguration(f"{path} is no Ed25519 key; remove it from {self.folder}")
            keys.append(key)
        return keys

    def _public_keys(self) -> list[bytes]:
        try:
            return read_public_keys(self.trusted_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return []
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidConfiguration(f"{self.trusted_file} cannot be read: {error}") from error

    def _write_list(self, keys: list[bytes]) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%d")
        head = f"# Public keys that sign models; give this file to services. Written {now}.\n"
        lines = [f"{public_key_text(key)}  # {key_id(key)}\n" for key in dict.fromkeys(keys)]
        try:
            atomic_file.write_text(self.trusted_file, head + "".join(lines))
        except OSError as error:
            raise InvalidConfiguration(f"{self.trusted_file} cannot be written: {error}") from error

    def _path(self, identity: str) -> Path:
        return self.folder / f"{identity}{_ENDING}"


def _public_bytes(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
