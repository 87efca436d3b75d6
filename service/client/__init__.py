"""A Python client of the service: typed answers, one rule for asking again, typed faults; it starts without torch.

`Client` waits for its answers, `AsyncClient` awaits them. What is asked is written once, in `talks`, as requests and
answers of plain values; `carrier` says how they travel, and the two clients carry them.
"""

from service.client.awaiting import AsyncClient
from service.client.blocking import Client
from service.client.described import Health, InputTensor, Limit, Limits, Model, OutputTask, Site
from service.client.prediction import Prediction

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
