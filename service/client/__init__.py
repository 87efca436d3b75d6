"""A Python client of the service: typed answers, one rule for asking again, typed faults; it starts without torch.

`Client` waits for its answers, `AsyncClient` awaits them. What is asked is written once, in `talks`, as requests and
answers of plain values; `carrier` says how they travel, and the two clients carry them.

A name is resolved on first use, and a client brings the library for HTTP when it is made: a program that may ask a
server starts as fast as one that does not.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from service.client.awaiting import AsyncClient
    from service.client.blocking import Client
    from service.client.described import Health, InputTensor, Limit, Limits, Model, OutputTask, Site
    from service.client.prediction import Prediction

_DESCRIBED = ("Health", "InputTensor", "Limit", "Limits", "Model", "OutputTask", "Site")
_MODULES = {"AsyncClient": "awaiting", "Client": "blocking", "Prediction": "prediction"}
_MODULES |= dict.fromkeys(_DESCRIBED, "described")
__all__ = [
    "AsyncClient",
    "Client",
    "Health",
    "InputTensor",
    "Limit",
    "Limits",
    "Model",
    "OutputTask",
    "Prediction",
    "Site",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'service.client' has no attribute {name!r}; it exports {', '.join(__all__)}")
    return getattr(import_module(f"service.client.{_MODULES[name]}"), name)
