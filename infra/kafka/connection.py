"""How to reach the cluster: settings become arguments for aiokafka's clients and credentials for Faust."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.settings_model import Kafka
from schemas.errors import InvalidConfiguration

if TYPE_CHECKING:
    from faust.auth import Credentials
    from pydantic import SecretStr


@dataclass(frozen=True, kw_only=True)
class Connection:
    """Everything a client needs to reach one cluster; its repr shows no secret."""

    bootstrap_servers: str
    security_protocol: str = "PLAINTEXT"
    ssl_context: ssl.SSLContext | None = field(default=None, repr=False)
    sasl_mechanism: str | None = None
    sasl_username: str | None = None
    sasl_password: str | None = field(default=None, repr=False)
    request_timeout_ms: int = 20_000

    def client_arguments(self) -> dict[str, Any]:
        """Keyword arguments for `AIOKafkaProducer`, `AIOKafkaConsumer` and `AIOKafkaAdminClient`."""
        arguments: dict[str, Any] = {
            "bootstrap_servers": self.bootstrap_servers,
            "security_protocol": self.security_protocol,
            "request_timeout_ms": self.request_timeout_ms,
        }
        if self.ssl_context:
            arguments["ssl_context"] = self.ssl_context
        if self.sasl_mechanism:
            arguments |= {
                "sasl_mechanism": self.sasl_mechanism,
                "sasl_plain_username": self.sasl_username,
                "sasl_plain_password": self.sasl_password,
            }
        return arguments

    def faust_brokers(self, scheme: str = "kafka") -> str:
        """Faust's `broker` argument; `scheme` chooses the transport."""
        return ";".join(f"{scheme}://{server.strip()}" for server in self.bootstrap_servers.split(","))

    def faust_credentials(self) -> Credentials | None:
        """Faust's `broker_credentials` argument; None where nothing is to be proven."""
        from faust.auth import SASLCredentials, SSLCredentials

        if self.sasl_mechanism:
            return SASLCredentials(
                username=self.sasl_username,
                password=self.sasl_password,
                mechanism=self.sasl_mechanism,
                ssl_context=self.ssl_context,
            )
        return SSLCredentials(self.ssl_context) if self.ssl_context else None


def connect_to(kafka: Kafka, bootstrap_servers: str | None = None) -> Connection:
    """The connection that the settings describe; `bootstrap_servers` is the embedded broker's, if one runs.

    Reads the certificates and secret files. Raises InvalidConfiguration naming the file that cannot be used.
    """
    servers = kafka.bootstrap_servers or bootstrap_servers
    if servers is None:
        raise InvalidConfiguration(
            "no cluster to connect to: start one (`tidemill up`), or name yours by kafka.bootstrap_servers"
        )
    uses_sasl = kafka.security_protocol.startswith("SASL")
    return Connection(
        bootstrap_servers=servers,
        security_protocol=kafka.security_protocol,
        ssl_context=_ssl_context(kafka) if kafka.security_protocol.endswith("SSL") else None,
        sasl_mechanism=kafka.sasl_mechanism if uses_sasl else None,
        sasl_username=kafka.sasl_username if uses_sasl else None,
        sasl_password=_secret("kafka.sasl_password_file", kafka.sasl_password, kafka.sasl_password_file)
        if uses_sasl
        else None,
        request_timeout_ms=kafka.request_timeout_ms,
    )


def _ssl_context(kafka: Kafka) -> ssl.SSLContext:
    for name in ("ssl_ca_file", "ssl_certificate_file", "ssl_key_file"):
        file: Path | None = getattr(kafka, name)
        if file and not file.is_file():
            raise InvalidConfiguration(f"kafka.{name}: there is no file {file}")
    try:
        context = ssl.create_default_context(cafile=kafka.ssl_ca_file)
    except ssl.SSLError as error:
        raise InvalidConfiguration(
            f"kafka.ssl_ca_file: {kafka.ssl_ca_file} holds no PEM certificates: {error}"
        ) from error
    context.check_hostname = kafka.ssl_check_hostname
    if kafka.ssl_certificate_file and kafka.ssl_key_file:
        password = _secret("kafka.ssl_key_password_file", kafka.ssl_key_password, kafka.ssl_key_password_file)
        try:
            # An empty password rather than none: without one, OpenSSL would ask on the terminal and wait.
            context.load_cert_chain(kafka.ssl_certificate_file, kafka.ssl_key_file, password or "")
        except (ssl.SSLError, ValueError) as error:
            raise InvalidConfiguration(
                f"kafka.ssl_key_file: {kafka.ssl_key_file} is no PEM key that belongs to the certificate "
                f"{kafka.ssl_certificate_file}, or kafka.ssl_key_password does not open it: {error}"
            ) from error
    return context


def _secret(name: str, value: SecretStr | None, file: Path | None) -> str | None:
    if value is not None:
        return value.get_secret_value()
    if file is None:
        return None
    try:
        return file.read_text(encoding="utf-8").removesuffix("\n").removesuffix("\r")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidConfiguration(f"{name}: {file} cannot be read: {error}") from error
