"""How noise acts on parameters in a graph: weights as one pass has them, words looked up, products' exact forms.

It does not know plans or where noise comes from.
"""

import torch
from torch import Tensor

from service.dropout import DropConnect, DropConnectSampled, SparseVariational, SparseVariationalJoint, Variant
from service.dropout.variant import ActivationVariant, MaskedWeight, SampledProduct
from service.errors import InvalidPlan
from service.graph.weights import WeightSite


class MaskColumns:
    """Let a masked-weight variant act on a parameter with its own columns of the site's noise [1, out, in + biases]."""

    def __init__(self, variant: MaskedWeight, columns: slice | int) -> None:
        self.variant = variant
        self.columns = columns
        self.__name__ = f"mask_{variant.name.replace('-', '_')}"

    def __call__(self, parameter: Tensor, noise: Tensor, *learned: Tensor) -> Tensor:
        """Return the parameter as one pass has it."""
        own = noise[0][:, self.columns].to(parameter.dtype)
        if parameter.dim() <= 2:
            return self.variant.apply(parameter, own, *learned)
        return self.variant.apply(parameter.flatten(1), own).view_as(parameter)


class LookUp:
    """Let a variant act on the vectors that are looked up in a table, by their words' noise [1, words, 1]."""

    def __init__(self, variant: ActivationVariant) -> None:
        self.variant = variant
        self.__name__ = f"look_up_{variant.name.replace('-', '_')}"

    def __call__(self, table: Tensor, indices: Tensor, noise: Tensor) -> Tensor:
        """Return the vectors [*, features] as one pass has them."""
        found = torch.nn.functional.embedding(indices, table)
        return self.variant.apply(found, noise[0][indices].to(table.dtype))


def check_use(site: WeightSite, variant: Variant) -> None:
    """Refuse a weight variant where the way that the weight is used would make it another thing.

    Raises:
        InvalidPlan: Its moments, or its inputs and outputs, are not those of one linear layer.
    """
    is_sampled = isinstance(variant, SampledProduct) and stand_in(variant) is None
    if is_sampled and not site.rows_and_features:
        raise InvalidPlan(
            f"site {site.site.name!r}: {variant.name!r} draws units from their moments, which serves one use on rows "
            "and features only; switch the site off, or use 'variational-b', its joint form"
        )
    if isinstance(variant, MaskedWeight) and variant.oriented and not site.oriented:
        raise InvalidPlan(
            f"site {site.site.name!r}: {variant.name!r} tells inputs from outputs, and not every use of this weight is "
            "a linear layer's; switch the site off, or use 'dropconnect'"
        )


def stand_in(variant: SampledProduct) -> MaskedWeight | None:
    """Return the exact form of a sampled product that serves any input, where it is the same network."""
    if isinstance(variant, SparseVariational):
        return SparseVariationalJoint()
    return DropConnect(variant.p) if isinstance(variant, DropConnectSampled) else None
