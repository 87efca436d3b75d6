"""An answer's head and body are written in one piece, in their order, and neither waits for what does not come."""

import asyncio
from collections.abc import Callable

from service.api.connection import _SMALL_BYTES, _Joined


class Transport:
    """What was written, piece by piece."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.is_closed = False

    def write(self, data: bytes) -> None:
        self.pieces.append(data)

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True


def pieces(act: Callable[[_Joined], object], turns: int = 1) -> list[bytes]:
    """Return what was written some turns of the loop after something was done."""

    async def written() -> list[bytes]:
        transport = Transport()
        act(_Joined(transport, asyncio.get_running_loop()))  # type: ignore[arg-type] # a stand-in
        for _ in range(turns):
            await asyncio.sleep(0)
        return [*transport.pieces]

    return asyncio.run(written())


def test_a_head_and_its_body_are_one_piece() -> None:
    assert pieces(lambda to: [to.write(b"head"), to.write(b"body")], turns=0) == [b"headbody"]


def test_a_head_alone_waits_for_one_turn() -> None:
    assert pieces(lambda to: to.write(b"head"), turns=0) == []
    assert pieces(lambda to: to.write(b"head")) == [b"head"]


def test_two_answers_keep_their_order() -> None:
    answers = [b"head", b"body", b"next head", b"next body", b"a third head"]
    assert b"".join(pieces(lambda to: [to.write(each) for each in answers])) == b"".join(answers)


def test_a_large_body_is_not_copied() -> None:
    body = bytes(_SMALL_BYTES + 1)
    found = pieces(lambda to: [to.write(b"head"), to.write(body)], turns=0)
    assert found[0] == b"head"
    assert found[1] is body


def test_what_waits_is_written_before_the_connection_closes() -> None:
    assert pieces(lambda to: [to.write(b"head"), to.close()]) == [b"head"]


def test_nothing_is_written_to_a_connection_that_closes() -> None:
    def end(to: _Joined) -> None:
        to.write(b"head")
        to._transport.close()

    assert pieces(end) == []
