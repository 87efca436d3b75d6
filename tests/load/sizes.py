"""How much a run of the load tests does: little in every run of all tests, the whole with `--whole`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """How much a run of these tests does.

    Attributes:
        requests: Of neighbours.
        pool: Distinct ones among them.
        leavers: Callers who disconnect.
        overload_s: How long too much is asked.
        soak_s: How long mixed load lasts.
        cases: Of each fuzzer.
    """

    requests: int
    pool: int
    leavers: int
    overload_s: float
    soak_s: float
    cases: int


QUICK = Sizes(requests=300, pool=75, leavers=60, overload_s=6, soak_s=10, cases=60)
WHOLE = Sizes(requests=5000, pool=1500, leavers=1000, overload_s=60, soak_s=1200, cases=4000)
