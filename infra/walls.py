"""What a job's code may read and write, held by the kernel: Landlock, for which nobody needs to be root.

Model code is anybody's and mostly runs as the trainer's own user, who may read the keys that sign models. A
process that puts up walls gives up such rights, for itself and all that it starts, for good. Nor can it look
into processes outside (their memory, environment, open files) or, from Linux 6.12 on, signal them.

Landlock knows only what is allowed. Around what is closed that is each entry of the folders above it, as they
are when the walls go up; what is made later in such a folder is closed, too. Names are no secret, and
Python's imports list folders: listing stays free. Root can do more than walls hold back.

After M. Salaün, "Landlock: unprivileged access control", in the Linux kernel's user-space API guide.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
import sys
import tempfile
from collections.abc import Sequence
from enum import IntFlag
from functools import cache, reduce
from operator import or_
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from msgspec import Struct, structs

from schemas.errors import InvalidConfiguration
from schemas.job import Experiment

if TYPE_CHECKING:
    from infra.settings_model import Settings

OLDEST_ABI = 2
"""Linux 5.19. Before that, no file could be moved from one folder to another by whoever has walls."""
NO_WALLS = "this kernel has no Landlock that serves: Linux 5.19 or newer, landlock among its security modules"
_TRUNCATE_SINCE, _SIGNAL_SINCE = 3, 6
_CREATE, _ADD_RULE, _RESTRICT = 444, 445, 446  # system calls, of the same number on every processor
_ASK_ABI, _PATH_BENEATH, _SCOPE_SIGNAL = 1, 1, 2
_PR_SET_NO_NEW_PRIVS = 38
_CAPABILITY_VERSION = 0x20080522
_OVER_FILES = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 4  # CHOWN, DAC_OVERRIDE, FOWNER, FSETID
_TEMPORARY = "tmp"


class _Right(IntFlag):
    """Landlock's names and bits. Executing, and listing folders, are left free."""

    WRITE_FILE = 1 << 1
    READ_FILE = 1 << 2
    REMOVE_DIR = 1 << 4
    REMOVE_FILE = 1 << 5
    MAKE_CHAR = 1 << 6
    MAKE_DIR = 1 << 7
    MAKE_REG = 1 << 8
    MAKE_SOCK = 1 << 9
    MAKE_FIFO = 1 << 10
    MAKE_BLOCK = 1 << 11
    MAKE_SYM = 1 << 12
    REFER = 1 << 13
    TRUNCATE = 1 << 14


_EVERY = reduce(or_, _Right)
_OF_FILES = _Right.WRITE_FILE | _Right.READ_FILE | _Right.TRUNCATE
_READ = _Right.READ_FILE
_WRITE = _EVERY & ~(_Right.READ_FILE | _Right.MAKE_CHAR | _Right.MAKE_BLOCK)


class Walls(Struct, frozen=True, kw_only=True):
    """Around one job's process.

    Attributes:
        own: the folder that it has for itself: it reads and writes there whatever else is closed.
        closed: files and folders that it neither reads nor writes, and all beneath them.
        kept: what it may read and never writes, though it lie in a folder for temporary files; the libraries
            that it runs by are, too.
        writable: where it may write, beside its own folder and that for temporary files.

    Wherever nothing else is said it reads, and does not write.
    """

    own: str
    closed: tuple[str, ...]
    kept: tuple[str, ...] = ()
    writable: tuple[str, ...] = ()

    def around(self, experiment: Experiment, *, own: str) -> Walls:
        """Those of one job: its folder, and the rows that it reads."""
        ranges = (experiment.training, experiment.evaluation)
        rows = tuple(each.uri for each in ranges if each is not None and "://" not in each.uri)
        return structs.replace(self, own=own, kept=(*self.kept, *rows))

    def go_up(self) -> None:
        """Put them around this thread, and all threads and processes that it starts.

        Temporary files go to `own` where the usual folder lies above something that is closed. Who is root
        keeps of its capabilities only those over files.

        Raises:
            OSError: the kernel has no Landlock, or not for us.
        """
        own = os.path.realpath(self.own)
        closed = _resolved(self.closed)
        unwritten = [*closed, *_resolved((*self.kept, sys.prefix, sys.base_prefix))]
        temporary = os.path.realpath(tempfile.gettempdir())
        with _Ruleset() as rules:
            rules.allow("/", _READ, but_not=closed)
            rules.allow(own, _READ | _WRITE)
            for each in (temporary, "/dev", os.path.realpath("/proc/self")):
                rules.allow(each, _WRITE, but_not=unwritten)
            for each in _resolved(self.writable):
                rules.allow(each, _READ | _WRITE, but_not=unwritten)
            if os.geteuid() == 0:
                _keep_capabilities(_OVER_FILES)
            rules.restrict()
        if any(_holds(temporary, each) or _holds(each, temporary) for each in unwritten):
            inside = Path(own, _TEMPORARY)
            inside.mkdir(exist_ok=True)
            os.environ["TMPDIR"] = tempfile.tempdir = str(inside)


@cache
def landlock_abi() -> int:
    """Which version of Landlock this kernel has; 0: none, or it is switched off."""
    if sys.platform != "linux":
        return 0
    return max(0, ctypes.CDLL(None).syscall(ctypes.c_long(_CREATE), None, ctypes.c_size_t(0), _ASK_ABI))


def has_walls() -> bool:
    """Whether jobs can be given walls here."""
    return landlock_abi() >= OLDEST_ABI


def walls_of(settings: Settings) -> Walls | None:
    """What the settings close to jobs, without a job's own folder. None: no walls, by will or for want.

    Raises:
        InvalidConfiguration: they are required, and this kernel has none.
    """
    options, paths = settings.trainer, settings.paths
    if options.job_walls == "off" or options.backend != "local":
        return None
    if not has_walls():
        if options.job_walls == "required":
            raise InvalidConfiguration(
                f"trainer.job_walls is required, and {NO_WALLS}; boot one that has, or set it to auto"
            )
        return None
    return Walls(
        own="",
        closed=tuple(str(each) for each in (paths.signing_keys, paths.jobs, *settings.secret_files())),
        kept=tuple(str(each) for _, each in paths),
        writable=tuple(str(each) for each in options.job_writes),
    )


class _Ruleset:
    """A set of rules in the making; a context, at whose end its handle is closed."""

    def __init__(self) -> None:
        abi = landlock_abi()
        handled = _EVERY if abi >= _TRUNCATE_SINCE else _EVERY & ~_Right.TRUNCATE
        scoped = _SCOPE_SIGNAL if abi >= _SIGNAL_SINCE else 0
        self._handled = handled
        self._libc = ctypes.CDLL(None, use_errno=True)
        attributes = struct.pack("=QQQ", handled, 0, scoped)  # what a kernel does not know must be 0
        self._handle = self._call(_CREATE, attributes, ctypes.c_size_t(len(attributes)), 0)

    def __enter__(self) -> _Ruleset:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._handle)

    def allow(self, path: str, rights: _Right, *, but_not: Sequence[str] = ()) -> None:
        """Allow these beneath a path, but for what lies in `but_not`. What cannot be reached stays closed."""
        if any(_holds(each, path) for each in but_not):
            return
        inside = [each for each in but_not if _holds(path, each)]
        if not inside:
            self._add(path, rights)
            return
        try:
            entries = list(os.scandir(path))
        except OSError:
            return
        for entry in entries:
            if not entry.is_symlink():  # what counts is where it leads
                self.allow(entry.path, rights, but_not=inside)

    def _add(self, path: str, rights: _Right) -> None:
        try:
            handle = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return  # gone meanwhile, or not ours to reach
        try:
            if not stat.S_ISDIR(os.fstat(handle).st_mode):
                rights &= _OF_FILES
            rule = struct.pack("=Qi", rights & self._handled, handle)
            self._call(_ADD_RULE, self._handle, _PATH_BENEATH, rule, 0)
        finally:
            os.close(handle)

    def restrict(self) -> None:
        """From here on they hold."""
        if self._libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "no process may give up privileges for good here")
        self._call(_RESTRICT, self._handle, 0)

    def _call(self, number: int, *arguments: object) -> int:
        result = self._libc.syscall(ctypes.c_long(number), *arguments)
        if result < 0:
            code = ctypes.get_errno()
            raise OSError(code, f"Landlock: {os.strerror(code)}")
        return result


def _keep_capabilities(kept: int) -> None:
    """Give up all others for good: some let root look past walls, at another process's environment say."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = struct.pack("=Ii", _CAPABILITY_VERSION, 0)
    held = ctypes.create_string_buffer(24)  # effective, permitted, inheritable: the low words, then the high
    if libc.capget(header, held) != 0:
        raise OSError(ctypes.get_errno(), "capabilities cannot be read")
    low = [each & kept for each in struct.unpack("=III", held.raw[:12])]
    if libc.capset(header, struct.pack("=IIIIII", *low, 0, 0, 0)) != 0:
        raise OSError(ctypes.get_errno(), "capabilities cannot be given up")


def _resolved(paths: Sequence[str]) -> list[str]:
    return [os.path.realpath(each) for each in paths]


def _holds(folder: str, path: str) -> bool:
    """Whether a path is that folder, or lies in it."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")
