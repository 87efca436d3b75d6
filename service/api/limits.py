"""Every limit in force, told from the settings; it does not know where each is checked."""

from typing import Any

from fastapi import APIRouter, Request, Response

from service.api.bodies import json_answer
from service.api.keys import Key
from service.settings import Settings

router = APIRouter(tags=["thinnet"])
_UNITS = {"_bytes": "bytes", "_s": "s"}


def unit_of(name: str) -> str | None:
    """Return the unit of a setting that is a limit, which its name tells; None where it is none."""
    for ending, unit in _UNITS.items():
        if name.endswith(ending):
            return unit
    return name.removeprefix("max_").replace("_", "-") if name.startswith("max_") else None


def limits_of(settings: Settings) -> dict[str, dict[str, Any]]:
    """Return each limit's value, unit and meaning, by its setting's name."""
    return {
        name: {"value": getattr(settings, name), "unit": unit, "what": field.description}
        for name, field in Settings.model_fields.items()
        if (unit := unit_of(name)) is not None
    }


@router.get("/limits", summary="Every limit in force, with its unit")
async def limits(request: Request) -> Response:
    """Answer the limits that requests are held to, and what is left to the caller's key."""
    key: Key = request.state.key
    share = {"name": key.name, "cost_s_per_minute": key.cost_per_minute, "left_s": key.left_s()}
    return json_answer({"limits": limits_of(request.app.state.serving.settings), "key": share})
