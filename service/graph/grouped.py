"""Products of what each pass keeps, in one launch for all passes, where a device is faster at it; see `thinning.py`.

It does not know how the kernel lists or multiplies. What a device does is measured when a plan first has such products.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from operator import attrgetter

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from service.dropout.variant import ActivationVariant
from service.graph.channelwise import is_channelwise, product_axes
from service.graph.kernels import fault_of
from service.graph.kernels.counted_sites import CountedApply
from service.graph.nodes import node_operand
from service.graph.precision import narrow, widen
from service.graph.products import ScaledLinear, fuse, is_one_product, is_scaling, takes
from service.graph.split import Split

_SIZES = 1024, 32, 128  # units, passes and rows that are measured
_FEW = 32, 2, 3  # the same where kernels are interpreted
_ROUNDS = 5
_CLEARLY = 0.75  # the part of the plain product's time that the estimate must promise
_RIGHT = {torch.float32: 1e-5, torch.bfloat16: 1e-2}  # the relative error that is rounding


@dataclass(frozen=True)
class GroupedRates:
    """What a device does in products of a type.

    Attributes:
        plain: Multiplications and additions of a site and the product behind it, each second.
        grouped: The same of a grouped product, of what is kept; 0 where it fails or is wrong.
        fault: Why it cannot serve, where it fails or is wrong.
    """

    plain: float
    grouped: float
    fault: str | None = None

    def pays(self, kept: float) -> bool:
        """Tell whether a grouped product is clearly faster where passes keep this part of the operations."""
        return kept * self.plain < _CLEARLY * self.grouped


_known: dict[tuple[torch.device, torch.dtype], GroupedRates] = {}


def measured_on(device: torch.device, dtype: torch.dtype) -> GroupedRates:
    """Return a device's rates, measured once in a process; the grouped product is compared with the plain one."""
    if (device, dtype) not in _known:
        _known[device, dtype] = _measure(device, dtype)
    return _known[device, dtype]


def _measure(device: torch.device, dtype: torch.dtype) -> GroupedRates:
    from service.graph.kernels.grouped import grouped_product

    side, passes, rows = _SIZES if device.type == "cuda" else _FEW
    x, weight = torch.randn(rows, side, device=device), torch.randn(side, side, device=device).to(dtype)
    noise = 2.0 * (torch.arange(passes * side, device=device).view(passes, side) * 37 % 64 < 32)  # half of them kept
    scaled = (noise[:, None] * x).flatten(0, 1)
    expected = scaled.double() @ weight.t().double()
    works: list[Callable[[], Tensor]] = [
        lambda: _linear((noise[:, None] * x).flatten(0, 1), weight),
        lambda: grouped_product(noise, x[None], weight, None).flatten(0, 1),
    ]
    try:
        is_right = (works[1]() - expected).norm() <= _RIGHT[dtype] * expected.norm()
        plain_s, grouped_s = (_least_s(work, device) for work in works)
    except Exception as error:  # whatever a compiler or a driver raises: plain products serve
        return GroupedRates(1.0, 0.0, fault_of(error))
    operations = 2 * passes * rows * side**2
    if not is_right:
        return GroupedRates(operations / plain_s, 0.0, "a grouped product differs from the plain one")
    return GroupedRates(operations / plain_s, operations / 2 / grouped_s)


def _least_s(work: Callable[[], Tensor], device: torch.device) -> float:
    def once() -> float:
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    return min(once() for _ in range(_ROUNDS))


class GroupedLinear(ScaledLinear):
    """A site that drops units, and the linear layer behind it, of each pass only what it keeps.

    Args:
        apply: The site.
        rates: The device's.
        following: The site that alone reads the result, where it drops units too.
    """

    def __init__(self, apply: CountedApply, rates: GroupedRates, following: CountedApply | None) -> None:
        super().__init__(apply, _linear)
        self.rates, self.following = rates, following
        kept = apply.variant.q if isinstance(apply.variant, ActivationVariant) else 1.0
        if following is not None and isinstance(following.variant, ActivationVariant):
            kept *= following.variant.q
        self.pays = rates.pays(kept)

    def refusal(self, per_row: bool) -> str | None:
        """Return why the product runs whole in a scope though it should not; None where it does not."""
        return self.rates.fault or ("rows keep units of their own" if per_row and self.pays else None)

    def __call__(
        self, rows: int, noise: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None,
        next_noise: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Return weight · (x ∘ noise) + bias [S · B, O], in the weight's type; 0 where what follows drops it anyway."""
        is_shared = noise.dim() > x.dim() and noise.shape[1] == 1
        if not self.pays or not is_shared or is_one_product(rows, noise, x, weight):
            return super().__call__(rows, noise, x, weight, bias)
        from service.graph.kernels.grouped import grouped_product

        after = None
        if next_noise is not None and self.following is not None:
            after = self.following.factors(next_noise, x.new_empty(1, len(weight)))[:, 0]
        own = self.apply.entering(x).reshape(-1, rows // noise.shape[0], x.shape[1])
        return grouped_product(self.apply.factors(noise, x)[:, 0], own, weight, bias, after).flatten(0, 1)


def group_products(split: Split) -> Split:
    """Return a cut whose linear layers behind sites that drop units, counted on a device, may be grouped products."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(split.suffix.graph, {}))
    _fuse_rounded(graph)
    for node in graph.nodes:
        apply = _dropping(node)
        if apply is None:
            continue
        following = _only_reader(node)
        weight: Tensor = attrgetter(str(node_operand(node, 3).target))(split.suffix)
        rates = measured_on(weight.device, weight.dtype)
        node.target = GroupedLinear(apply, rates, _dropping(following) if following else None)
        if following is not None:
            node.kwargs = {"next_noise": node_operand(following, 1)}
    return replace(split, suffix=fx.GraphModule(split.suffix, graph))


def _fuse_rounded(graph: fx.Graph) -> None:
    """Let linear layers in bfloat16 take in the site before them, where it drops units and feeds such layers alone."""
    for site in list(graph.nodes):
        if not _drops(site.target) or not is_scaling(site) or any(each.target is not narrow for each in site.users):
            continue
        pairs = [(rounded, linear) for rounded in site.users for linear in rounded.users]
        if all(takes(linear, rounded) for rounded, linear in pairs):
            for _, linear in pairs:
                fuse(graph, site, linear)
            for node in (*site.users, site):
                graph.erase_node(node)


def run_whole(split: Split, per_row: bool) -> dict[str, str]:
    """Return why products that should be grouped run whole in a scope, by the noise input of the site in each."""
    found = {}
    for node in split.suffix.graph.nodes:
        if isinstance(node.target, GroupedLinear) and (why := node.target.refusal(per_row)):
            found[str(node_operand(node, 1).target)] = why
        elif site := _convolved(node):
            found[str(node_operand(site, 1).target)] = "no kernel groups convolutions"
    return found


def _convolved(node: fx.Node) -> fx.Node | None:
    """Return the counted site that drops channels which a convolution takes; None for any other node."""
    axes = product_axes(node)
    x = node if axes is None or axes == 1 else node_operand(node)
    while x is not node and not _drops_channels(x.target):
        x = node_operand(x) if x.op == "call_function" and is_channelwise(x, axes or 0) else node
    return None if x is node else x


def _drops_channels(apply: object) -> bool:
    return isinstance(apply, CountedApply) and _drops(apply) and getattr(apply.variant, "per_channel", False)


def _only_reader(node: fx.Node) -> fx.Node | None:
    """Return the fused product that alone reads a value, widened or not, where its site drops units too."""
    user = next(iter(node.users), None)
    if user is not None and len(node.users) == 1 and user.target is widen:
        return _only_reader(user)
    if user is None or len(node.users) > 1 or _dropping(user) is None:
        return None
    return user if node_operand(user, 2) is node else None


def _dropping(node: fx.Node) -> CountedApply | None:
    """Return the counted site of a fused product that drops units; None for any other node."""
    apply = node.target.apply if isinstance(node.target, ScaledLinear) else None
    return apply if isinstance(apply, CountedApply) and _drops(apply) else None


def _drops(apply: object) -> bool:
    """Tell whether something is a counted site that drops units."""
    return isinstance(apply, CountedApply) and isinstance(apply.variant, ActivationVariant) and apply.variant.zeroes


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return weight · x + bias, x rounded to the weight's type."""
    return F.linear(x.to(weight.dtype), weight, bias)
