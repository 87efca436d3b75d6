"""Whether passes on the units that they keep take less time than passes on masked values; it does not run them."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from service.graph.rates import Rates
from service.graph.scaled_convolution import MANY, part_left
from service.graph.shapes import Symbols
from service.graph.thinning import Product, Thinned

_CLEARLY = 0.75  # the gain that the estimate must promise


@dataclass(frozen=True)
class Work:
    """One thinned product in one pass.

    Attributes:
        outputs: Elements of its result, were it whole; 0 where they are not known, which promises nothing.
        weight: Elements of its weight.
        depth: How many products make one element of its result.
        inputs: Elements of what it reads, were that whole and of as many positions.
        kept_inputs: The part of its inputs that is kept.
        kept_outputs: The part of its outputs that is kept.
        is_whole: Whether it is left as it is.
        left: The part of its products that passes of whole values together are left with.
    """

    outputs: int
    weight: int
    depth: int
    inputs: int
    kept_inputs: float
    kept_outputs: float
    is_whole: bool = False
    left: float = 1.0

    def alone_s(self, rates: Rates) -> float:
        """Return its seconds in a pass by itself."""
        return self.whole_s(rates) if self.is_whole else self.thinned_s(rates)

    def whole_s(self, rates: Rates) -> float:
        """Return the seconds on all units in a pass by itself: spread the value, read the weight, multiply, write."""
        spread = (1 + self.kept_inputs) * self.inputs / rates.gathers if self.kept_inputs < 1 else 0.0
        multiplied = max(2 * self.outputs * self.depth / rates.products, self.weight / rates.gathers)
        return spread + multiplied + 2 * self.outputs / rates.writes

    def thinned_s(self, rates: Rates) -> float:
        """Return the seconds on what is kept: gather the weight, multiply, write."""
        rows, both = self.weight * self.kept_outputs, self.weight * self.kept_outputs * self.kept_inputs
        outputs = self.outputs * self.kept_outputs
        multiplied = max(2 * outputs * self.depth * self.kept_inputs / rates.products, both / rates.gathers)
        return (rows + both) / rates.gathers + multiplied + outputs / rates.writes

    def plain_s(self, rates: Rates) -> float:
        """Return the seconds on all units: multiply, write, and mask."""
        return 2 * self.outputs * self.depth * self.left / rates.products + 2 * self.outputs / rates.writes


def pays(
    thinned: Thinned, symbols: Symbols, shapes: Sequence[tuple[int, ...]], kept: Sequence[float], rates: Rates
) -> bool:
    """Tell whether thinned passes one by one are clearly faster than masked passes together.

    Args:
        thinned: The suffix.
        symbols: Its shapes' symbols.
        shapes: The inputs' shapes.
        kept: For each noise, the part of its site's units that a pass keeps.
        rates: The machine's.
    """
    works = [_work(each, symbols, shapes, kept) for each in thinned.products]
    alone = thinned.nodes * rates.call_s + sum(work.alone_s(rates) for work in works)
    return alone < _CLEARLY * sum(work.plain_s(rates) for work in works)


def better_whole(
    thinned: Thinned, symbols: Symbols, shapes: Sequence[tuple[int, ...]], kept: Sequence[float], rates: Rates
) -> frozenset[str]:
    """Return the products whose weight takes longer to gather than to read and multiply as it is; see `pays`."""
    works = {each.name: _work(each, symbols, shapes, kept) for each in thinned.products}
    return frozenset(name for name, work in works.items() if work.whole_s(rates) < work.thinned_s(rates))


def _work(product: Product, symbols: Symbols, shapes: Sequence[tuple[int, ...]], kept: Sequence[float]) -> Work:
    outputs = 0 if product.result is None else prod(symbols.lengths(symbols.dims(product.result), shapes))
    inside, outside = (1.0 if each is None else kept[each] for each in (product.inputs, product.outputs))
    left = 1.0 if product.taps == 1 else part_left(MANY, product.taps)
    inputs = outputs * product.features * product.depth // product.weight
    return Work(outputs, product.weight, product.depth, inputs, inside, outside, product.is_whole, left)
