"""The processes, and what happens to them: brokers behind proxies, workers, and a disk of their own."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from aiokafka.admin import AIOKafkaAdminClient
from deltalake import DeltaTable
from rich.console import Console

from infra.kafka import BrokerFailed, Ensemble
from infra.kafka.connection import Connection
from infra.kafka.topics import ensure
from loadtest.faults.disk import Disk
from loadtest.faults.proxy import Proxy
from loadtest.faults.schedule import JOINER, WORKERS, Fault
from loadtest.faults.sender import TOPIC
from loadtest.faults.worker import WorkerProcess
from schemas.topics import TOPICS

PIPELINE_FILE = Path(__file__).with_name("pipeline.py")
_CLOCK_WRONG_S = 3_600
_SLOW_S = 0.15
_REFUSED_WITHIN_S = 120
"""A worker's start and its refusal, on a machine that is busy with much else."""


class Stage:
    """One cluster, `WORKERS` workers and one that comes and goes; a context manager.

    `died` says which workers ended by themselves.
    """

    def __init__(
        self, home: Path, *, brokers: int, disk_bytes: int, cache_dir: Path | None, console: Console
    ) -> None:
        self.home, self.console = home, console
        self.died: list[str] = []
        self.disk = Disk(home / "disk", disk_bytes)
        self.proxies = {node: Proxy() for node in range(1, brokers + 1)}
        self.ensemble = Ensemble(
            home / "kafka",
            brokers=brokers,
            advertised={node: proxy.address for node, proxy in self.proxies.items()},
            cache_dir=cache_dir,
            start_timeout_s=180.0,
        )
        self.uri = str(self.disk.at / "dataset" / "faults")
        self.workers: list[WorkerProcess] = []
        self._wanted: set[int] = set()
        self._leaving: set[int] = set()
        self._threads: list[threading.Thread] = []

    # ── life ────────────────────────────────────────────────────────────────────────────────────────

    def __enter__(self) -> Stage:
        self.disk.__enter__()
        try:
            self.ensemble.start()
            for broker in self.ensemble.brokers:
                self.proxies[broker.node_id].target = broker.port
            self.connection = Connection(bootstrap_servers=self.ensemble.bootstrap_servers)
            asyncio.run(ensure(TOPICS, self.connection))
            for number in range(WORKERS + 1):
                clock = self.home / f"clock-{number}"
                clock.write_text("0")
                settings = {
                    "TIDEMILL_PATHS__DATASET": str(self.disk.at / "dataset"),
                    "FAULTS_CLOCK": str(clock),
                }
                self.workers.append(
                    WorkerProcess(
                        self.home,
                        PIPELINE_FILE,
                        self.ensemble.bootstrap_servers,
                        f"worker-{number}",
                        settings,
                    )
                )
            for number in range(WORKERS):
                self._start(number)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._wait_for_those_apart()
        for worker in self.workers:
            worker.close()
        for broker in self.ensemble.brokers:
            with contextlib.suppress(Exception):  # it was not started
                os.kill(broker.pid, signal.SIGCONT)
        self.ensemble.stop()
        for proxy in self.proxies.values():
            proxy.close()
        self.disk.__exit__()

    def keep_alive(self) -> None:
        """Start again whoever ended without having been told to, and remember it."""
        for number in list(self._wanted):
            worker = self.workers[number]
            if worker.has_ended():
                code = worker.running.returncode
                self.died.append(f"worker {number} ended with {code}; its log ends:\n{worker.log_tail()}")
                self.console.log(self.died[-1], style="red", markup=False, highlight=False)
                self._start(number)

    def end(self, *, within_s: float) -> None:
        """Ask all workers to end; one that does not in time, or not cleanly, has died."""
        wanted, self._wanted = self._wanted, set()
        for number in wanted:
            self.workers[number].signal(signal.SIGTERM)
        for number in wanted:
            try:
                code: int | None = self.workers[number].running.wait(within_s)
            except Exception:  # it hangs
                code = None
            self._ended_as_asked(number, code)

    def _ended_as_asked(self, number: int, code: int | None) -> None:
        # By the signal itself: it had not come so far yet as to listen to it.
        if code not in (0, -signal.SIGTERM):
            self.died.append(
                f"worker {number}, asked to end, ended with {code}; its log ends:\n"
                f"{self.workers[number].log_tail()}"
            )

    def _start(self, number: int) -> None:
        worker = self.workers[number]
        if number in self._leaving:
            return  # it comes back when it has ended
        if worker.process is None or worker.has_ended():
            worker.start(level="warn")
        # Only now: whoever looks meanwhile must not take the life before for this one.
        self._wanted.add(number)

    def _kill(self, number: int) -> None:
        self._wanted.discard(number)
        self.workers[number].close()

    # ── faults ──────────────────────────────────────────────────────────────────────────────────────

    def play(self, faults: Sequence[Fault], *, until_s: float) -> list[Fault]:
        """Let the faults happen, each at its time from now, and undo each; gives those that happened."""
        began = time.monotonic()
        ties = itertools.count()
        todo: list[tuple[float, int, Callable[[], object]]] = []
        happened: list[Fault] = []

        def strike(fault: Fault) -> None:
            if (
                fault.kind in ("worker_kill", "worker_freeze", "worker_leave")
                and fault.whom not in self._wanted
            ):
                return  # the machine is slow, and it is still down from the time before
            undo = getattr(self, f"_{fault.kind}")(fault)
            if undo is not None:
                happened.append(fault)
                self.console.log(f"{fault.at_s:7.1f} s  {fault.kind} {fault.whom} for {fault.lasts_s:g} s")
                heapq.heappush(todo, (time.monotonic() - began + fault.lasts_s, next(ties), undo))

        for fault in faults:
            heapq.heappush(todo, (fault.at_s, next(ties), lambda fault=fault: strike(fault)))
        while todo or time.monotonic() - began < until_s:
            while todo and todo[0][0] <= time.monotonic() - began:
                heapq.heappop(todo)[2]()
            self.keep_alive()
            time.sleep(0.05)
        self._wait_for_those_apart()
        return happened

    def _apart(self, work: Callable[[], object]) -> None:
        """Do it in a thread: what takes long must not hold up the faults to come."""
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _wait_for_those_apart(self) -> None:
        while self._threads:
            self._threads.pop().join()

    def _worker_kill(self, fault: Fault) -> Callable[[], object]:
        self._kill(fault.whom)
        return lambda: self._start(fault.whom)

    def _worker_freeze(self, fault: Fault) -> Callable[[], object]:
        worker = self.workers[fault.whom]
        worker.signal(signal.SIGSTOP)
        return lambda: worker.signal(signal.SIGCONT)

    def _worker_leave(self, fault: Fault) -> Callable[[], object]:
        self._wanted.discard(fault.whom)
        self._leaving.add(fault.whom)
        worker = self.workers[fault.whom]
        worker.signal(signal.SIGTERM)

        def back() -> None:
            with contextlib.suppress(Exception):
                worker.running.wait(20)
            self._ended_as_asked(fault.whom, worker.running.poll())
            worker.close()
            self._leaving.discard(fault.whom)
            self._start(fault.whom)

        return lambda: self._apart(back)

    def _worker_join(self, _fault: Fault) -> Callable[[], object]:
        self._kill(JOINER)  # it may still be ending, from the time before
        self._start(JOINER)

        def leave() -> None:
            self._wanted.discard(JOINER)
            self.workers[JOINER].signal(signal.SIGTERM)

        return leave

    def _broker_kill(self, fault: Fault) -> Callable[[], object]:
        broker = self.ensemble.brokers[fault.whom]
        broker.kill()
        return lambda: self._apart(broker.start)

    def _coordinator_kill(self, fault: Fault) -> Callable[[], object]:
        return self._broker_kill(Fault(fault.at_s, fault.kind, self._coordinator(), fault.lasts_s))

    def _leader_cut_off(self, fault: Fault) -> Callable[[], object] | None:
        try:
            pid = self.ensemble.brokers[self._leader(fault.whom)].pid
            os.kill(pid, signal.SIGSTOP)
        except (BrokerFailed, ProcessLookupError):
            return None  # it was killed before, and is not back yet

        def go_on() -> None:
            with contextlib.suppress(ProcessLookupError):  # it was killed meanwhile, and runs anew
                os.kill(pid, signal.SIGCONT)

        return go_on

    _leader_away = _leader_cut_off

    def _network_slow(self, _fault: Fault) -> Callable[[], object]:
        def all_take(delay_s: float) -> None:
            for proxy in self.proxies.values():
                proxy.delay_s = delay_s

        all_take(_SLOW_S)
        return lambda: all_take(0.0)

    def _network_reset(self, _fault: Fault) -> Callable[[], object]:
        def reset() -> None:
            for proxy in self.proxies.values():
                proxy.reset()

        reset()
        return reset

    def _disk_full(self, _fault: Fault) -> Callable[[], object]:
        self.disk.fill()
        return self.disk.make_room

    def _clock_back(self, fault: Fault) -> Callable[[], object]:
        return self._clock(fault.whom, -_CLOCK_WRONG_S)

    def _clock_forward(self, fault: Fault) -> Callable[[], object]:
        return self._clock(fault.whom, _CLOCK_WRONG_S)

    def _clock(self, number: int, wrong_by_s: int) -> Callable[[], object]:
        file = self.home / f"clock-{number}"
        file.write_text(str(wrong_by_s))
        return lambda: file.write_text("0")

    def _log_truncated(self, fault: Fault) -> Callable[[], object] | None:
        """All die, the newest entry is cut short: a worker must refuse it by name. Then it is restored."""
        self._wait_for_those_apart()
        for number in range(WORKERS + 1):
            self._kill(number)

        def go_on() -> None:
            for number in range(WORKERS):
                self._start(number)

        entries = sorted((Path(self.uri) / "_delta_log").glob("[0-9]*.json"))
        if not entries:
            go_on()
            return None
        newest, whole = entries[-1], entries[-1].read_bytes()
        newest.write_bytes(whole[: len(whole) * (fault.whom % 2) // 2])
        worker = self.workers[fault.whom % WORKERS]
        worker.start(level="warn")
        with contextlib.suppress(Exception):
            worker.running.wait(_REFUSED_WITHIN_S)
        if not worker.has_ended():
            self.died.append(f"a worker took {newest.name}, which was cut short, for whole")
        elif newest.name not in (said := worker.log_tail()):
            self.died.append(
                f"a worker ended, and not because {newest.name} was cut short; its log ends:\n{said}"
            )
        worker.close()
        newest.write_bytes(whole)
        return go_on

    # ── what the cluster says ───────────────────────────────────────────────────────────────────────

    def _coordinator(self) -> int:
        async def ask() -> int:
            admin = AIOKafkaAdminClient(**self.connection.client_arguments())
            await admin.start()
            try:
                return await admin.find_coordinator("tidemill-faults")
            finally:
                await admin.close()

        with contextlib.suppress(Exception):  # it is moving: then any broker will do
            return asyncio.run(asyncio.wait_for(ask(), 5)) - 1
        return 0

    def _leader(self, partition: int) -> int:
        async def ask() -> int:
            admin = AIOKafkaAdminClient(**self.connection.client_arguments())
            await admin.start()
            try:
                (topic,) = await admin.describe_topics([TOPIC])
                return next(p["leader"] for p in topic["partitions"] if p["partition"] == partition)
            finally:
                await admin.close()

        with contextlib.suppress(Exception):
            return asyncio.run(asyncio.wait_for(ask(), 5)) - 1
        return 0

    def positions(self) -> dict[int, int]:
        """Where the ledger stands, by partition, as Delta's own reader says."""
        try:
            table = DeltaTable(self.uri)
        except Exception:  # there is none yet, or its disk is full
            return {}
        return {n: table.transaction_version(f"offset/{TOPIC}/{n}") or 0 for n in range(4)}
