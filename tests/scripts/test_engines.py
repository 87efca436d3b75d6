"""A table has the same answers here, at a server and with Ray: the command that tells what each of them costs."""

import pytest
from engines import compare


@pytest.mark.slow
def test_a_server_and_ray_give_the_answers_of_this_machine() -> None:
    assert compare(rows=20_000, threads=1)
