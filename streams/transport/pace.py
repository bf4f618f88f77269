"""How much a fetch waits for: a frame costs the same whether it holds ten records or ten thousand."""

from __future__ import annotations

PACE_MS = 25
"""Where much comes it is gathered for so long before it is fetched. The last of it waits as long."""

IDLE_MS = 100
"""How long a fetch stays open where little comes: it is answered by the first record."""

_MOST_BYTES = 2**20
_LEAST_ELAPSED_S = 0.001


class Pace:
    """Sets the bytes that a fetch waits for by the rate at which they came last.

    Without it a topic that gets a thousand small batches a second is fetched in as many frames, and a worker
    does little else than hand them on. A lone record does not wait: what little comes in `PACE_MS` is less
    than it.
    """

    def __init__(self, now_s: float) -> None:
        self._at_s = now_s

    def after(self, size_bytes: int, now_s: float) -> tuple[int, int]:
        """Least bytes of the next fetch, and for how many milliseconds at most it waits for them.

        Args:
            size_bytes: what came since this was asked last, as it travels.
        """
        elapsed_s = max(now_s - self._at_s, _LEAST_ELAPSED_S)
        self._at_s = now_s
        least_bytes = min(_MOST_BYTES, int(size_bytes / elapsed_s * PACE_MS / 1000))
        return (least_bytes, PACE_MS) if least_bytes > 1 else (1, IDLE_MS)
