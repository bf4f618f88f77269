"""Dead letters on their way out: each once, whichever worker was about to say it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from infra.kafka.connection import Connection
from schemas import topics
from schemas.dead_letter import DeadLetter
from schemas.envelope import wrap
from streams.announce.fold import Announced
from streams.announce.outbox import Outbox, letters_since
from streams.ledger.commit import Partition

# So many are made and sent at a time: each takes some 15 us of the event loop.
AT_A_TIME = 10_000


class Letters:
    """Publishes a pipeline's dead letters, but not those that are out and whose commit was not made."""

    outbox: Outbox

    def __init__(self, pipeline: str, source: str) -> None:
        self.known: set[str] = set()
        self._pipeline = pipeline
        self._source = source

    async def take_up(self, connection: Connection, positions: Mapping[Partition, int], *, most: int) -> None:
        """What lies behind these positions may have been said before a crash: look it up on the topic."""
        self.known = await letters_since(connection, self._pipeline, positions, most=most)

    async def publish(self, refused: Sequence[DeadLetter]) -> None:
        """Send them, and wait until the cluster holds them."""
        # In pieces: a batch of nothing but these would keep the event loop from all else for seconds.
        for start in range(0, len(refused), AT_A_TIME):
            letters = [
                Announced(
                    topics.DEAD_LETTERS.name,
                    # By the record's own time: whoever refuses it again says the very same.
                    wrap(letter, source=self._source, time_ms=max(letter.timestamp_ms, 0)),
                )
                for letter in refused[start : start + AT_A_TIME]
            ]
            await self.outbox.publish(letters, but_not=self.known)
            # The commit may be tried again after it failed: the letters are out.
            self.known |= {letter.envelope.id for letter in letters}

    def committed(self, refused: Collection[DeadLetter]) -> None:
        """The ledger stands behind these now: no frame brings them again."""
        self.known -= {letter.event_id() for letter in refused}
