"""How a worker's process is set up before Faust begins."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys

import pytest

_COUNT = """
import ctypes, sys, threading
from streams.run import spare_memory
if sys.argv[1] == "shared":
    spare_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fopen.restype = ctypes.c_void_p
together = threading.Barrier(12)
def work():
    libc.malloc(ctypes.c_size_t(100_000))
    together.wait()
threads = [threading.Thread(target=work) for _ in range(12)]
for thread in threads: thread.start()
for thread in threads: thread.join()
file = libc.fopen(b"/dev/stdout", b"w")
libc.malloc_info(0, ctypes.c_void_p(file))
libc.fclose(ctypes.c_void_p(file))
"""
_MAPPED = """
import ctypes, sys
from streams.run import spare_memory
if sys.argv[1] == "shared":
    spare_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fopen.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
for _ in range(3):
    libc.free(libc.malloc(ctypes.c_size_t(32_000_000)))
libc.malloc(ctypes.c_size_t(32_000_000))
file = libc.fopen(b"/dev/stdout", b"w")
libc.malloc_info(0, ctypes.c_void_p(file))
libc.fclose(ctypes.c_void_p(file))
"""


def said(program: str, how: str) -> str:
    """What malloc tells of a process that ran this."""
    named = ("MALLOC_ARENA_MAX", "MALLOC_MMAP_THRESHOLD_")
    environment = {name: value for name, value in os.environ.items() if name not in named}
    command = [sys.executable, "-c", program, how]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout


def arenas(how: str) -> int:
    return said(_COUNT, how).count("<heap ")


def mapped_bytes(how: str) -> int:
    found = re.findall(r'<total type="mmap" count="\d+" size="(\d+)"/>', said(_MAPPED, how))
    return int(found[-1])


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc is not glibc's")
def test_threads_of_a_worker_share_a_few_arenas() -> None:
    assert arenas("each its own") > 2
    assert arenas("shared") <= 2


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc is not glibc's")
def test_what_is_large_is_mapped_each_time_and_given_back() -> None:
    assert mapped_bytes("as it comes") < 32_000_000, "by itself malloc takes it from the heap from then on"
    assert mapped_bytes("shared") >= 32_000_000


_CHILD = """
from streams.run import keep_memory
keep_memory()
import polars
polars.Series(range(10)).sum()
"""
_PARENT = f"""
import subprocess, sys
import polars
subprocess.run([sys.executable, "-c", {_CHILD!r}], check=True)
"""


@pytest.mark.parametrize("program", [_CHILD, _PARENT], ids=["by hand", "by a process that has Polars"])
@pytest.mark.parametrize(
    ("said", "kept_ms"), [("", "2000"), ("dirty_decay_ms:70", "70")], ids=["as it comes", "as wished"]
)
def test_polars_keeps_what_is_free_whoever_starts_the_worker(program: str, said: str, kept_ms: str) -> None:
    environment = {**os.environ, "_RJEM_MALLOC_CONF": ",".join(filter(None, [said, "stats_print:true"]))}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment
    )
    # The child ends first, and so tells first.
    told = re.findall(r"opt.(narenas|dirty_decay_ms): (\d+)", done.stderr)
    assert ("dirty_decay_ms", kept_ms) in told[:2]
    assert int(dict(told[:2])["narenas"]) <= 4
