"""Every knob of the service, once: name, default, unit, help; the only place that reads environment variables.

Each setting is `THINNET_<NAME>` in the environment and, for `thinnet serve`, an option of the same name. A secret is
never an option: every user of a machine sees the others' command lines.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.errors import InvalidSettings

_MIB = 1 << 20


class Settings(BaseSettings):
    """What a server can be told."""

    model_config = SettingsConfigDict(env_prefix="THINNET_", extra="forbid", frozen=True)

    models: Annotated[Path, Field(description="folder with one folder for each model")] = Path("models")
    host: Annotated[str, Field(description="address to listen on")] = "127.0.0.1"
    port: Annotated[int, Field(description="port to listen on", ge=0, le=65535)] = 8000
    root_path: Annotated[str, Field(description="path that a proxy in front strips", pattern=r"^(/[^/?#]+)*$")] = ""
    device: Annotated[
        str, Field(description="where networks run: auto (a GPU where there is one), cpu, cuda, cuda:1, …")
    ] = "auto"
    keys_file: Annotated[
        Path | None, Field(description="file of API keys, a line of `thinnet key` each; without one nobody needs a key")
    ] = None
    allow_anonymous: Annotated[bool, Field(description="serve a public address without keys")] = False
    open_metrics: Annotated[bool, Field(description="answer /metrics without a key")] = False
    max_requests: Annotated[int, Field(description="most requests at once, of one worker", ge=1)] = 256
    max_connections: Annotated[int, Field(description="most connections at once, of one worker", ge=1)] = 1000
    max_target_bytes: Annotated[int, Field(description="longest path and query (bytes)", ge=64)] = 4096
    max_header_bytes: Annotated[int, Field(description="largest headers of one request (bytes)", ge=1024)] = 16384
    header_timeout_s: Annotated[float, Field(description="time for a request's head to arrive (seconds)", gt=0)] = 10.0
    body_timeout_s: Annotated[float, Field(description="time for a request's body to arrive (seconds)", gt=0)] = 60.0
    write_timeout_s: Annotated[float, Field(description="time in which a caller reads nothing (seconds)", gt=0)] = 30.0
    max_json_depth: Annotated[int, Field(description="deepest nesting of a JSON body", ge=8, le=512)] = 64
    max_held_bytes: Annotated[int, Field(description="most bytes of bodies at once, of one worker", ge=1)] = 512 * _MIB
    max_body_bytes: Annotated[int, Field(description="largest request body, also once unpacked (bytes)", ge=1)] = (
        64 * _MIB
    )
    max_rows: Annotated[int, Field(description="most rows of one request", ge=1)] = 100_000
    max_passes: Annotated[int, Field(description="most passes of one request", ge=2, le=10_000)] = 10_000
    max_row_passes: Annotated[int, Field(description="most rows × passes of one request", ge=2)] = 50_000_000
    max_wait_s: Annotated[float, Field(description="most work ahead of a request that is accepted (seconds)", gt=0)] = (
        2.0
    )
    max_jobs: Annotated[int, Field(description="most requests that may be accepted and not answered", ge=1)] = 1024
    timeout_s: Annotated[
        float, Field(description="time that a request is given if it names none, queue and compute (seconds)", gt=0)
    ] = 60
    max_timeout_s: Annotated[float, Field(description="most time that a request may ask for (seconds)", gt=0)] = 600
    memory_bytes: Annotated[int, Field(description="what one request may hold in its passes (bytes)", ge=_MIB)] = (
        1024 * _MIB
    )
    engine: Annotated[
        Literal["local", "ray"], Field(description="what serves: processes of this machine, or replicas in Ray")
    ] = "local"
    workers: Annotated[int, Field(description="processes that serve; they share the models' memory", ge=1, le=256)] = 1
    threads: Annotated[
        int,
        Field(description="threads that compute in each worker; 0: its share of the usable processors", ge=0, le=1024),
    ] = 0
    min_replicas: Annotated[int, Field(description="fewest replicas in Ray", ge=1, le=1000)] = 1
    max_replicas: Annotated[
        int, Field(description="most replicas in Ray, which scales between; 0: min_replicas, always", ge=0)
    ] = 0
    target_requests: Annotated[
        float, Field(description="requests at once, of one replica, that Ray scales towards", gt=0)
    ] = 8.0
    replica_cpus: Annotated[float, Field(description="processors that Ray sets aside for a replica", gt=0)] = 1.0
    replica_gpus: Annotated[float, Field(description="GPUs, or a share of one, of a replica in Ray", ge=0)] = 0.0
    max_replica_requests: Annotated[
        int, Field(description="most that Ray sends a replica at once; above max_requests probes get through", ge=1)
    ] = 288
    max_queued_requests: Annotated[
        int, Field(description="most requests that wait at one of Ray's proxies for a replica", ge=1)
    ] = 256
    drain_s: Annotated[
        float, Field(description="longest end after SIGTERM, and of workers with old models (s)", gt=0)
    ] = 30.0
    stall_s: Annotated[float, Field(description="a worker without progress for this long is replaced (s)", ge=1)] = 60.0
    versions_kept: Annotated[int, Field(description="versions of a model that are loaded, the highest", ge=1)] = 2
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Field(description="what is logged; debug: probes and scrapes too")
    ] = "info"
    log_format: Annotated[
        Literal["auto", "json", "text"], Field(description="json, or text, which auto takes for a terminal")
    ] = "auto"
    telemetry: Annotated[
        bool, Field(description="OpenTelemetry traces and metrics, to where the OTEL_… variables say")
    ] = False


class CallerSettings(BaseSettings):
    """What one who calls a server can be told."""

    model_config = SettingsConfigDict(env_prefix="THINNET_", extra="forbid", frozen=True)

    api_key: Annotated[SecretStr | None, Field(description="key that `thinnet score --url` shows the server")] = None
    api_key_file: Annotated[Path | None, Field(description="file with that key, instead of it")] = None

    def key(self) -> str | None:
        """Return the key; a file's where one is named.

        Raises:
            InvalidSettings: The file cannot be read, or is empty.
        """
        if self.api_key_file is None:
            return self.api_key.get_secret_value() if self.api_key is not None else None
        try:
            key = self.api_key_file.read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidSettings(f"api_key_file {self.api_key_file} cannot be read: {error}; check the path") from None
        if not key:
            raise InvalidSettings(f"api_key_file {self.api_key_file} is empty; write the key into it")
        return key


def caller_settings(api_key_file: Path | None = None) -> CallerSettings:
    """Return a caller's settings, with the file of the key where it was given."""
    return CallerSettings() if api_key_file is None else CallerSettings(api_key_file=api_key_file)
