"""What happens when: a list of faults from a seed, and from nothing else."""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass

WORKERS = 2
"""That always run; one more comes and goes."""
JOINER = WORKERS

KINDS: dict[str, str] = {
    "worker_kill": "kill -9 of a worker, started again at once",
    "worker_freeze": "a worker stands still for longer than its session, and wakes",
    "worker_leave": "a worker is asked to end, and comes back",
    "worker_join": "one more worker joins, and leaves again",
    "broker_kill": "kill -9 of a broker, started again",
    "coordinator_kill": "kill -9 of the broker that coordinates the workers' group",
    "leader_cut_off": "the leader of a partition stands still, and wakes to find another in its place",
    "leader_away": "the same for a minute, once in a run that is long enough, with others to lead meanwhile",
    "network_slow": "every byte between clients and brokers takes long",
    "network_reset": "all connections between clients and brokers are reset, some times over",
    "disk_full": "the dataset's disk is full, and is given room again",
    "clock_back": "a worker's clock is set back by an hour, and forward again",
    "clock_forward": "a worker's clock is set forward by an hour, and back again",
    "log_truncated": "all workers die, and the newest entry of the dataset's log is cut short",
}
KILLS = ("worker_kill", "broker_kill", "coordinator_kill", "log_truncated")

# How often a kind comes beside the others, how long it lasts at least and at most, and how long what it
# struck is then left alone, in seconds.
_WEIGHT = {"worker_kill": 12.0, "broker_kill": 1.5, "coordinator_kill": 1.5, "worker_freeze": 2.0}
_LASTS_S = {
    "worker_kill": (0.0, 0.5),
    "worker_freeze": (7.5, 10.0),
    "worker_leave": (0.5, 3.0),
    "worker_join": (3.0, 8.0),
    "broker_kill": (0.0, 2.0),
    "coordinator_kill": (0.0, 2.0),
    "leader_cut_off": (5.0, 8.0),
    "network_slow": (2.0, 5.0),
    "network_reset": (0.2, 2.0),
    "disk_full": (2.0, 4.0),
    "clock_back": (2.0, 6.0),
    "clock_forward": (2.0, 6.0),
    "log_truncated": (1.0, 1.0),
}
_REST_S = {
    "broker_kill": 10.0,
    "coordinator_kill": 10.0,
    "leader_cut_off": 5.0,
    "leader_away": 10.0,
    "log_truncated": 6.0,
}
AWAY_S = 60.0
_LEAST_FOR_AWAY_S = 150.0
"""Of a run, so that events flow before the leader goes and after it is back."""
_QUIET_S = (0.1, 0.9)
_FIRST_S = 3.0


@dataclass(frozen=True, slots=True)
class Fault:
    """At `at_s` after the first event, `kind` strikes number `whom` and lasts so long."""

    at_s: float
    kind: str
    whom: int
    lasts_s: float


def schedule(seed: int, *, seconds: float, brokers: int, kinds: Collection[str] | None = None) -> list[Fault]:
    """The faults of one run, in order of time. What is struck already is left to it.

    Args:
        kinds: only these; None is all that so many brokers can have.
    """
    rng = random.Random(seed)
    asked = [kind for kind in KINDS if kinds is None or kind in kinds]
    wanted = [k for k in asked if k != "leader_away" and (brokers > 1 or k != "coordinator_kill")]
    away = "leader_away" in asked and brokers > 1 and seconds >= _LEAST_FOR_AWAY_S
    away_from_s = rng.uniform(0.1, 0.3) * seconds if away else None
    weights = [_WEIGHT.get(kind, 1.0) for kind in wanted]
    faults: list[Fault] = []
    free_at_s: dict[str, float] = {}
    at_s = _FIRST_S
    while wanted or away_from_s is not None:
        at_s = round(at_s + rng.uniform(*_QUIET_S), 3)
        is_due = away_from_s is not None and at_s >= away_from_s
        if is_due and free_at_s.get("brokers", 0.0) <= at_s:
            faults.append(Fault(at_s, "leader_away", rng.randrange(brokers), AWAY_S))
            free_at_s["brokers"] = at_s + AWAY_S + _REST_S["leader_away"]
            away_from_s = None
            continue
        if not wanted:
            continue
        kind = rng.choices(wanted, weights)[0]
        whom = rng.randrange(WORKERS if kind.startswith(("worker", "clock")) else brokers)
        lasts_s = round(rng.uniform(*_LASTS_S[kind]), 3)
        if at_s + lasts_s > seconds:
            if at_s > seconds:
                break
            continue
        struck = _struck(kind, whom)
        if is_due and "brokers" in struck:
            continue  # they are spared until one of them may go
        if all(free_at_s.get(each, 0.0) <= at_s for each in struck):
            faults.append(Fault(at_s, kind, JOINER if kind == "worker_join" else whom, lasts_s))
            for each in struck:
                free_at_s[each] = at_s + lasts_s + _REST_S.get(kind, 0.2)
    return faults


def _struck(kind: str, whom: int) -> tuple[str, ...]:
    if kind == "log_truncated":
        return ("disk", *(f"worker {n}" for n in range(WORKERS + 1)))
    if kind == "worker_join":
        return (f"worker {JOINER}",)
    if kind.startswith("worker"):
        return (f"worker {whom}",)
    if kind.startswith("clock"):
        return ("clock",)
    if kind.startswith("network"):
        return ("network",)
    # One broker at a time: of three, two must stand.
    return ("disk",) if kind == "disk_full" else ("brokers",)
