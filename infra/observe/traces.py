"""OpenTelemetry traces, where `[traces]` asks for them; else nothing of OpenTelemetry is even imported.

A trace begins with the commit that closed a window and ends with the services that adopted the model:
commit, window, decision, job, training, publishing, adoption. Spans are recorded once they are over, each
under ids made of what it is about (`schemas.trace`); the place travels in the events.

Needs the extra: `pip install 'tidemill-system[traces]'`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TextIO

from infra.logging import logger
from infra.settings_model import Traces as Options
from schemas.errors import InvalidConfiguration
from schemas.trace import Place, beginning, record

log = logger(__name__)

_FLUSH_MS = 5_000


class Traces:
    """Records spans of one process. Use `begin`, and `end` before the process ends."""

    def __init__(self, options: Options, *, part: str) -> None:
        try:
            self._file = None if options.file is None else _open(options.file)
            self._provider, self._tracer, self._ids = _set_up(options, part, self._file)
        except ImportError as error:
            raise InvalidConfiguration(
                f"traces.exporter is {options.exporter}, but {error.name} is not installed; install the "
                "extra: pip install 'tidemill-system[traces]', or set traces.exporter to none"
            ) from error
        self._share = options.share

    def beginning(self, of: str) -> Place:
        """Where the trace of something begins."""
        return beginning(of, share=self._share)

    def record(
        self,
        name: str,
        place: Place,
        *,
        parent: Place | None = None,
        start_ms: float,
        end_ms: float,
        failed: str = "",
        **attributes: str | float | bool,
    ) -> None:
        """Record one span that is over.

        Args:
            start_ms, end_ms: epoch milliseconds.
            failed: what went wrong; empty: nothing.
        """
        if not place.sampled:
            return
        self._ids.next = place
        record(
            self._tracer,
            name,
            parent=parent,
            start_ms=start_ms,
            end_ms=end_ms,
            attributes=attributes,
            failed=failed,
        )

    def end(self) -> None:
        """Send what is still to be sent; a collector that is away is not waited for long."""
        self._provider.force_flush(_FLUSH_MS)
        self._provider.shutdown()
        if self._file is not None:
            self._file.close()


def begin(options: Options, *, part: str) -> Traces | None:
    """The traces that the settings ask for; None where they ask for none.

    Raises:
        InvalidConfiguration: the extra is not installed, or the file cannot be written.
    """
    return None if options.exporter == "none" else Traces(options, part=part)


def _set_up(options: Options, part: str, file: TextIO | None) -> tuple[Any, Any, Any]:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter
    from opentelemetry.sdk.trace.id_generator import IdGenerator
    from opentelemetry.sdk.trace.sampling import ALWAYS_ON

    class Ids(IdGenerator):
        """Those of the place that is recorded next."""

        next = Place(1, 1)

        def generate_trace_id(self) -> int:
            return self.next.trace_id

        def generate_span_id(self) -> int:
            return self.next.span_id

    ids = Ids()
    # Which traces are recorded is said by their ids, here and in whoever follows: not by a sampler of each.
    provider = TracerProvider(
        resource=Resource.create({"service.name": f"tidemill-{part}"}),
        id_generator=ids,
        sampler=ALWAYS_ON,
        shutdown_on_exit=False,
    )
    if options.exporter == "otlp":
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        exporter: Any = OTLPSpanExporter(endpoint=options.endpoint)
    else:
        assert file is not None  # the settings hold it
        exporter = ConsoleSpanExporter(out=file, formatter=lambda span: span.to_json(indent=None) + "\n")
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=options.interval_ms))
    return provider, provider.get_tracer("tidemill"), ids


def _open(file: Path) -> TextIO:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        return file.open("a", encoding="utf-8")
    except OSError as error:
        raise InvalidConfiguration(f"traces.file {file} cannot be written: {error.strerror}") from error
