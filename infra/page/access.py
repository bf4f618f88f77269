"""Who may look: on a loopback address whoever sits at this machine, elsewhere whoever has the token."""

from __future__ import annotations

import hmac
import os
import secrets
import socket
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from infra import atomic_file
from infra.loopback import is_loopback
from infra.settings import Settings
from schemas.errors import InvalidConfiguration

TOKEN_FILE = "page.token"
PORT_FILE = "page.port"
WROTE = (TOKEN_FILE, PORT_FILE)
COOKIE = "tidemill"
SAID_BY_PAGE = "X-Tidemill"
"""A header that no other site's form can send: what changes anything must carry it."""
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def token_of(settings: Settings) -> str | None:
    """The token that visitors need; None on a loopback address, unless the settings name one.

    Raises:
        InvalidConfiguration: the token is empty, or its file cannot be used.
    """
    if settings.page.token is not None:
        if not (said := settings.page.token.get_secret_value()):
            raise InvalidConfiguration("page.token is empty; leave it out, and one is made")
        return said
    if is_loopback(settings.page.host):
        return None
    file = settings.paths.home / TOKEN_FILE
    try:
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "w", encoding="ascii") as out:
                out.write(secrets.token_urlsafe(24))
        return file.read_text(encoding="ascii").strip()
    except OSError as error:
        raise InvalidConfiguration(f"the page's token cannot be kept in {file}: {error}") from error


def port_of(settings: Settings) -> int:
    """The port that the settings name, or a free one: that of the last start, if it is free."""
    if settings.page.port:
        return settings.page.port
    file = settings.paths.home / PORT_FILE
    former = file.read_text(encoding="ascii") if file.exists() else "0"
    port = _free(settings.page.host, int(former) if former.isdigit() else 0)
    atomic_file.write_text(file, str(port))
    return port


def _free(host: str, wanted: int) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for port in (wanted, 0):
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return probe.getsockname()[1]
    raise InvalidConfiguration(f"page.host: nothing can listen on {host!r}; name an address of this machine")


def url_of(host: str, port: int, token: str | None) -> str:
    """What a person opens."""
    shown = {"0.0.0.0": socket.gethostname(), "::": socket.gethostname()}.get(host, host)
    shown = f"[{shown}]" if ":" in shown else shown
    return f"http://{shown}:{port}/" + ("" if token is None else f"?token={token}")


def guard(token: str | None) -> Middleware:
    """Middleware that lets in who may look, and lets nobody else's page speak for him."""

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if token is None:
            # A name that somebody else's DNS points here would make his page one of this origin.
            if not is_loopback(urlsplit(f"//{request.host}").hostname or ""):
                raise web.HTTPForbidden(text="ask for this page by a loopback address, such as 127.0.0.1")
        elif (offered := request.query.get("token")) is not None and request.method == "GET":
            if not _same(offered, token):
                raise web.HTTPUnauthorized(text="that is not the token")
            moved = web.HTTPSeeOther(request.path)
            moved.set_cookie(COOKIE, token, httponly=True, samesite="Strict", max_age=30 * 86_400)
            raise moved
        elif not _same(_offered(request), token):
            raise web.HTTPUnauthorized(
                text="this page asks for its token: open the address that `tidemill up` printed",
                headers={"WWW-Authenticate": "Bearer"},
            )
        if request.method not in ("GET", "HEAD"):
            origin = request.headers.get("Origin")
            if SAID_BY_PAGE not in request.headers or (origin and urlsplit(origin).netloc != request.host):
                raise web.HTTPForbidden(text=f"what changes anything needs the header {SAID_BY_PAGE}")
        return await handler(request)

    return check


async def add_headers(_request: web.Request, response: web.StreamResponse) -> None:
    """Nothing from elsewhere is loaded, and nobody frames it."""
    response.headers["Content-Security-Policy"] = _POLICY
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "no-referrer"
    response.headers.setdefault("Cache-Control", "no-store")


def _offered(request: web.Request) -> str:
    kind, _, said = request.headers.get("Authorization", "").partition(" ")
    return said if kind == "Bearer" else request.cookies.get(COOKIE, "")


def _same(offered: str, token: str) -> bool:
    return hmac.compare_digest(offered.encode(), token.encode())
