"""A site at work: noise meets tensors whose rows are on any axis; it does not know where noise comes from."""

from collections.abc import Callable

import torch
from torch import Tensor

from service.dropout.variant import ActivationVariant, PairedVariant, SampledProduct
from service.graph.pools import Pooling
from service.graph.shapes import BatchAxis


class Apply:
    """Let a variant act on tensors whose rows may be on any axis, for one pass or for several folded into the rows.

    Noise is [R, …] for one pass and [S, R, …] for S passes folded, R being 1 or the number of rows.
    """

    in_parts = True  # whether acting on one part of the rows after the other spares memory

    def __init__(
        self, variant: ActivationVariant | PairedVariant | SampledProduct | Pooling, batch: BatchAxis | None
    ) -> None:
        self.variant = variant
        self.batch = batch
        self.__name__ = f"apply_{variant.name.replace('-', '_')}"

    def __call__(self, rows: int, noise: Tensor, *tensors: Tensor) -> Tensor:
        """Act on tensors of `rows` rows in all; one that holds a single pass's rows is shared by all passes."""
        passes = noise.shape[0]
        fronted = [self._rows_in_front(each, rows) for each in tensors]
        folded = noise.dim() > fronted[0].dim()
        if folded:
            fronted = [torch.unflatten(x, 0, (passes, -1)) if len(x) == rows else x[None] for x in fronted]
        act: Callable[..., Tensor] = self.variant.apply  # of one tensor or two, or of a product's moments
        y = act(*fronted, noise.to(fronted[0].dtype) if noise.is_floating_point() else noise)
        return self._rows_back(y.flatten(0, 1) if folded else y)

    def entering(self, x: Tensor) -> Tensor:
        """Return what noise acts on, of what the site is given."""
        return x

    def factors(self, noise: Tensor, x: Tensor) -> Tensor:
        """Return the noise of a variant that scales [S?, R, …], in the type of x [*, *shape]."""
        return noise.to(x.dtype)

    def _rows_in_front(self, x: Tensor, rows: int) -> Tensor:
        if self.batch is None:
            return x[None]
        axis = self.batch.axis
        if self.batch.factor == 1:
            return x.movedim(axis, 0)
        if self.batch.row_major:
            return torch.unflatten(x, axis, (rows, -1)).movedim((axis, axis + 1), (0, 1))
        return torch.unflatten(x, axis, (-1, rows)).movedim((axis + 1, axis), (0, 1))

    def _rows_back(self, y: Tensor) -> Tensor:
        if self.batch is None:
            return y[0]
        axis = self.batch.axis
        if self.batch.factor == 1:
            return y.movedim(0, axis)
        if self.batch.row_major:
            return y.movedim((0, 1), (axis, axis + 1)).flatten(axis, axis + 1)
        return y.movedim((0, 1), (axis + 1, axis)).flatten(axis, axis + 1)
