"""One log for all of this process: structlog's events and the libraries' own, with what they belong to.

`correlated(pipeline=…, job=…)` puts ids on every line logged within, over awaits and into tasks. So one greps
from an event to the model that it helped to make:

    part, pipeline                every line of a worker
    offsets, version              a commit (level debug): by its place an event finds the dataset's version
    letter                        an event that was refused (level debug): the dead letter's id
    window, version               a window that closed or was amended, and the version that closed it
    window, decision, job         what the trigger decided on it, and the job of a yes
    job, attempt, model, decision every line of a trainer about a job
    model, model_version, job     the model that came of it: published, refused, and adopted by a service
"""

from __future__ import annotations

import logging
import logging.handlers
import sys
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TextIO

import structlog

from .settings_model import Log

FILE_SIZE_BYTES = 10 * 1024 * 1024
FILES_KEPT = 3
CHATTY = ("aiokafka", "faust", "mode", "httpx", "httpcore", "urllib3", "asyncio", "matplotlib")
"""Libraries whose `info` says nothing that an operator of Tidemill needs."""


def configure(
    settings: Log, *, part: str, file: Path | None = None, stream: TextIO | None = None, **ids: str
) -> list[logging.Handler]:
    """Send this process's log to `stream` (default: stderr) and, as JSON lines, to a file.

    `part` is on every line: worker, trainer, …, and so are `ids`. `file` is used if the settings name none.
    The last call holds. Gives the root logger's new handlers. Raises OSError if the file cannot be written.
    """
    stream = sys.stderr if stream is None else stream
    on_terminal = stream is not None and stream.isatty()  # a daemon has no stderr
    shared = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _named({"part": part, **ids}),
    ]
    foreign = [*shared, structlog.stdlib.ExtraAdder(), _without_message]
    readable = settings.form == "console" or (settings.form == "auto" and on_terminal)
    as_json = _json(foreign)
    handlers: list[logging.Handler] = [logging.StreamHandler(stream)]
    handlers[0].setFormatter(_readable(foreign, colors=on_terminal) if readable else as_json)
    if target := settings.file or file:
        target.parent.mkdir(parents=True, exist_ok=True)
        to_file = logging.handlers.RotatingFileHandler(
            target, maxBytes=FILE_SIZE_BYTES, backupCount=FILES_KEPT, encoding="utf-8"
        )
        to_file.setFormatter(as_json)
        handlers.append(to_file)

    root = logging.getLogger()
    for former in list(root.handlers):
        if getattr(former, "of_tidemill", False):
            root.removeHandler(former)
            former.close()
    for handler in handlers:
        handler.of_tidemill = True  # type: ignore[attr-defined]
        root.addHandler(handler)
    level = getattr(logging, settings.level.upper())
    root.setLevel(level)
    for name in CHATTY:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,  # a module may log before this call
    )
    return handlers


def logger(name: str) -> structlog.stdlib.BoundLogger:
    """The logger of one module: `log = logger(__name__)`."""
    return structlog.stdlib.get_logger(name)


def correlated(**ids: Any) -> AbstractContextManager[None]:
    """Within this block each line carries `ids`: the pipeline, window, job or model it belongs to."""
    return structlog.contextvars.bound_contextvars(**ids)


def _named(ids: dict[str, str]) -> structlog.typing.Processor:
    def add(_logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        for name, value in ids.items():
            event.setdefault(name, value)
        return event

    return add


def _without_message(
    _logger: Any, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    event.pop("message", None)  # what another formatter left on the record: the event, a second time
    return event


class _Once(structlog.stdlib.ProcessorFormatter):
    """Makes a line once for all who ask: two handlers do, and that of the file to see whether it has room."""

    # Not the record itself: one of an exception holds all that the exception's frames hold.
    _last: tuple[Callable[[], logging.LogRecord | None], str] = (lambda: None, "")

    def format(self, record: logging.LogRecord) -> str:
        known, line = self._last
        if known() is not record:
            line = super().format(record)
            self._last = (weakref.ref(record), line)
        return line


def _json(foreign: list[structlog.typing.Processor]) -> logging.Formatter:
    return _Once(
        foreign_pre_chain=foreign,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.dict_tracebacks,
            structlog.processors.JSONRenderer(ensure_ascii=False, default=str),
        ],
    )


def _readable(foreign: list[structlog.typing.Processor], *, colors: bool) -> logging.Formatter:
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=foreign,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.dev.ConsoleRenderer(colors=colors),
        ],
    )
