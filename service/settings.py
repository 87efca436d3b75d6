"""Every knob of the service, once: name, default, unit, help; the only place that reads environment variables.

Each setting is `THINNET_<NAME>` in the environment and, for `thinnet serve`, an option of the same name.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

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
    workers: Annotated[int, Field(description="processes that serve; they share the models' memory", ge=1, le=256)] = 1
    threads: Annotated[
        int,
        Field(description="threads that compute in each worker; 0: its share of the usable processors", ge=0, le=1024),
    ] = 0
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
