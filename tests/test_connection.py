"""An existing cluster by TLS and SASL: a real secured broker, the same settings, refusals that say why."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from faust.auth import SASLCredentials, SSLCredentials
from faust.types.auth import AuthProtocol, SASLMechanism

from infra import doctor
from infra.kafka import ClusterRefuses, ClusterUnreachable, EmbeddedBroker, connect_to, reach
from infra.kafka.topics import ensure
from infra.settings import Kafka, Settings
from schemas.errors import InvalidConfiguration
from schemas.topics import Topic, Version

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificates by openssl")


@dataclass(frozen=True)
class Secured:
    """A broker that wants proof, and what proves."""

    plaintext: str
    mtls: str
    sasl: str
    certificates: Path

    def by_mtls(self, **changes: Any) -> Kafka:
        certificates = {
            "ssl_ca_file": self.certificates / "ca.pem",
            "ssl_certificate_file": self.certificates / "client.pem",
            "ssl_key_file": self.certificates / "client.key",
        }
        given = {"bootstrap_servers": self.mtls, "security_protocol": "SSL"} | certificates | changes
        return Kafka(**{name: value for name, value in given.items() if value is not None})

    def by_sasl(self, **changes: Any) -> Kafka:
        given = {
            "bootstrap_servers": self.sasl,
            "security_protocol": "SASL_SSL",
            "sasl_username": "alice",
            "sasl_password": "wonderland",
            "ssl_ca_file": self.certificates / "ca.pem",
        }
        return Kafka(**{name: value for name, value in (given | changes).items() if value is not None})


def openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)


def make_certificates(folder: Path) -> None:
    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    # Without a key usage, Python 3.13 and later trust none of them.
    signs = ("-addext", "keyUsage=critical,keyCertSign,cRLSign,digitalSignature")
    into = ("-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=Test CA")
    openssl(folder, "req", "-x509", *new_key, *signs, *into)
    for name in ("broker", "client"):
        names = ("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1")
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key")
        subject = ("-subj", f"/CN={name}")
        openssl(
            folder,
            "req",
            "-x509",
            *signed,
            *new_key,
            *subject,
            *names,
            *signs,
            "-keyout",
            f"{name}.key",
            "-out",
            f"{name}.pem",
        )
    openssl(folder, "ec", "-in", "client.key", "-aes256", "-passout", "pass:sesame", "-out", "locked.key")
    both = (folder / "broker.key").read_text() + (folder / "broker.pem").read_text()
    (folder / "broker-both.pem").write_text(both)


def free_ports(count: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("secured")
    make_certificates(folder)
    mtls, sasl = free_ports(2)
    listeners = f"MTLS://127.0.0.1:{mtls},SASLTLS://127.0.0.1:{sasl}"
    plain = "org.apache.kafka.common.security.plain.PlainLoginModule"
    scram = "org.apache.kafka.common.security.scram.ScramLoginModule"
    broker = EmbeddedBroker(
        folder / "data",
        broker_settings={
            "listeners": listeners,
            "advertised.listeners": listeners.replace("127.0.0.1", "localhost"),
            "listener.security.protocol.map": "MTLS:SSL,SASLTLS:SASL_SSL",
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(folder / "broker-both.pem"),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(folder / "ca.pem"),
            "listener.name.mtls.ssl.client.auth": "required",
            "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-512",
            "listener.name.sasltls.plain.sasl.jaas.config": f'{plain} required user_alice="wonderland";',
            "listener.name.sasltls.scram-sha-512.sasl.jaas.config": f"{scram} required;",
        },
        format_options=["--add-scram", "SCRAM-SHA-512=[name=bob,password=builder]"],
    )
    with broker:
        yield Secured(broker.bootstrap_servers, f"localhost:{mtls}", f"localhost:{sasl}", folder)


def a_topic(name: str) -> Topic:
    return Topic(
        name=name,
        purpose="a test's",
        producer="test",
        consumers=(),
        key="none",
        versions=(Version(number=1, contracts=()),),
    )


async def echo(kafka: Kafka, topic: str) -> bytes | None:
    """Create a topic, write and read one record, all by the connection that these settings give."""
    connection = connect_to(kafka)
    await ensure([a_topic(topic)], connection)
    async with AIOKafkaProducer(**connection.client_arguments()) as producer:
        await producer.send_and_wait(topic, b"through")
    arguments = connection.client_arguments() | {"auto_offset_reset": "earliest"}
    async with AIOKafkaConsumer(topic, **arguments) as consumer:
        return (await consumer.getone()).value


async def test_mtls_carries_records(secured, topic):
    assert await echo(secured.by_mtls(), topic("mtls")) == b"through"
    opened = secured.by_mtls(ssl_key_file=secured.certificates / "locked.key", ssl_key_password="sesame")
    assert await echo(opened, topic("mtls-locked")) == b"through"


async def test_sasl_plain_carries_records(secured, topic):
    assert await echo(secured.by_sasl(), topic("plain")) == b"through"


async def test_scram_with_the_password_in_a_file_carries_records(secured, topic, tmp_path):
    secret = tmp_path / "password"
    secret.write_text("builder\n")
    by_file = {"sasl_password": None, "sasl_password_file": secret}
    kafka = secured.by_sasl(sasl_username="bob", sasl_mechanism="SCRAM-SHA-512", **by_file)
    assert await echo(kafka, topic("scram")) == b"through"


def refusals(secured: Secured) -> dict[str, tuple[Kafka, type[Exception], str]]:
    other_ca = secured.certificates / "client.pem"
    return {
        "wrong password": (
            secured.by_sasl(sasl_password="looking-glass"),
            ClusterRefuses,
            r"refuses user 'alice'.*check kafka\.sasl_username",
        ),
        "wrong scram password": (
            secured.by_sasl(sasl_username="bob", sasl_mechanism="SCRAM-SHA-512", sasl_password="no"),
            ClusterRefuses,
            r"refuses user 'bob'",
        ),
        "mechanism that is off": (
            secured.by_sasl(sasl_mechanism="SCRAM-SHA-256"),
            ClusterRefuses,
            r"SCRAM-SHA-256 is not offered.*set kafka\.sasl_mechanism",
        ),
        "untrusted": (
            secured.by_mtls(ssl_ca_file=other_ca),
            ClusterRefuses,
            r"not trusted.*kafka\.ssl_ca_file",
        ),
        "tls to a plaintext port": (
            secured.by_mtls(bootstrap_servers=secured.plaintext),
            ClusterUnreachable,
            r"security_protocol SSL is probably not what that listener speaks",
        ),
        "sasl to an mtls port": (
            secured.by_mtls(
                bootstrap_servers=secured.mtls,
                security_protocol="SASL_SSL",
                sasl_username="alice",
                sasl_password="wonderland",
            ),
            ClusterRefuses,
            r"does not expect SASL.*set kafka\.security_protocol",
        ),
        "plaintext to a tls port": (
            Kafka(bootstrap_servers=secured.mtls),
            ClusterUnreachable,
            r"security_protocol.*PLAINTEXT",
        ),
        "no client certificate": (
            secured.by_mtls(ssl_certificate_file=None, ssl_key_file=None),
            ClusterUnreachable,
            r"client certificate \(kafka\.ssl_certificate_file\)",
        ),
        "nobody there": (Kafka(bootstrap_servers="127.0.0.1:9"), ClusterUnreachable, "nobody listens there"),
        "no such host": (Kafka(bootstrap_servers="broker.invalid:9092"), ClusterUnreachable, "no such host"),
    }


@pytest.mark.parametrize("case", list(refusals(Secured("p:1", "m:1", "s:1", Path()))))
async def test_a_refusal_says_why_and_the_doctor_says_the_same(secured, case):
    kafka, error, message = refusals(secured)[case]
    with pytest.raises(error, match=message):
        await reach(connect_to(kafka), timeout_s=2.0)
    check = doctor.cluster(Settings(kafka=kafka, doctor={"connect_timeout_s": 2.0}))
    assert not check.ok
    assert check.detail
    assert check.remedy
    assert "wonderland" not in check.detail + check.remedy


async def test_a_silent_port_is_told_from_a_closed_one():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        kafka = Kafka(bootstrap_servers=f"127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(ClusterUnreachable, match=r"no answer within 0\.3 s"):
            await reach(connect_to(kafka), timeout_s=0.3)


async def test_the_second_server_is_tried_when_the_first_is_down(secured):
    kafka = Kafka(bootstrap_servers=f"127.0.0.1:9,{secured.plaintext}")
    assert await reach(connect_to(kafka)) == secured.plaintext


async def test_a_broker_that_advertises_an_address_out_of_reach_is_named(tmp_path):
    async with EmbeddedBroker(tmp_path, advertised="broker.invalid:9092") as broker:
        by_listener = Kafka(bootstrap_servers=broker.running.bootstrap_servers)
        with pytest.raises(
            ClusterUnreachable, match=r"broker 1 .*broker\.invalid:9092: no such host.*advertised"
        ):
            await reach(connect_to(by_listener))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ssl_ca_file": "none.pem"}, r"kafka\.ssl_ca_file: there is no file .*none\.pem"),
        ({"ssl_ca_file": "client.key"}, r"kafka\.ssl_ca_file: .*client\.key holds no PEM certificates"),
        ({"ssl_key_file": "broker.key"}, r"kafka\.ssl_key_file: .*broker\.key is no PEM key that belongs"),
        ({"ssl_key_file": "locked.key"}, r"kafka\.ssl_key_password does not open it"),
        (
            {"ssl_key_file": "locked.key", "ssl_key_password_file": "none"},
            r"ssl_key_password_file: .*cannot be read",
        ),
    ],
)
def test_a_certificate_that_cannot_be_used_is_named(secured, changes, message):
    files = {name: secured.certificates / file for name, file in changes.items()}
    with pytest.raises(InvalidConfiguration, match=message):
        connect_to(secured.by_mtls(**files))


def test_faust_gets_the_same_credentials(secured):
    sasl = connect_to(secured.by_sasl(sasl_mechanism="SCRAM-SHA-512"))
    credentials = sasl.faust_credentials()
    assert isinstance(credentials, SASLCredentials)
    assert (credentials.username, credentials.password) == ("alice", "wonderland")
    assert (credentials.protocol, credentials.mechanism) == (
        AuthProtocol.SASL_SSL,
        SASLMechanism.SCRAM_SHA_512,
    )
    assert isinstance(connect_to(secured.by_mtls()).faust_credentials(), SSLCredentials)
    plain = connect_to(Kafka(bootstrap_servers="a:1, b:2"))
    assert plain.faust_credentials() is None
    assert plain.faust_brokers("tidemill") == "tidemill://a:1;tidemill://b:2"
    assert "wonderland" not in repr(sasl)
