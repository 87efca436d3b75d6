"""Replace each output of a rewritten graph by its mean and variance over its last site, given all other noise.

It does not know plans, passes or what outputs mean. Where a site's noise is independent from element to element and
only a linear operation stands between it and the output y, both are exact (the first half of Rao-Blackwell):

    y = W (ξ ∘ h) + b, Var ξ = v         E[y | h] = W h + b     Var[y | h] = v W² h²
    y = (M ∘ [W b]) [h; 1], Var M = v    E[y | h] = W h + b     Var[y | h] = v (W² h² + b²)

Linear operations are linear layers and convolutions; between them and the site, or the output, only views may stand.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch
from torch import fx

from service.dropout import Bernoulli, DropConnect, DropConnectSampled, Gaussian, Variant
from service.dropout.variant import ActivationVariant
from service.errors import InvalidPlan
from service.graph.acting import Apply
from service.graph.bit_masks import Layer, NoisyProduct
from service.graph.layout import LAYOUT
from service.graph.nodes import node_operand, operand, operator_name, returned
from service.graph.noisy_weights import MaskColumns
from service.graph.rewrite import Rewritten

aten = torch.ops.aten
_LINEAR = {
    *(aten.linear.default, aten.conv1d.default, aten.conv2d.default, aten.conv3d.default),
    *(aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding),
}
_VIEWS = {
    *(aten.view.default, aten.reshape.default, aten.flatten.using_ints, aten.unflatten.int, aten.contiguous.default),
    *(aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.unsqueeze.default, aten.clone.default),
    *(aten.transpose.int, aten.permute.default, aten.select.int, aten.slice.Tensor),
}
_OF_UNITS = (Bernoulli, Gaussian)
_INTEGRABLE = "'bernoulli', 'gaussian' and 'dropconnect'"


def integrate(rewritten: Rewritten, names: Sequence[str]) -> Rewritten:
    """Return a graph of conditional means, then conditional variances, of the outputs; the graph given is used up.

    Noise that only served integrated sites is gone. An output that no noise reaches has a variance of 0.

    Args:
        rewritten: The graph of a plan.
        names: The outputs' names, for messages.

    Raises:
        InvalidPlan: An output's last site cannot be integrated.
    """
    graph = rewritten.module.graph
    writer = _Writer(graph, {noise.placeholder: (noise.site, noise.variant) for noise in rewritten.noises})
    with graph.inserting_before(graph.output_node()):
        pairs = [writer.pair(node, name) for node, name in zip(returned(graph), names, strict=True)]
    graph.output_node().args = ((*(mean for mean, _ in pairs), *(variance for _, variance in pairs)),)
    graph.eliminate_dead_code()
    kept = tuple(noise for noise in rewritten.noises if not writer.erase_unused(noise.placeholder))
    graph.lint()
    rewritten.module.recompile()
    return replace(rewritten, noises=kept)


@dataclass(frozen=True)
class _Path:
    """The way from a site to an output.

    Attributes:
        noise: The site's noise.
        readers: What may read the noise.
        before: Views between the site and the linear operation, from the site on.
        after: Views between the linear operation and the output, in order.
        nodes: All nodes on the way in order, each of which only the next may read.
    """

    noise: fx.Node
    readers: tuple[fx.Node, ...]
    before: tuple[fx.Node, ...]
    after: tuple[fx.Node, ...]
    nodes: tuple[fx.Node, ...]


class _Writer:
    def __init__(self, graph: fx.Graph, noises: dict[str, tuple[str, Variant]]) -> None:
        self.graph, self.noises = graph, noises
        self.placeholders = {node.target: node for node in graph.find_nodes(op="placeholder")}

    def pair(self, output: fx.Node, name: str) -> tuple[fx.Node, fx.Node]:
        """Write an output's conditional mean and variance."""
        within = _with_ancestors(output)
        if not any(node.op == "placeholder" and node.target in self.noises for node in within):
            return output, self._call(torch.zeros_like, output, like=output)
        after, last = _views_before(output)
        if isinstance(last.target, Apply) and isinstance(last.target.variant, DropConnectSampled):
            noise = node_operand(last, 1)
            self._check(_Path(noise, (last,), (), after, (last, *after)), within, name)
            return self._through(after, node_operand(last, 2)), self._through(after, node_operand(last, 3))
        if isinstance(last.target, NoisyProduct):
            return self._over_noisy_weights(last, last.target, after, within, name)
        if last.target not in _LINEAR:
            _refuse(name, f"its last operation is {operator_name(last)!r}, not a linear layer or a convolution")
        weight = operand(last, 1)
        if isinstance(weight, fx.Node) and _is_masked(weight, DropConnect):
            return self._over_weights(last, after, within, name)
        return self._over_units(last, after, within, name)

    def _over_weights(
        self, last: fx.Node, after: tuple[fx.Node, ...], within: set[fx.Node], name: str
    ) -> tuple[fx.Node, fx.Node]:
        x, mask, bias = node_operand(last), node_operand(last, 1), operand(last, 2)
        masked_bias = isinstance(bias, fx.Node) and _is_masked(bias, DropConnect)
        masks = (mask, bias) if masked_bias else (mask,)
        noise, p = node_operand(mask, 1), mask.target.variant.p  # type: ignore[union-attr] # `_is_masked`
        for each in masks:
            self._check(_Path(noise, masks, (), after, (each, last, *after)), within, name)
        weight, plain_bias = node_operand(mask), node_operand(bias) if masked_bias else bias
        mean = self._product(last, x, weight, plain_bias)
        square_bias = self._square(plain_bias) if masked_bias else None
        squares = self._product(last, self._square(x), self._square(weight), square_bias)
        variance = self._call(torch.mul, squares, p / (1 - p), like=last)
        return self._through(after, mean), self._through(after, variance)

    def _over_noisy_weights(
        self, last: fx.Node, product: NoisyProduct[Any], after: tuple[fx.Node, ...], within: set[fx.Node], name: str
    ) -> tuple[fx.Node, fx.Node]:
        noise, x, joined = (node_operand(last, index) for index in (1, 2, 3))
        self._check(_Path(noise, (last,), (), after, (last, *after)), within, name)
        weight, *biases = joined.all_input_nodes
        bias = None if product.bias is None else biases[product.bias - product.columns]
        square_bias = None if bias is None else self._square(bias)
        mean = self._layer(product.layer, x, weight, bias, like=last)
        squares = self._layer(product.layer, self._square(x), self._square(weight), square_bias, like=last)
        variance = self._call(torch.mul, squares, product.variant.p / (1 - product.variant.p), like=last)
        return self._through(after, mean), self._through(after, variance)

    def _over_units(
        self, last: fx.Node, after: tuple[fx.Node, ...], within: set[fx.Node], name: str
    ) -> tuple[fx.Node, fx.Node]:
        before, site = _views_before(node_operand(last))
        if not isinstance(site.target, Apply):
            _refuse(name, f"what enters its last layer is {_said(site)}, not a site or a view of one")
        variant, noise, x = site.target.variant, node_operand(site, 1), node_operand(site, 2)
        if type(variant) not in _OF_UNITS:
            _refuse(name, f"its last site {self.noises[str(noise.target)][0]!r} is {variant.name!r}, not {_INTEGRABLE}")
        assert isinstance(variant, ActivationVariant)
        self._check(_Path(noise, (site,), before, after, (site, *before, last, *after)), within, name)
        weight, bias = node_operand(last, 1), operand(last, 2)
        inner = self._through(before, self._call(variant.mean, x, like=x))
        mean = self._product(last, inner, weight, bias)
        spread = self._through(before, self._call(variant.variance, x, like=x))
        variance = self._product(last, spread, self._square(weight), None)
        return self._through(after, mean), self._through(after, variance)

    def _check(self, path: _Path, within: set[fx.Node], name: str) -> None:
        """Refuse a site that reaches the output in any other way."""
        following = [*zip(path.nodes, path.nodes[1:], strict=False)]
        single = all(
            {user for user in node.users if user in within} == {after} and after.all_input_nodes.count(node) == 1
            for node, after in following
        )
        if not single or not {user for user in path.noise.users if user in within} <= set(path.readers):
            site = self.noises[str(path.noise.target)][0]
            _refuse(name, f"its last site {site!r} reaches it by several paths")

    def _product(self, last: fx.Node, x: fx.Node, weight: fx.Node, bias: Any) -> fx.Node:
        return self._layer(Layer.of(last), x, weight, bias, like=last)

    def _layer(self, layer: Layer, x: fx.Node, weight: fx.Node, bias: Any, like: fx.Node) -> fx.Node:
        return self._call(layer.operator, x, weight, bias, *layer.rest, like=like, **dict(layer.options))

    def _square(self, node: fx.Node) -> fx.Node:
        return self._call(torch.square, node, like=node)

    def _call(self, target: Any, *args: Any, like: fx.Node, **kwargs: Any) -> fx.Node:
        node = self.graph.call_function(target, args, kwargs)
        if LAYOUT in like.meta:
            node.meta[LAYOUT] = like.meta[LAYOUT]
        return node

    def _through(self, views: tuple[fx.Node, ...], value: fx.Node) -> fx.Node:
        """Write the same views of another value."""
        for view in views:
            viewed, start = node_operand(view), value
            value = self.graph.node_copy(view, lambda each, a=viewed, b=start: b if each is a else each)  # type: ignore[misc] # bound now
        return value

    def erase_unused(self, placeholder: str) -> bool:
        """Erase a noise that nothing reads any more, and tell whether it was so."""
        node = self.placeholders[placeholder]
        if node.users:
            return False
        self.graph.erase_node(node)
        return True


def _views_before(node: fx.Node) -> tuple[tuple[fx.Node, ...], fx.Node]:
    """Return the views that end in a node, in order, and what they are of."""
    views: list[fx.Node] = []
    while node.target in _VIEWS:
        views.insert(0, node)
        node = node_operand(node)
    return tuple(views), node


def _is_masked(node: fx.Node, variant: type[Variant]) -> bool:
    return isinstance(node.target, MaskColumns) and type(node.target.variant) is variant


def _with_ancestors(node: fx.Node) -> set[fx.Node]:
    found, stack = {node}, [node]
    while stack:
        new = [each for each in stack.pop().all_input_nodes if each not in found]
        found.update(new)
        stack += new
    return found


def _said(node: fx.Node) -> str:
    return f"the input {node.target!r}" if node.op == "placeholder" else f"the result of {operator_name(node)!r}"


def _refuse(name: str, reason: str) -> NoReturn:
    raise InvalidPlan(
        f"output {name!r} has no last site to integrate: {reason}; use estimator 'sampled', or a plan whose last site "
        f"is {_INTEGRABLE} right before a linear output"
    )
