"""From a module to its canonical, pure graph, proven against the module's own eval output; it does not know plans.

The module is copied, so the caller's is never touched, and exported with every submodule in training mode except
normalisation layers: only then does the graph show each stochastic place with its rate. Where that cannot be captured,
or the graph with everything off is not the module's eval output, the class at fault stays in eval and what it loses is
named.
"""

import copy
import random
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram, export
from torch.utils import _pytree as pytree

from service.errors import CaptureFailed, ThinnetError
from service.graph.matchers import canonicalise
from service.graph.program import Program, read_program
from service.graph.purify import purify
from service.graph.shapes import Symbols
from service.graph.sites import SITE, Canon, LocatedSite, WeightSite, activation_site, find_weights
from service.graph.verify import verify

Example = Tensor | tuple[Any, ...] | Mapping[str, Any]
_NORMALISATION = (nn.modules.batchnorm._NormBase,)


@dataclass(frozen=True)
class Captured:
    """A network whose every random place is a site.

    Attributes:
        program: The pure canonical graph: the network with everything off.
        symbols: Its shapes' symbols.
        weights: Its weight sites.
        exported: What it was read from, for saving.
        example: Inputs it runs on, two rows or more.
        lost: Modules that had to stay in eval mode.
    """

    program: Program
    symbols: Symbols
    weights: tuple[WeightSite, ...]
    exported: ExportedProgram
    example: tuple[Tensor, ...]
    lost: tuple[str, ...] = ()

    def activation_sites(self) -> list[LocatedSite]:
        """Return the located activation sites in order."""
        return [node.meta[SITE] for node in self.program.graph.graph.nodes if node.target is activation_site]


def capture(module: nn.Module, example: Example, device: torch.device | None = None) -> Captured:
    """Capture an `nn.Module` with every stochastic place as a site.

    Args:
        module: Any module; it is not changed.
        example: A batch-first tensor, a tuple of them, or keyword tensors by name.
        device: Where to run it; None keeps the example's.

    Raises:
        CaptureFailed: It cannot be read as a graph, even with every submodule in eval mode.
        UnclaimedRandomness: Something random is not a site.
        ImpureGraph: It has effects that cannot be proven away.
    """
    args, kwargs = _arguments(example)
    device = device or pytree.tree_leaves((args, kwargs))[0].device
    args, kwargs = pytree.tree_map_only(Tensor, lambda each: each.to(device), (args, kwargs))
    module = copy.deepcopy(module).to(device)
    expected = _eval_output(module, args, kwargs)
    first: Exception | None = None
    for classes in _eval_choices(module):
        try:
            exported = _export_training(module, args, kwargs, classes)
            captured = from_program(exported, _flat_example(args, kwargs), expected)
        except ThinnetError as error:
            if not isinstance(error, CaptureFailed):
                raise
            first = first or error
            continue
        return Captured(**{**vars(captured), "lost": _lost(module, classes)})
    assert first is not None
    raise first


def from_program(
    exported: ExportedProgram, example: tuple[Tensor, ...] | None = None, expected: list[Tensor] | None = None
) -> Captured:
    """Capture an exported program, such as a `.pt2` file's.

    Args:
        exported: The program, undecomposed.
        example: Inputs of two rows or more to check it on; made up where there are none.
        expected: What the module in eval mode answers to the example, where it is known.

    Raises:
        CaptureFailed, UnclaimedRandomness, ImpureGraph: As `capture` does.
    """
    program = read_program(exported)
    symbols = Symbols.of(program)
    symbols.check_outputs(program)
    canon = Canon(program, symbols)
    canonicalise(canon)
    verify(program)
    example = example if example is not None else _made_example(program, symbols)
    if expected is not None:
        _prove_capture(program, example, expected)
    pure = purify(program, example)
    _prove_purity(program, pure, example)
    weights = find_weights(Canon(pure, symbols, trained=_by_state(canon, pure)))
    return Captured(pure, symbols, tuple(weights), exported, example)


def _by_state(canon: Canon, pure: Program) -> dict[fx.Node, tuple[str, float]]:
    trained = {node.target: how for node, how in canon.trained.items()}
    return {node: trained[node.target] for node in pure.graph.graph.find_nodes(op="get_attr") if node.target in trained}


def _arguments(example: Example) -> tuple[tuple[Any, ...], dict[str, Any]]:
    args = (example,) if isinstance(example, Tensor) else () if isinstance(example, Mapping) else tuple(example)
    kwargs = dict(example) if isinstance(example, Mapping) else {}
    tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    if not tensors or any(each.dim() == 0 for each in tensors):
        raise CaptureFailed("the example needs batch-first tensors: a tensor, a tuple of them, or a dict by argument name")
    if len({len(each) for each in tensors}) != 1 or not len(tensors[0]):
        sizes = ", ".join(str(tuple(each.shape)) for each in tensors)
        raise CaptureFailed(f"the example's tensors must have the same number of rows in front, at least one; got {sizes}")
    repeat = 2 if len(tensors[0]) == 1 else 1
    doubled = pytree.tree_map_only(Tensor, lambda each: each.detach().repeat(repeat, *[1] * (each.dim() - 1)), (args, kwargs))
    return doubled  # type: ignore[no-any-return] # the same pair


def _flat_example(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, ...]:
    return tuple(leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))


@contextmanager
def _without_fast_path() -> Iterator[None]:
    """Switch off torch's fused attention, whose eval output differs on padded rows."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _eval_output(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    clean = copy.deepcopy(module).eval()
    with torch.no_grad(), _without_fast_path(), torch.random.fork_rng():
        result = clean(*pytree.tree_map_only(Tensor, Tensor.clone, args), **kwargs)
    return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]


def _export_training(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], in_eval: frozenset[type]
) -> ExportedProgram:
    module.train()
    for child in module.modules():
        if isinstance(child, _NORMALISATION) or type(child) in in_eval:
            child.training = False
    dynamic = pytree.tree_map_only(Tensor, lambda _: {0: Dim.DYNAMIC}, (args, kwargs))
    shapes = {**_by_parameter(module, dynamic[0]), **dynamic[1]}
    python_state, numpy_state = random.getstate(), np.random.get_state()[1].tobytes()  # type: ignore[union-attr, call-overload, index]
    try:
        with torch.no_grad(), _without_fast_path(), torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.export's remarks on torch's own modules
            exported = export(module, args, kwargs, dynamic_shapes=shapes)
    except Exception as error:
        raise CaptureFailed(f"torch.export cannot read the network: {_first_line(error)}") from error
    if python_state != random.getstate() or numpy_state != np.random.get_state()[1].tobytes():  # type: ignore[union-attr, call-overload, index]
        random.setstate(python_state)
        raise CaptureFailed("the network calls Python's or NumPy's random numbers in training, which no graph can show")
    return exported


def _by_parameter(module: nn.Module, dynamic: tuple[Any, ...]) -> dict[str, Any]:
    import inspect  # only here: a signature is read once for each capture

    parameters = list(inspect.signature(module.forward).parameters.values())
    shapes: dict[str, Any] = {}
    for index, each in enumerate(parameters[: len(dynamic)]):
        if each.kind is inspect.Parameter.VAR_POSITIONAL:
            shapes[each.name] = tuple(dynamic[index:])
            break
        shapes[each.name] = dynamic[index]
    return shapes


def _eval_choices(module: nn.Module) -> Iterator[frozenset[type]]:
    """Yield sets of classes to leave in eval mode: none, each alone, at last all."""
    yield frozenset()
    classes = {type(child): None for child in module.modules() if not isinstance(child, _NORMALISATION)}
    yield from (frozenset({cls}) for cls in classes if not cls.__module__.startswith("torch.nn"))
    yield frozenset(classes)


def _lost(module: nn.Module, classes: frozenset[type]) -> tuple[str, ...]:
    return tuple(
        f"{path or 'the root'} ({type(child).__name__})" for path, child in module.named_modules() if type(child) in classes
    )


def _made_example(program: Program, symbols: Symbols) -> tuple[Tensor, ...]:
    """Make two rows of inputs for a program that came without: normal floats, integers 0 and 1."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for node in program.placeholders():
        value = node.meta["val"]
        shape = [2, *(int(size.node.hint or 4) if isinstance(size, torch.SymInt) else int(size) for size in value.shape[1:])]
        if value.dtype.is_floating_point:
            made.append(torch.randn(shape, generator=generator).to(value.dtype))
        else:
            made.append(torch.randint(0, 2, shape, generator=generator).to(value.dtype))
    return tuple(made)


def _prove_capture(program: Program, example: tuple[Tensor, ...], expected: list[Tensor]) -> None:
    """Compare the graph with everything off, sites sharing memory as in eval, with the module's eval output."""
    with torch.no_grad():
        found = program.graph(*(each.clone() for each in example))
    compared = [each for each in expected if each.dtype.is_floating_point]
    for name, mine, theirs in zip(program.outputs, found, compared, strict=True):
        if not close(mine, theirs):
            worst = float((mine - theirs).abs().max()) if mine.shape == theirs.shape else float("nan")
            raise CaptureFailed(
                f"with every site off, output {name!r} differs from the module's eval output by up to {worst:.3g}; some part "
                "computes differently in training mode"
            )


def _prove_purity(program: Program, pure: Program, example: tuple[Tensor, ...]) -> None:
    """Compare the graph without in-place operations with the one with them, sites off but fresh."""
    with torch.no_grad():
        before = _FreshSites(program.graph).run(*(each.clone() for each in example))
        after = pure.graph(*example)
    if not all(close(mine, theirs) for mine, theirs in zip(after, before, strict=True)):
        raise CaptureFailed("the graph without in-place operations differs from the one with them")


class _FreshSites(fx.Interpreter):
    """Run the canonical graph with each site returning memory of its own, as an active one does."""

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        return value.clone() if n.target is activation_site and len(n.args) == 1 else value


def close(mine: Tensor, theirs: Tensor, rtol: float = 1e-4) -> bool:
    """Tell whether two outputs are equal to rounding, relative to their size."""
    if mine.shape != theirs.shape:
        return False
    scale = theirs[theirs.isfinite()].abs().max().item() if theirs.isfinite().any() else 0.0
    return torch.allclose(mine.to(theirs.dtype), theirs, rtol=rtol, atol=rtol * max(scale, 1e-6) / 10, equal_nan=True)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"

