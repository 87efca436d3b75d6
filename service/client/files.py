"""Files scored at a client's server; it does not know how, and brings what reads files only when it is asked."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from service.client.carrier import Carrier
    from service.scoring import Summary


def score_at(
    carrier: "Carrier", timeout_s: float | None, source: Path | str, output: Path | str, asked: dict[str, Any]
) -> "Summary":
    """Score a table at the server that a carrier goes to, as `score_remotely` does."""
    from service.scoring.remote import Server, score_remotely

    server = Server(carrier.address.url, carrier.api_key, timeout_s)
    return score_remotely(server, Path(source), Path(output), **asked)
