"""What the verifier does with every operator that torch marks as random; `pytest -s` prints the counts."""

from collections import Counter
from functools import cache
from typing import Any

import torch
from torch import fx

from service import Predictor
from service.errors import UnclaimedRandomness
from service.graph import matchers, verify
from service.graph.program import Program


@cache
def random_operators() -> tuple[Any, ...]:
    """Return every overload in this process whose tag says that it draws from a generator."""
    found = []
    for name in torch._C._dispatch_get_all_op_names():
        namespace, _, rest = name.partition("::")
        packet, _, overload = rest.partition(".")
        operator = getattr(getattr(getattr(torch.ops, namespace), packet, None), overload or "default", None)
        if operator is not None and torch.Tag.nondeterministic_seeded in operator.tags:
            found.append(operator)
    return tuple(found)


def claimed() -> set[Any]:
    return {target for targets, _ in matchers._REWRITES for target in targets}


def program_of(operator: Any, *arguments: Any) -> Program:
    graph = fx.Graph()
    graph.output((graph.call_function(operator, arguments),))
    module = fx.GraphModule(torch.nn.Module(), fx.Graph())
    module._graph = graph  # not compiled: `random.from` is no Python name
    return Program(module, (), ("output",))


def is_refused(operator: Any, *arguments: Any) -> bool:
    try:
        verify.verify(program_of(operator, *arguments))
    except UnclaimedRandomness:
        return True
    return False


def test_every_random_operator_is_refused_where_no_matcher_claimed_it() -> None:
    with_rate = set(verify._RATE_POSITION)
    let_through = {operator for operator in random_operators() if not is_refused(operator)}
    assert let_through == with_rate, "only operators that are random at a rate above 0 may pass, at rate 0"
    for operator, position in verify._RATE_POSITION.items():
        assert is_refused(operator, *[None] * position, 0.5)


def test_every_operator_that_a_matcher_claims_is_marked_as_random() -> None:
    """Else the verifier would not miss it, were the matcher to let one pass."""
    ours = {each for each in claimed() if each.namespace == "thinnet"}
    assert claimed() <= set(random_operators())
    assert ours


def test_the_counts_are_told() -> None:
    told = Counter(
        "claimed as a site" if operator in claimed() else "refused by name" for operator in random_operators()
    )
    print(f"\n{len(random_operators())} random operators: {dict(told)}")
    assert told["claimed as a site"] >= 18
    assert told["refused by name"] > 100


def test_an_operator_of_someone_elses_that_hides_its_randomness_is_named_as_lost() -> None:
    """Without the tag nothing in the graph tells; the proof against the eval output does."""
    library = torch.library.Library("test_hidden", "DEF")
    library.define("drop(Tensor x, bool train) -> Tensor")
    library.impl("drop", lambda x, train: x * (torch.rand(x.shape) > 0.5) if train else x.clone(), "CPU")
    torch.library.register_fake("test_hidden::drop", lambda x, train: torch.empty_like(x), lib=library)

    class Hidden(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.ops.test_hidden.drop(x, self.training)

    network = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.3), Hidden())
    assert Predictor.capture(network, torch.randn(2, 4)).lost == ("2 (Hidden)",)
