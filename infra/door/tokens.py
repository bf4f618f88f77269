"""Who may push: bearer tokens, known by their digests alone."""

from __future__ import annotations

import hashlib

from infra.loopback import is_loopback
from infra.settings_model import Door
from schemas.errors import InvalidConfiguration

_SHORTEST = 16


class Tokens:
    """The tokens of a door; `required` says whether any are."""

    def __init__(self, tokens: list[str]) -> None:
        self._digests = {_digest(token.encode()) for token in tokens}

    @property
    def required(self) -> bool:
        """Whether a request must bear one."""
        return bool(self._digests)

    def admits(self, authorization: str | None) -> bool:
        """Whether an `Authorization` header's value is `Bearer` and one of them."""
        if authorization is None or authorization[:7].lower() != "bearer ":
            return False
        # By digest: how long the comparison takes says nothing about a token.
        return _digest(authorization[7:].strip().encode("utf-8", "surrogateescape")) in self._digests


def tokens_of(door: Door) -> Tokens:
    """The tokens that the settings name: one, and a file of one a line.

    Raises:
        InvalidConfiguration: the file cannot be read, a token is too short to be a secret, or the door is
            open to other machines and has none.
    """
    found: list[str] = [] if door.token is None else [door.token.get_secret_value()]
    if door.tokens_file is not None:
        try:
            lines = door.tokens_file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidConfiguration(f"door.tokens_file cannot be read: {error}") from error
        found += [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if any(len(token) < _SHORTEST for token in found):
        raise InvalidConfiguration(
            f"a token of the door has fewer than {_SHORTEST} characters; make one by "
            "python3 -c 'import secrets; print(secrets.token_urlsafe(32))'"
        )
    if not found and not is_loopback(door.host):
        raise InvalidConfiguration(
            f"door.host {door.host} is reachable from other machines: set door.token or door.tokens_file, or "
            "listen on 127.0.0.1"
        )
    return Tokens(found)


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()
