"""Many predictions for a caller who waits: an event loop in a thread asks for some at a time."""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

from anyio.from_thread import start_blocking_portal

from service.client.asked import Asked
from service.client.awaiting import AsyncClient
from service.client.carrier import Carrier
from service.client.ordered import in_order_through
from service.client.prediction import Prediction


def predictions(
    carrier: Carrier, timeout_s: float | None, inputs: Iterable[Any], concurrency: int, asked: Asked
) -> Iterator[Prediction]:
    """Yield the prediction of each input, in order, as `Client.predict_many` says.

    Args:
        carrier: How requests travel.
        timeout_s: How long one may take where it names no time.
        inputs: What is asked.
        concurrency: How many requests are under way at once, at most.
        asked: As in `predict`, for each.
    """
    asking = AsyncClient(
        carrier.address.url,
        api_key=carrier.api_key,
        timeout_s=timeout_s,
        retries=carrier.retries,
        retry_s=carrier.retry_s,
    )
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(asking) as client:
        yield from in_order_through(portal, partial(client.predict_at, asked=asked), enumerate(inputs), concurrency)
