"""Walls around a process: what is closed is closed by every way, and all else goes on as before."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from infra.walls import Walls, has_walls, landlock_abi

pytestmark = pytest.mark.skipif(not has_walls(), reason="this kernel has no Landlock that serves")

# Puts up walls, then tries what it is told to: a name and an expression each; says what came of it.
INSIDE = """
import json, os, shutil, signal, subprocess, sys, tempfile, threading
from pathlib import Path
import msgspec
from infra.walls import Walls

walls, tries, outside = json.loads(sys.argv[1])
msgspec.convert(walls, Walls).go_up()
found = {}
def attempt(name, expression):
    try:
        found[name] = str(eval(expression))
    except OSError as error:
        found[name] = type(error).__name__
for name, expression in tries.items():
    if name.startswith("thread"):
        thread = threading.Thread(target=attempt, args=(name, expression))
        thread.start()
        thread.join()
    else:
        attempt(name, expression)
print(json.dumps(found))
"""


def tried(walls: Walls, tries: dict[str, str], **environment: str) -> dict[str, str]:
    said = subprocess.run(
        [sys.executable, "-c", INSIDE, json.dumps([msgspec.to_builtins(walls), tries, os.getpid()])],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert said.returncode == 0, said.stderr
    return json.loads(said.stdout)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with a key, a job's own folder and another's, a dataset; a way round by a link."""
    for name, content in {
        "keys/a.pem": "secret",
        "jobs/mine/own/seen": "mine",
        "jobs/other/own/state": "secret",
        "dataset/part": "rows",
        "settings.toml": "secret",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    (tmp_path / "way").symlink_to("keys")
    return tmp_path


def walls_of(home: Path, **changes: Any) -> Walls:
    closed = [str(home / each) for each in ("keys", "jobs", "settings.toml")]
    fields = {"own": str(home / "jobs/mine/own"), "closed": closed, "kept": [str(home)], **changes}
    return msgspec.convert(fields, Walls)


def test_what_is_closed_is_closed_by_every_way(home: Path) -> None:
    key, own = home / "keys/a.pem", home / "jobs/mine/own"
    read = {
        "path": f"open({str(key)!r}).read()",
        "link": f"open({str(home / 'way/a.pem')!r}).read()",
        "root": f"open('/proc/self/root{key}').read()",
        "relative": f"(os.chdir({str(home)!r}), open('keys/a.pem').read())",
        "new link": f"(os.symlink({str(key)!r}, {str(own / 'l')!r}), open({str(own / 'l')!r}).read())",
        "other job": f"open({str(home / 'jobs/other/own/state')!r}).read()",
        "settings": f"open({str(home / 'settings.toml')!r}).read()",
        "thread": f"open({str(key)!r}).read()",
        "environment outside": "open(f'/proc/{outside}/environ').read()",
        "memory outside": "open(f'/proc/{outside}/mem', 'rb')",
        "open files outside": "os.open(f'/proc/{outside}/root', os.O_RDONLY)",
    }
    write = {
        "write": f"open({str(key)!r}, 'w')",
        "truncate": f"os.truncate({str(home / 'dataset/part')!r}, 0)",
        "append": f"open({str(home / 'dataset/part')!r}, 'a')",
        "make": f"open({str(home / 'dataset/new')!r}, 'w')",
        "remove": f"os.unlink({str(home / 'dataset/part')!r})",
        "library": f"open({str(Path(pytest.__file__))!r}, 'a')",
        "hard link": f"os.link({str(key)!r}, {str(own / 'h')!r})",
        "move": f"os.rename({str(home / 'jobs/other/own')!r}, {str(own / 'm')!r})",
        "folder": f"os.mkdir({str(home / 'jobs/else')!r})",
    }
    if landlock_abi() >= 6:
        write["signal"] = "os.kill(outside, signal.SIGCONT)"
    started = {"another program": f"subprocess.run(['cat', {str(key)!r}], capture_output=True).stdout"}
    found = tried(walls_of(home), {**read, **write, **started})
    assert found.pop("another program") == "b''"
    assert found.pop("hard link") == "OSError"  # EXDEV, as between two file systems
    assert set(found.values()) == {"PermissionError"}, found
    assert key.read_text() == "secret"
    assert (home / "dataset/part").read_text() == "rows"


def test_all_else_is_read_and_its_own_folder_is_written_to(home: Path) -> None:
    own = home / "jobs/mine/own"
    found = tried(
        walls_of(home),
        {
            "own": f"open({str(own / 'seen')!r}).read()",
            "write": f"open({str(own / 'new')!r}, 'w').write('abc')",
            "move": f"(os.mkdir({str(own / 'd')!r}), os.rename({str(own / 'new')!r}, {str(own / 'd/n')!r}))",
            "truncate": f"os.truncate({str(own / 'd/n')!r}, 1)",
            "remove": f"shutil.rmtree({str(own / 'd')!r})",
            "dataset": f"open({str(home / 'dataset/part')!r}).read()",
            "names": f"sorted(os.listdir({str(home)!r}))",
            "library": f"len(open({str(Path(pytest.__file__))!r}).read()) > 0",
            "temporary": "tempfile.NamedTemporaryFile().write(b'ab')",
            "null": "open('/dev/null', 'w').write('a')",
            "child": "subprocess.run(['true']).returncode",
        },
    )
    assert found == {
        "own": "mine",
        "write": "3",
        "move": "(None, None)",
        "truncate": "None",
        "remove": "None",
        "dataset": "rows",
        "names": str(sorted(each.name for each in home.iterdir())),
        "library": "True",
        "temporary": "2",
        "null": "1",
        "child": "0",
    }


def test_temporary_files_go_where_they_may(home: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    usual = tmp_path_factory.mktemp("usual")
    where = {"where": "tempfile.NamedTemporaryFile().name", "told": "os.environ['TMPDIR']"}
    assert tried(walls_of(home), where, TMPDIR=str(usual))["where"].startswith(str(usual))
    above = tried(walls_of(home), where, TMPDIR=str(home))
    assert above["told"] == str(home / "jobs/mine/own/tmp")
    assert above["where"].startswith(above["told"])


def test_other_folders_are_written_to_if_they_are_named_and_nothing_that_is_kept(home: Path) -> None:
    (home / "elsewhere").mkdir()
    tries = {
        "named": f"open({str(home / 'elsewhere/a')!r}, 'w').write('a')",
        "kept": f"open({str(home / 'dataset/part')!r}, 'w')",
    }
    named = walls_of(home, kept=[str(home / "dataset")], writable=[str(home)])
    assert tried(named, tries) == {"named": "1", "kept": "PermissionError"}
    assert tried(walls_of(home), tries) == {"named": "PermissionError", "kept": "PermissionError"}
