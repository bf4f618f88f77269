"""The transport as Faust knows it: a URL scheme, `tidemill://host:port`."""

from __future__ import annotations

from faust import Topic
from faust.transport.drivers import TRANSPORTS
from faust.transport.drivers.aiokafka import Producer, Transport
from faust.types import EventT
from faust.types.tuples import Message

from infra.kafka.reach import patiently
from streams.transport.consumer import FrameConsumer

SCHEME = "tidemill"


class PatientProducer(Producer):
    """Stock, but for its start: a cluster that went away since the worker began is waited for."""

    async def on_start(self) -> None:
        """See `patiently`."""
        await super(Producer, self).on_start()
        producer = self._producer = self._new_producer()
        self.beacon.add(producer)
        await patiently(producer.start, patience_s=self.app.patience_s)  # type: ignore[attr-defined]


class FrameTransport(Transport):
    """aiokafka transport that consumes frames."""

    Consumer = FrameConsumer
    Producer = PatientProducer
    driver_version = f"frames over {Transport.driver_version}"


class FrameTopic(Topic):
    """A topic whose events carry the frame itself as their value."""

    def _compile_decode(self) -> None:
        async def hand_over(message: Message, *, propagate: bool = False) -> EventT:  # noqa: ARG001
            return self._create_event(None, message.value, headers={}, message=message)

        self.decode = hand_over  # type: ignore[method-assign]


def register() -> None:
    """Make the scheme known where the entry point is not installed. Harmless to repeat."""
    TRANSPORTS.aliases[SCHEME] = "streams.transport:FrameTransport"
