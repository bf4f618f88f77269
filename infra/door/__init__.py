"""A door for producers without Kafka: events over HTTP, acknowledged once the cluster holds them.

`stream` holds one event to its topic's contract; `cloud_events` and `rest_proxy` read the forms that a `body`
may have; `intake` bounds what is on its way, a `lane` a partition sends it by the `telegraph`; `server`
lets in by `tokens` and responds with `answers`; `run` is the whole, and `several` are some of it on one port.
"""

from __future__ import annotations
