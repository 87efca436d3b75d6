"""From a module to its canonical, pure graph, proven against the module's own eval output; it does not know plans.

The module is copied, so the caller's is never touched, and exported with every submodule in training mode except
normalisation layers: only then does the graph show each stochastic place with its rate. Where that cannot be captured,
or the graph with everything off is not the module's eval output, the class at fault stays in eval and what it loses is
named.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from service.errors import CaptureFailed, ImpureGraph
from service.graph.candidates import find_candidates
from service.graph.cells import CellSite, find_cells
from service.graph.matchers import canonicalise
from service.graph.nodes import value_of
from service.graph.pools import find_pools
from service.graph.program import Program, read_program
from service.graph.proof import prove_capture, prove_purity
from service.graph.purify import purify
from service.graph.shapes import Symbols
from service.graph.sites import SITE, Canon, LocatedSite, Site, Trained, site_nodes
from service.graph.training import Arguments, eval_choices, eval_output, export_training
from service.graph.verify import verify
from service.graph.weights import WeightSite, find_weights

Example = Tensor | tuple[Any, ...] | Mapping[str, Any]


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
        cells: Its recurrent layers whose steps are sites.
    """

    program: Program
    symbols: Symbols
    weights: tuple[WeightSite, ...]
    exported: ExportedProgram
    example: tuple[Tensor, ...]
    lost: tuple[str, ...] = ()
    cells: tuple[CellSite, ...] = ()

    def activation_sites(self) -> list[LocatedSite]:
        """Return the located activation sites in order."""
        return [node.meta[SITE] for node in site_nodes(self.program.graph.graph)]

    def sites(self) -> tuple[Site, ...]:
        """Return all sites: those that a layer stands for, weights, then those that only a request makes random."""
        located = [each.site for each in self.activation_sites()]
        layers = [site for site in located if site.variant is not None]
        others = [*(weight.site for weight in self.weights), *(cell.site for cell in self.cells)]
        return (*layers, *others, *(site for site in located if site not in layers))


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
    arguments = _arguments(example)
    device = device or _tensors(arguments)[0].device
    arguments = pytree.tree_map_only(Tensor, lambda each: each.to(device), arguments)
    module = copy.deepcopy(module).to(device)
    expected = eval_output(module, arguments)
    first: CaptureFailed | ImpureGraph | None = None
    for classes in eval_choices(module):
        tried = copy.deepcopy(module)  # a run may change what a network writes to itself
        try:
            captured = from_program(export_training(tried, arguments, classes), _tensors(arguments), expected)
        except (CaptureFailed, ImpureGraph) as error:
            first = first or error
        else:
            return replace(captured, lost=_lost(module, classes))
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
    example = example if example is not None else _made_example(program)
    if expected is not None:
        prove_capture(program, example, expected)
    pure = purify(program, example)
    prove_purity(program, pure, example)
    pure_canon = Canon(pure, symbols, canon.names, _by_state(canon, pure))
    weights = find_weights(pure_canon)
    find_candidates(pure_canon)
    find_pools(pure_canon)
    return Captured(pure, symbols, weights, exported, example, cells=find_cells(pure_canon))


def _by_state(canon: Canon, pure: Program) -> dict[fx.Node, Trained]:
    trained = {node.target: how for node, how in canon.trained.items()}
    return {node: trained[node.target] for node in pure.graph.graph.find_nodes(op="get_attr") if node.target in trained}


def _arguments(example: Example) -> Arguments:
    """Return the example as positional and keyword arguments of two rows or more."""
    args = (example,) if isinstance(example, Tensor) else () if isinstance(example, Mapping) else tuple(example)
    kwargs = dict(example) if isinstance(example, Mapping) else {}
    tensors = _tensors((args, kwargs))
    if not tensors or any(each.dim() == 0 for each in tensors):
        raise CaptureFailed(
            "the example needs batch-first tensors: a tensor, a tuple of them, or a dict by argument name"
        )
    if len({len(each) for each in tensors}) != 1 or not len(tensors[0]):
        sizes = ", ".join(str(tuple(each.shape)) for each in tensors)
        raise CaptureFailed(f"the example's tensors must have the same number of rows, at least one; got {sizes}")
    repeat = 2 if len(tensors[0]) == 1 else 1
    doubled: Arguments = pytree.tree_map_only(
        Tensor, lambda each: each.detach().repeat(repeat, *[1] * (each.dim() - 1)), (args, kwargs)
    )
    return doubled


def _tensors(arguments: Arguments) -> tuple[Tensor, ...]:
    return tuple(leaf for leaf in pytree.tree_leaves(arguments) if isinstance(leaf, Tensor))


def _lost(module: nn.Module, classes: frozenset[type]) -> tuple[str, ...]:
    return tuple(
        f"{path or 'the root'} ({type(child).__name__})"
        for path, child in module.named_modules()
        if type(child) in classes
    )


def _made_example(program: Program) -> tuple[Tensor, ...]:
    """Make two rows of inputs for a program that came without: normal floats, integers 0 and 1."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for node in program.placeholders():
        value = value_of(node)
        shape = [2, *(_example_length(size) for size in value.shape[1:])]
        if value.dtype.is_floating_point:
            made.append(torch.randn(shape, generator=generator).to(value.device, value.dtype))
        else:
            made.append(torch.randint(0, 2, shape, generator=generator).to(value.device, value.dtype))
    return tuple(made)


def _example_length(size: int | torch.SymInt) -> int:
    return int(size.node.hint or 4) if isinstance(size, torch.SymInt) else int(size)
