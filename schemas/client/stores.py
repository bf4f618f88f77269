"""Which addresses may be asked for an artifact: those below the client's own stores, and no other."""

from __future__ import annotations

import re
from collections.abc import Sequence

import httpx

from ..errors import InvalidConfiguration
from ..model import Artifact
from .errors import StoreNotAllowed
from .reach import check_literal

# Steps of a path as artifacts have them; nothing that a server might take for a way up or out.
_BELOW = re.compile(r"(?:[A-Za-z0-9_-][A-Za-z0-9._-]*/)*[A-Za-z0-9_-][A-Za-z0-9._-]*")


class Stores:
    """The client's own stores.

    Args:
        addresses: base addresses, http or https, such as "http://127.0.0.1:8700/", or "s3://bucket/models/".
            A name and password in an http one are sent to that store alone and shown to nobody.

    Raises:
        InvalidConfiguration: there are none, or one is no base address.
    """

    def __init__(self, addresses: Sequence[str]) -> None:
        if isinstance(addresses, str) or not addresses:
            raise InvalidConfiguration(
                'name the artifact stores as a list of base addresses, such as ["http://127.0.0.1:8700/"]'
            )
        self._bases = tuple(_base(address) for address in addresses)

    @property
    def buckets(self) -> list[str]:
        """Of the stores on S3."""
        return list(dict.fromkeys(base.host for base in self._bases if base.scheme == "s3"))

    def __str__(self) -> str:
        return ", ".join(shown(base) for base in self._bases)

    def addresses(self, artifact: Artifact) -> list[httpx.URL]:
        """Where the artifact may lie: the event's own address, then its name below each store.

        A store may have moved since the event was sent. The bytes are named by their digest, so it does not
        matter which store gives them.

        Raises:
            StoreNotAllowed: the event's address is below none of the stores, and not an artifact's name.
        """
        name = f"{artifact.sha256}.safetensors"
        found = [base.copy_with(path=base.path + rest) for base, rest in self._below(artifact.uri)]
        if not found and not artifact.uri.endswith("/" + name):
            raise StoreNotAllowed(
                f"{artifact.uri[:500]} lies below none of this client's stores ({self}); if it is to be "
                "trusted, add its base address to them"
            )
        found += [base.copy_with(path=base.path + name) for base in self._bases]
        return list(dict.fromkeys(found))

    def _below(self, uri: str) -> list[tuple[httpx.URL, str]]:
        try:
            url = httpx.URL(uri)
        except (httpx.InvalidURL, ValueError) as error:
            raise StoreNotAllowed(f"{uri[:500]!r} is no address: {error}") from error
        asked = url.raw_path.decode("ascii")
        plain = not (url.userinfo or url.fragment)
        return [
            (base, rest)
            for base in self._bases
            if plain and (url.scheme, url.host, url.port) == (base.scheme, base.host, base.port)
            if asked.startswith(base.path) and _BELOW.fullmatch(rest := asked[len(base.path) :])
        ]


def shown(address: httpx.URL) -> str:
    """The address without its name and password."""
    return str(address.copy_with(userinfo=b""))


def _base(address: str) -> httpx.URL:
    try:
        url = httpx.URL(address)
    except (httpx.InvalidURL, ValueError, TypeError) as error:
        raise InvalidConfiguration(f"store {address!r} is no address: {error}") from error
    odd = url.scheme == "s3" and (url.userinfo or url.port)
    if url.scheme not in ("http", "https", "s3") or not url.host or url.query or url.fragment or odd:
        raise InvalidConfiguration(
            f"store {shown(url)!r} is no base address; write it like http://host:8700/, "
            "https://host/models/ or s3://bucket/models/"
        )
    check_literal(url.host)
    return url.copy_with(path=url.path.rstrip("/") + "/")
