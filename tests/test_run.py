"""How a worker's process is set up before Faust begins."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

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
