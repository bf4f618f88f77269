"""What glibc's malloc does with what is free, in a worker and in a push."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc is not glibc's")

_BEGIN = """
import ctypes, resource, sys, threading
from infra import malloc
if sys.argv[1] == "shared":
    malloc.spare()
if sys.argv[1] == "kept":
    malloc.keep()
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fopen.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
"""
_TELL = """
file = libc.fopen(b"/dev/stdout", b"w")
libc.malloc_info(0, ctypes.c_void_p(file))
libc.fclose(ctypes.c_void_p(file))
"""
_COUNT = f"""{_BEGIN}
together = threading.Barrier(12)
def work():
    libc.malloc(ctypes.c_size_t(100_000))
    together.wait()
threads = [threading.Thread(target=work) for _ in range(12)]
for thread in threads: thread.start()
for thread in threads: thread.join()
{_TELL}"""
_MAPPED = f"""{_BEGIN}
for _ in range(3):
    libc.free(libc.malloc(ctypes.c_size_t(32_000_000)))
libc.malloc(ctypes.c_size_t(32_000_000))
{_TELL}"""
_REQUESTS = f"""{_BEGIN}
def request():
    copies = [libc.malloc(ctypes.c_size_t(4_500_000)) for _ in range(8)]
    for copy in copies: libc.memset(copy, 1, 4_500_000)
    for copy in copies: libc.free(copy)
for _ in range(2):
    request()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    request()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def said(program: str, how: str) -> str:
    """What a process says that ran this."""
    named = ("MALLOC_ARENA_MAX", "MALLOC_MMAP_THRESHOLD_")
    environment = {name: value for name, value in os.environ.items() if name not in named}
    command = [sys.executable, "-c", program, how]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout


def arenas(how: str) -> int:
    return said(_COUNT, how).count("<heap ")


def mapped_bytes(how: str) -> int:
    found = re.findall(r'<total type="mmap" count="\d+" size="(\d+)"/>', said(_MAPPED, how))
    return int(found[-1])


def taken_anew(how: str) -> int:
    return int(said(_REQUESTS, how))


def test_threads_of_a_worker_share_a_few_arenas() -> None:
    assert arenas("each its own") > 2
    assert arenas("shared") <= 2


def test_what_is_large_is_mapped_each_time_and_given_back() -> None:
    assert mapped_bytes("as it comes") < 32_000_000, "by itself malloc takes it from the heap from then on"
    assert mapped_bytes("shared") >= 32_000_000


def test_a_process_that_sends_takes_no_page_twice() -> None:
    assert taken_anew("as it comes") > 10_000, "by itself malloc gives back what ten requests took"
    assert taken_anew("kept") < 1_000
