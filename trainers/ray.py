"""Jobs on an existing Ray cluster, through its Jobs API over HTTP; Ray itself is no dependency.

Each attempt is submitted under an id of its own, which Ray takes once: asking again, after a crash or a lost
answer, finds the very same submission. What it is to do and what it says are files in the job's folder, which
the cluster's machines see under the same name, like `paths.dataset` and `paths.artifacts`. While the
assignment's file is there, the attempt is not concluded, and a trainer that starts anew goes on with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import shlex
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec

from infra import atomic_file
from infra.logging import logger
from infra.settings_model import Ray as Options
from schemas.errors import InvalidConfiguration, Retryable
from trainers.assignment import Assignment, Done, Failed, Report, Skipped, Yielded
from trainers.channel import unpacked

log = logger(__name__)

_LOG_TAIL_CHARACTERS = 8_000
_REQUEST_S = 10.0
_STATUS_S = 1.0
_AGAIN_S = 2.0
_GONE_AFTER_S = 30.0
"""So long a stopped job's end is waited for: Ray itself kills what does not end in 3 s."""
_OVER = {"SUCCEEDED", "FAILED", "STOPPED"}


class RayAway(Retryable):
    """The cluster does not answer, or does not take a job."""


class RayCluster:
    """Submits attempts, and finds again what an earlier trainer submitted."""

    def __init__(self, options: Options, jobs: Path) -> None:
        """`jobs` is the folder of all jobs: two trainers' submissions of one name are told apart by it."""
        self._options = options
        self._home = hashlib.sha256(str(jobs).encode()).hexdigest()[:8]
        token = options.secret()
        self._http = httpx.AsyncClient(
            base_url=options.address.rstrip("/") + "/api/",
            headers={} if token is None else {"authorization": f"Bearer {token}"},
            timeout=_REQUEST_S,
            trust_env=False,
        )
        self.answers = False

    @property
    def gpus(self) -> bool:
        """Whether jobs that take what there is ask for a GPU."""
        return self._options.gpus

    async def reach(self) -> str:
        """Wait until it answers; gives Ray's version.

        Raises:
            InvalidConfiguration: it knows no such token, or is no Ray.
        """
        said = ""
        while True:
            try:
                version = str((await self.ask("GET", "version"))["ray_version"])
            except RayAway as error:
                if str(error) != said:
                    said = str(error)
                    log.warning("the Ray cluster does not answer yet, waiting", error=said)
                await asyncio.sleep(_AGAIN_S)
            except KeyError as error:
                raise InvalidConfiguration(f"what answers at {self._options.address} is no Ray") from error
            else:
                self.answers = True
                return version

    async def ask(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """An answer of the Jobs API; of what is not there, nothing.

        Raises:
            InvalidConfiguration: the token is refused.
            RayAway: it does not answer, or refuses.
        """
        try:
            answer = await self._http.request(method, path, json=body)
        except httpx.HTTPError as error:
            self.answers = False
            raise RayAway(f"Ray at {self._options.address} does not answer: {error!r}") from error
        if answer.status_code in {401, 403}:
            raise InvalidConfiguration(
                f"Ray at {self._options.address} refuses the token; set ray.token_file to its RAY_AUTH_TOKEN"
            )
        if answer.status_code == 404:
            return {}
        if answer.is_error:
            raise RayAway(f"Ray refuses {method} {path}: {answer.status_code} {answer.text[-500:]}")
        self.answers = True
        return answer.json()

    def _id(self, folder: Path, attempt: int) -> str:
        return f"tidemill-{self._home}-{folder.name}-{attempt}"

    async def begin(self, folder: Path, assignment: Assignment) -> RayJob:
        """Submit an attempt, or find it submitted already.

        Raises:
            RayAway: it is not sure that the cluster has it.
        """
        attempt, asked = assignment.attempt, assignment.job.experiment.resources
        order, reports = _files(folder, attempt)
        await asyncio.to_thread(atomic_file.write_bytes, order, msgspec.json.encode(assignment))
        command = [self._options.python, "-m", "trainers.apart", str(order), str(reports)]
        identity = self._id(folder, attempt)
        body = {
            "entrypoint": f"exec {shlex.join(command)}",
            "submission_id": identity,
            "entrypoint_num_cpus": asked.cpus,
            "entrypoint_num_gpus": 0 if assignment.device == "cpu" else max(1, asked.gpus),
            "entrypoint_memory": asked.memory_bytes,
            "runtime_env": {"env_vars": dict(self._options.environment)},
            "metadata": {"job_id": assignment.job.job_id, "model": assignment.job.experiment.model},
        }
        if not await self.ask("GET", f"jobs/{identity}"):
            try:
                await self.ask("POST", "jobs/", body)
            except RayAway:
                # It may have been taken, and the answer was lost.
                if not await self.ask("GET", f"jobs/{identity}"):
                    raise
            log.info("submitted to Ray", submission=identity)
        return RayJob(self, identity, folder / "job.log", reports, poll_s=self._options.poll_ms / 1000)

    def left(self, folder: Path, attempt: int) -> Assignment | None:
        """The assignment of an attempt that was submitted and not concluded."""
        order, _ = _files(folder, attempt)
        try:
            return msgspec.json.decode(order.read_bytes(), type=Assignment)
        except (OSError, msgspec.DecodeError):
            return None

    def conclude(self, folder: Path, attempt: int) -> None:
        """Nothing more is to come of an attempt."""
        for file in _files(folder, attempt):
            file.unlink(missing_ok=True)

    async def end_left(self, folder: Path, attempt: int) -> None:
        """End what an earlier trainer submitted and nobody hears any more."""
        if self.left(folder, attempt) is not None:
            with contextlib.suppress(RayAway):
                await self.ask("POST", f"jobs/{self._id(folder, attempt)}/stop")
            self.conclude(folder, attempt)

    async def stop(self) -> None:
        """Let go of the cluster; what runs there runs on."""
        await self._http.aclose()


class RayJob:
    """One attempt on the cluster, as `trainers.process.JobProcess` is one on this machine."""

    waits_elsewhere = True
    """The cluster has a queue of its own: the time limit counts from when the process begins."""

    def __init__(
        self, cluster: RayCluster, identity: str, log_file: Path, reports: Path, *, poll_s: float
    ) -> None:
        self.log_file = log_file
        self._cluster = cluster
        self._identity = identity
        self._reports_file = reports
        self._poll_s = poll_s
        self._status: dict[str, Any] = {}
        self._looked_s = float("-inf")
        self._has_ended = False
        self._stopping: asyncio.Task[None] | None = None
        self._log_tail = ""

    async def reports(self, assignment: Assignment) -> AsyncIterator[Report]:
        """What the process says, from its first word on, until it has a result or is gone."""
        del assignment  # it went along with the submission
        taken = 0
        while True:
            is_over = await self._is_over()  # first: what was said before its end is read after it
            fresh = await asyncio.to_thread(self._read, taken)
            for report, _ in fresh:
                if isinstance(report, Done | Skipped | Failed | Yielded):
                    self._has_ended = True
                yield report
                if self._has_ended:
                    return
            taken = fresh[-1][1] if fresh else taken
            if is_over:
                return
            await asyncio.sleep(self._poll_s)

    def _read(self, taken: int) -> list[tuple[Report, int]]:
        try:
            with self._reports_file.open("rb") as said:
                said.seek(taken)
                content = said.read()
        except FileNotFoundError:
            return []
        return [(report, taken + end) for report, end in unpacked(content, Report)]  # type: ignore[arg-type]

    async def _is_over(self) -> bool:
        """Whether Ray says that it has ended, asked at most once a second; while it is away: not yet."""
        now_s = asyncio.get_running_loop().time()
        if now_s - self._looked_s >= _STATUS_S:
            self._looked_s = now_s
            try:
                # A cluster that was started anew knows nothing of it.
                self._status = await self._cluster.ask("GET", f"jobs/{self._identity}") or {
                    "status": "STOPPED",
                    "message": "the cluster no longer knows it",
                }
            except (RayAway, InvalidConfiguration) as error:
                log.warning("a job's status cannot be asked, will try again", error=str(error))
        return self._status.get("status") in _OVER

    def kill(self) -> None:
        """Have Ray end it, unless it has said its last word."""
        if not self._has_ended and self._stopping is None and self._status.get("status") not in _OVER:
            self._stopping = asyncio.create_task(self._stop())

    async def _stop(self) -> None:
        while True:
            try:
                await self._cluster.ask("POST", f"jobs/{self._identity}/stop")
            except (RayAway, InvalidConfiguration) as error:
                log.warning("a job cannot be stopped, will try again", error=str(error))
                await asyncio.sleep(_AGAIN_S)
            else:
                return

    def let_go(self) -> None:
        """The trainer ends, the job does not: the next trainer goes on with it."""

    def ask_to_yield(self) -> None:
        """It has no way to hear: it is ended, and goes on from the last state that it kept."""
        self.kill()

    async def ended(self) -> int | None:
        """Wait until Ray says that it is gone. Its exit code, negative for a signal."""
        if self._stopping is not None:
            await self._stopping
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_GONE_AFTER_S):
                while not await self._is_over():  # noqa: ASYNC110  (nobody tells)
                    await asyncio.sleep(self._poll_s)
        await self._keep_log()
        match self._status.get("status"):
            case "SUCCEEDED":
                return 0
            case "FAILED":
                return int(self._status.get("driver_exit_code") or 1)
            case _:
                return -signal.SIGTERM

    async def _keep_log(self) -> None:
        said = f"{self._status.get('message') or ''}\n"
        with contextlib.suppress(RayAway, InvalidConfiguration):
            said = str((await self._cluster.ask("GET", f"jobs/{self._identity}/logs")).get("logs", "")) + said
        self._log_tail = said.strip()[-_LOG_TAIL_CHARACTERS:]
        with contextlib.suppress(OSError):
            await asyncio.to_thread(self.log_file.write_text, said, encoding="utf-8", errors="replace")

    def log_tail(self) -> str:
        """The end of what it printed, and what Ray says of its end."""
        return self._log_tail


def _files(folder: Path, attempt: int) -> tuple[Path, Path]:
    return folder / f"attempt-{attempt}.json", folder / f"attempt-{attempt}.reports"
