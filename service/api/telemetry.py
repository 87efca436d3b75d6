"""OpenTelemetry by FastAPI's own support: off unless asked for; it does not know where it is sent."""

from collections.abc import MutableMapping
from typing import Any

from fastapi.telemetry import TelemetryConfig

from service.api.observed import PROBES
from service.settings import Settings


def telemetry(settings: Settings) -> TelemetryConfig:
    """Return what FastAPI traces and measures; messages of faults, which may hold inputs, never."""
    on = settings.telemetry
    return {
        "tracing": on,
        "metrics": on,
        "operation_spans": on,
        "auto_configure": on,
        "logs": False,
        "exclude": _is_probe,
    }


def _is_probe(scope: MutableMapping[str, Any]) -> bool:
    return str(scope.get("path", "")).endswith(PROBES)
