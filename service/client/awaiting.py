"""The client that awaits its answers; it does not know what is asked."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable
from contextlib import aclosing
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

from service.client.address import Address
from service.client.asked import Asked
from service.client.described import Health, Limits, Model
from service.client.exchange import CONCURRENCY, RETRIES, RETRY_S, Ask, Reply, Talk, checked
from service.client.files import score_at
from service.client.ordered import in_order
from service.client.talks import Talks
from service.errors import ThinnetError

if TYPE_CHECKING:
    from service.client.prediction import Prediction
    from service.scoring import Summary

_Result = TypeVar("_Result")


class AsyncClient:
    """A thinnet server, asked from coroutines; otherwise as `Client`.

    Args:
        url: As in `Client`, like all that follow.
        api_key: What the server is shown.
        timeout_s: How long a prediction may take.
        retries: How often a request is sent again, at most.
        retry_s: For how long.

    Raises:
        BadRequest: The address or the key cannot be one.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout_s: float | None = None,
        retries: int | None = RETRIES,
        retry_s: float = RETRY_S,
    ) -> None:
        from service.client.carrier import Carrier  # only now: it brings the library for HTTP

        self._carrier = Carrier(Address.parse(url), api_key, retries, retry_s)
        self._talks = Talks(timeout_s)
        self._http, self._retry = self._carrier.awaiting()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def predict(self, inputs: Any, **asked: Unpack[Asked]) -> "Prediction":
        """Predict some rows; see `Client.predict`."""
        return await self._hold(self._talks.predict(inputs, asked))

    async def predict_many(
        self,
        inputs: Iterable[Any] | AsyncIterable[Any],
        *,
        concurrency: int = CONCURRENCY,
        **asked: Unpack[Asked],
    ) -> AsyncGenerator["Prediction"]:
        """Predict many inputs; see `Client.predict_many`."""
        work = partial(self.predict_at, asked=asked)
        async with aclosing(in_order(work, _numbered(inputs), concurrency)) as predictions:
            async for prediction in predictions:
                yield prediction

    async def predict_at(self, numbered: tuple[int, Any], asked: Asked) -> "Prediction":
        """Predict one of many inputs, and say in a fault which one it was."""
        index, rows = numbered
        try:
            return await self.predict(rows, **asked)
        except ThinnetError as error:
            error.args = (f"input {index}: {error}",)
            raise

    async def score(self, source: Path | str, output: Path | str, **asked: Any) -> "Summary":
        """Score a table of any size into a file, in a thread; see `Client.score`."""
        return await asyncio.to_thread(score_at, self._carrier, self._talks.timeout_s, source, output, asked)

    async def describe(self, model: str | None = None, version: int | str | None = None) -> Model:
        """Return what a model takes and gives; see `Client.describe`."""
        return await self._hold(self._talks.describe(model, version))

    async def models(self) -> list[str]:
        """Return the names of the models that are served."""
        return await self._hold(self._talks.models())

    async def variants(self) -> list[dict[str, Any]]:
        """Return the catalogue of variants, as `GET /variants` has it."""
        return await self._hold(self._talks.variants())

    async def limits(self) -> Limits:
        """Return the limits that requests are held to, and what is left of the key's share."""
        return await self._hold(self._talks.limits())

    async def health(self) -> Health:
        """Return whether the server is ready, and why it is not; it is asked once."""
        return await self._hold(self._talks.health())

    async def _hold(self, talk: Talk[_Result]) -> _Result:
        try:
            ask = next(talk)
            while True:
                try:
                    reply = await self._retry(self._carrier.rule(ask), self._once, ask)
                except ThinnetError as error:
                    ask = talk.throw(error)
                else:
                    ask = talk.send(reply)
        except StopIteration as end:
            result: _Result = end.value
            return result

    async def _once(self, ask: Ask) -> Reply:
        with self._carrier.named(ask):
            response = await self._http.request(**self._carrier.request(ask))
        return checked(ask, self._carrier.reply(ask, response))


async def _numbered(items: Iterable[Any] | AsyncIterable[Any]) -> AsyncIterator[tuple[int, Any]]:
    index = 0
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield index, item
            index += 1
    else:
        for index, item in enumerate(items):
            yield index, item
