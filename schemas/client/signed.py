"""Addresses below s3:// stores, signed for a few minutes: obstore signs, the client's own downloader fetches.

So an artifact from S3 passes the same checks as any other: no redirect, no forbidden address, no byte too
many.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import httpx

from ..errors import InvalidConfiguration
from .errors import StoreUnavailable
from .reach import check_literal

_VALID = timedelta(minutes=10)
"""Of a signed address; a download that began goes on for as long as it takes."""


class Signer:
    """Signs GET requests of S3 objects.

    Args:
        s3: how to reach it: `endpoint` (an http or https base address; none: AWS), `region`, `access_key_id`,
            `secret_access_key`, and whatever else obstore's S3Store takes. What is missing is taken from the
            environment as AWS's own tools do (`AWS_ACCESS_KEY_ID`, a role of the machine, …).

    Raises:
        InvalidConfiguration: an option is none, or the endpoint no base address.
    """

    def __init__(self, s3: Mapping[str, Any] | None) -> None:
        self._options = dict(s3 or {})
        self._stores: dict[str, Any] = {}
        endpoint = self._options.get("endpoint")
        if endpoint is not None:
            url = httpx.URL(str(endpoint))
            if url.scheme not in ("http", "https") or not url.host or url.userinfo or url.query:
                raise InvalidConfiguration("the s3 option endpoint must be an http or https base address")
            check_literal(url.host)

    def open(self, bucket: str) -> None:
        """Get ready to sign for a bucket.

        Raises:
            InvalidConfiguration: obstore is not installed, or does not take the options.
        """
        try:
            from obstore.exceptions import BaseError
            from obstore.store import S3Store
        except ImportError as error:
            raise InvalidConfiguration(
                f"an s3:// store needs {error.name}, which is not installed: pip install 'tidemill[s3]'"
            ) from error
        plain = str(self._options.get("endpoint", "")).startswith("http://")
        try:
            self._stores[bucket] = S3Store(bucket, **self._options, client_options={"allow_http": plain})
        except (BaseError, TypeError, ValueError) as error:
            raise InvalidConfiguration(
                f"the s3 options are not as obstore takes them: {_short(error)}"
            ) from error

    async def __call__(self, url: httpx.URL) -> httpx.URL:
        """The signed address of an object.

        Raises:
            StoreUnavailable: there are no credentials to sign with.
        """
        import obstore
        from obstore.exceptions import BaseError

        try:
            key = url.path.lstrip("/")
            return httpx.URL(await obstore.sign_async(self._stores[url.host], "GET", key, _VALID))
        except (BaseError, OSError) as error:
            raise StoreUnavailable(f"{url}: cannot be signed: {_short(error)}") from error


def _short(error: Exception) -> str:
    return str(error).partition("\n")[0][:500]
