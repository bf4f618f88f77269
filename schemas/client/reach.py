"""The way to a store: where its name leads is looked at, and the connection goes there and nowhere else."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable

import httpx

from ..aside import give_way
from ..errors import InvalidConfiguration
from .errors import StoreNotAllowed, StoreUnavailable

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

# Where machines in clouds are asked for their own credentials, apart from link-local addresses.
_METADATA = frozenset(map(ipaddress.ip_address, ("fd00:ec2::254", "100.100.100.200", "168.63.129.16")))
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_DEFAULT_PORTS = {"http": 80, "https": 443}


class StoreTransport(httpx.AsyncBaseTransport):
    """Sends requests to stores, at addresses that were looked at.

    A name is resolved here, every address that it has must be allowed, and the connection goes to one of
    them, so that a name which leads elsewhere a moment later gains nothing. TLS checks the name all the same.

    Args:
        locate: gives the http(s) address of an `s3://` one, signed for some minutes. It is seen here alone:
            what is logged and shown is the `s3://` address.
    """

    def __init__(self, locate: Callable[[httpx.URL], Awaitable[httpx.URL]]) -> None:
        self._locate = locate
        # No connection is kept: downloads are rare, and one made for another name is then never used again.
        self._http = httpx.AsyncHTTPTransport(
            trust_env=False, limits=httpx.Limits(max_keepalive_connections=0)
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Answer a GET.

        Raises:
            StoreNotAllowed: the store's name leads to an address of `forbidden`.
            StoreUnavailable: it has no address, or no address for s3 can be signed.
        """
        url, headers = request.url, request.headers
        if url.scheme == "s3":
            url = await self._locate(url)
            headers = httpx.Headers([*headers.multi_items()])
            headers["host"] = url.netloc.decode("ascii")
        wait_s = request.extensions.get("timeout", {}).get("connect")
        failure: httpx.TransportError | None = None
        addresses = await _addresses(url, wait_s)
        await give_way()
        for address in addresses:
            try:
                return await self._http.handle_async_request(
                    httpx.Request(
                        request.method,
                        url.copy_with(host=address),
                        headers=headers,
                        stream=request.stream,
                        extensions={**request.extensions, "sni_hostname": url.raw_host.decode("ascii")},
                    )
                )
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                failure = error
        raise failure or StoreUnavailable(f"{url.host} has no address")

    async def aclose(self) -> None:
        await self._http.aclose()


async def _addresses(url: httpx.URL, wait_s: float | None) -> list[str]:
    """All addresses of the host, each allowed."""
    port = url.port or _DEFAULT_PORTS[url.scheme]
    try:
        async with asyncio.timeout(wait_s):
            found = await asyncio.get_running_loop().getaddrinfo(url.host, port, type=socket.SOCK_STREAM)
    except (TimeoutError, OSError, UnicodeError) as error:
        raise StoreUnavailable(f"{url.host} cannot be resolved: {error or 'no answer'}") from error
    addresses = list(dict.fromkeys(str(place[4][0]) for place in found))
    for address in addresses:
        check_address(url.host, address)
    return addresses


def check_literal(host: str) -> None:
    """Raises InvalidConfiguration if a host is written as an address at which no store may be."""
    try:
        reason = forbidden(host)
    except ValueError:
        return  # a name: looked at when it is resolved
    if reason is not None:
        raise InvalidConfiguration(f"{host} is {reason}; name another store")


def check_address(host: str, address: str) -> None:
    """Raises StoreNotAllowed if no store may be there, whatever name it goes by."""
    if (reason := forbidden(address)) is not None:
        raise StoreNotAllowed(
            f"{host} leads to {address}, {reason}: no artifact store is there; mend its name, or "
            "name another store"
        )


def forbidden(address: str) -> str | None:
    """Why no store may be at an IP address; None if one may.

    Private addresses and the machine's own are allowed: that is where stores stand.
    """
    ip = _inner(ipaddress.ip_address(address.partition("%")[0]))
    if ip.is_link_local:
        return "a link-local address, where clouds keep their machines' credentials"
    if ip in _METADATA:
        return "a cloud's metadata service"
    if ip.is_multicast or ip.is_unspecified or ip == ipaddress.ip_address("255.255.255.255"):
        return "an address of no single machine"
    return None


def _inner(ip: IPAddress) -> IPAddress:
    """The IPv4 address that an IPv6 one stands for, if it stands for one."""
    if isinstance(ip, ipaddress.IPv4Address):
        return ip
    if ip in _NAT64:
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None) or ip
