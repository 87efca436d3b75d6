"""The client that waits for its answers; it does not know what is asked."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

from service.client.address import Address
from service.client.asked import Asked
from service.client.described import Health, Limits, Model
from service.client.exchange import CONCURRENCY, RETRIES, RETRY_S, Ask, Reply, Talk, checked
from service.client.files import score_at
from service.client.talks import Talks
from service.errors import ThinnetError

if TYPE_CHECKING:
    from service.client.prediction import Prediction
    from service.scoring import Summary

_Result = TypeVar("_Result")


class Client:
    """A thinnet server.

    What goes wrong is raised as the server's own class of fault, see `service.errors`; `ServerUnreachable` is a server
    that is not there. A request is sent again only after 429, 503 and a lost connection, later each time and not before
    the server's `Retry-After`: asking twice does no harm, since the same question has the same answer.

    Args:
        url: Its address, with the path that a proxy strips, if any: `https://host/prefix`.
        api_key: What it is shown.
        timeout_s: How long a prediction may take (seconds) where it names no time; None is the server's own, 60 s.
        retries: How often a request is sent again, at most; None is as often as `retry_s` allows.
        retry_s: For how long it is sent again (seconds).

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
        self._http, self._retry = self._carrier.waiting()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def predict(self, inputs: Any, **asked: Unpack[Asked]) -> "Prediction":
        """Predict some rows.

        Args:
            inputs: Rows [B, …], an array or nested lists, for a model with one input; else a mapping of them by name.
            **asked: `model`, `version`, `passes`, `variant`, `p`, `sites`, `seed`, `scope`, `row_offset`, `estimator`,
                `tolerance`, `precision`, `quantities`, `timeout_s`: see `Asked`.

        Raises:
            BadRequest: What is asked does not fit the model; the message says what, where, and the cure.
            NotFound: There is no such model or version.
            Unauthorized, TooLarge, TooManyRequests, NotReady, DeadlineExceeded: As they say.
            ServerUnreachable: No server is there, or the connection was lost.
            RemoteFault: The server failed, or is none of thinnet's.
        """
        return self._hold(self._talks.predict(inputs, asked))

    def predict_many(
        self, inputs: Iterable[Any], *, concurrency: int = CONCURRENCY, **asked: Unpack[Asked]
    ) -> Iterator["Prediction"]:
        """Yield the prediction of each input, in order, as `predict` gives it.

        Inputs are read as their turn comes, at most `concurrency` ahead, in the caller's thread. Where one fails, the
        others that are under way are cancelled, and its fault is raised at its turn, `input <index>: ` before its
        message.

        Args:
            inputs: What `predict` takes, each.
            concurrency: How many requests are under way at once, at most.
            **asked: As in `predict`, for each.
        """
        from service.client.many import predictions  # only now: it brings an event loop

        yield from predictions(self._carrier, self._talks.timeout_s, inputs, concurrency, asked)

    def score(self, source: Path | str, output: Path | str, **asked: Any) -> "Summary":
        """Score a table of any size into a file, as `thinnet score --url` does; go on where an earlier call stopped.

        Args:
            source: CSV, Parquet, JSON Lines, Arrow, NumPy; a folder of Parquet files or images.
            output: Where the result goes, in the format that its name ends in, whole or not at all.
            **asked: As in `predict`, but `row_offset` and `timeout_s`; and `on_error`, `restart`, `threshold` as in
                `service.scoring.score_table`.

        Raises:
            InvalidInput: With row and column, or what is wrong with the files.
            ThinnetError: As `predict` does; what is done is kept.
        """
        return score_at(self._carrier, self._talks.timeout_s, source, output, asked)

    def describe(self, model: str | None = None, version: int | str | None = None) -> Model:
        """Return what a model takes and gives, its sites and the variants that fit them.

        Args:
            model: Its name; may be left out where one is served.
            version: Its version; the highest where left out.
        """
        return self._hold(self._talks.describe(model, version))

    def models(self) -> list[str]:
        """Return the names of the models that are served."""
        return self._hold(self._talks.models())

    def variants(self) -> list[dict[str, Any]]:
        """Return the catalogue of variants, as `GET /variants` has it."""
        return self._hold(self._talks.variants())

    def limits(self) -> Limits:
        """Return the limits that requests are held to, and what is left of the key's share."""
        return self._hold(self._talks.limits())

    def health(self) -> Health:
        """Return whether the server is ready, and why it is not; it is asked once."""
        return self._hold(self._talks.health())

    def _hold(self, talk: Talk[_Result]) -> _Result:
        try:
            ask = next(talk)
            while True:
                try:
                    reply = self._retry(self._carrier.rule(ask), self._once, ask)
                except ThinnetError as error:
                    ask = talk.throw(error)
                else:
                    ask = talk.send(reply)
        except StopIteration as end:
            result: _Result = end.value
            return result

    def _once(self, ask: Ask) -> Reply:
        with self._carrier.named(ask):
            response = self._http.request(**self._carrier.request(ask))
        return checked(ask, self._carrier.reply(ask, response))
