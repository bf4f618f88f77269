"""Frames through Faust: one fetched chunk of one partition is one Faust message.

A stock Faust agent walks every record through the conductor, an event, a queue and an ack of its own.
Here what travels is a `Frame`, so the walk is paid once a chunk. Faust's application, agents, groups,
worker command and web stay as they are.
"""

from __future__ import annotations

from streams.transport.consumer import FrameConsumer, Positions
from streams.transport.driver import FrameTopic, FrameTransport, register
from streams.transport.frame import Frame

__all__ = ["Frame", "FrameConsumer", "FrameTopic", "FrameTransport", "Positions", "register"]
