"""What every test may ask for: a real broker, and topics of its own on it."""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Awaitable, Callable, Iterator, Mapping

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from infra.kafka import EmbeddedBroker
from loadtest.page.browser import WAY_OUT
from schemas.errors import TidemillError

os.environ.setdefault("POLARS_MAX_THREADS", "2")
# Where the tests run side by side their processes ignore Ctrl-C, and so would all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """A page that nobody looked at in a browser is said at the end, where it is not overlooked."""
    skipped = [each for each in terminalreporter.stats.get("skipped", ()) if WAY_OUT in str(each.longrepr)]
    if skipped:
        terminalreporter.section("THE PAGE WAS NOT LOOKED AT IN A BROWSER", sep="!", red=True)
        terminalreporter.write_line(f"{len(skipped)} tests were skipped: {WAY_OUT}", yellow=True)


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedBroker]:
    """A real Apache Kafka on a free port for the whole session; `kafka.bootstrap_servers` says where."""
    broker = EmbeddedBroker(tmp_path_factory.mktemp("kafka"))
    try:
        broker.start()
    except TidemillError as error:
        pytest.fail(f"the tests' broker did not start: {error}\n{broker.log_tail()}", pytrace=False)
    yield broker
    broker.stop()


@pytest.fixture
def topic() -> Callable[[str], str]:
    """topic("flights") gives a name that no other test has: flights-3f9c…"""
    return lambda stem: f"{stem}-{secrets.token_hex(4)}"


CreateTopic = Callable[..., Awaitable[str]]


@pytest.fixture
def create_topic(kafka: EmbeddedBroker, topic: Callable[[str], str]) -> CreateTopic:
    """`await create_topic("flights", partitions=4, settings={...})` makes a topic, gives its unique name."""

    async def create(stem: str, *, partitions: int = 1, settings: Mapping[str, str] | None = None) -> str:
        name = topic(stem)
        admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap_servers)
        await admin.start()
        try:
            await admin.create_topics(
                [NewTopic(name, partitions, 1, topic_configs=dict(settings or {}))], timeout_ms=10_000
            )
        finally:
            await admin.close()
        return name

    return create
