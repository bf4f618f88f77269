"""Find a pipeline by the module or the file that an engineer names."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from schemas.errors import InvalidConfiguration
from streams.pipeline import Pipeline


@dataclass(frozen=True, slots=True)
class Loaded:
    """A pipeline with the hash of the file that declares it."""

    pipeline: Pipeline
    file: Path
    sha256: str


def load_pipeline(named: str) -> Loaded:
    """The one pipeline that a module ("streams.pipelines.flights") or a file ("flights.py") declares.

    Raises:
        InvalidConfiguration: it is not there, cannot be imported, or declares none or several.
    """
    module = _from_file(Path(named)) if named.endswith(".py") else _from_name(named)
    found = {name: value for name, value in vars(module).items() if isinstance(value, Pipeline)}
    if len(found) != 1:
        what = "no pipeline" if not found else f"{len(found)} pipelines ({', '.join(found)})"
        raise InvalidConfiguration(
            f"{named} declares {what}; assign exactly one Pipeline(...) to a name in it"
        )
    file = Path(str(module.__file__))
    return Loaded(next(iter(found.values())), file, hashlib.sha256(file.read_bytes()).hexdigest())


def _from_name(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and not name.startswith(error.name):
            raise InvalidConfiguration(f"{name} imports {error.name!r}, which is not installed") from error
        raise InvalidConfiguration(
            f"there is no pipeline module {name!r}; name a module that can be imported, or a .py file"
        ) from error


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise InvalidConfiguration(f"there is no pipeline file {path}; check the path")
    spec = importlib.util.spec_from_file_location(f"pipeline_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    # The model's code may lie beside it, as beside a program; behind all else, so that it hides nothing.
    if (folder := str(path.absolute().parent)) not in sys.path:
        sys.path.append(folder)
    try:
        spec.loader.exec_module(module)
    except InvalidConfiguration:
        raise
    except SyntaxError as error:
        raise InvalidConfiguration(f"{error.filename}:{error.lineno}: {error.msg}") from error
    except Exception as error:
        line = _line_in(path, error)
        raise InvalidConfiguration(f"{path}:{line}: {type(error).__name__}: {error}") from error
    return module


def _line_in(path: Path, error: BaseException) -> int:
    """The last line of that file in an error's trace."""
    line = 0
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = trace.tb_lineno
        trace = trace.tb_next
    return line
