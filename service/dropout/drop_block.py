"""DropBlock, its operator and layer; it does not know whether a tensor of three axes is an image."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from service.dropout.noise import Shape, Stream
from service.dropout.operator import register
from service.dropout.variant import HIDDEN, ActivationVariant, Kind
from service.errors import InvalidPlan


@dataclass(frozen=True)
class DropBlock(ActivationVariant):
    """Drop whole squares of a map [C, H, W]: y = (m / K) ∘ x, m = 0 where a square lies (Ghiasi et al. 2018).

    Every block_size² square inside the map is opened by a seed ~ Bernoulli(γ), γ = p H W / (block_size²
    (H - block_size + 1)(W - block_size + 1)), so that about a share p of the map is dropped, more in its middle than at
    its border. K = (1 - γ)^n is how often a position is kept, n being the squares that cover it.

    The paper divides by the share of a batch that was kept, which ties rows and passes together; here each position is
    divided by its own K, or by the map's mean of K, which the paper's share comes to in a large batch.

    Attributes:
        block_size: The side of a square, a whole number; the map's shorter side where that is less.
        coupled: 1 where all channels share their squares, 0 where each has its own.
        even: 1 to divide by the mean of K over the map, 0 to divide by each position's.
    """

    name = "dropblock"
    equation = "y = (m / K) ∘ x, m = 0 on every square whose seed ~ Bernoulli(γ) is 1, K = (1 - γ)^n"
    sampled = "one Bernoulli(γ) per square inside the map"
    shared = "all positions of a square"
    mean_form = "x"
    variance_form = "x² (1 - K) / K"
    reference = "Ghiasi et al. 2018, NeurIPS (arXiv 1810.12890)"
    kinds = HIDDEN | {Kind.ACTIVATION}
    on_images = True

    p: float = 0.1
    block_size: float = 7.0
    coupled: float = 0.0
    even: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.block_size >= 1 or self.block_size % 1:
            raise InvalidPlan(f"{self.name}: block_size = {self.block_size} is not a side; give a whole number above 0")
        for key, value in (("coupled", self.coupled), ("even", self.even)):
            if value not in (0, 1):
                raise InvalidPlan(f"{self.name}: {key} = {value} is neither 0 nor 1")

    def fits(self, kind: Kind, shape: Shape) -> bool:
        """Tell whether the site is a map of channels, height and width."""
        return super().fits(kind, shape) and len(shape) == 3

    def draw(self, stream: Stream, shape: Shape) -> Tensor:
        """Draw u ~ U(0, 1) [S, R, C or 1, H, W], one for the square that begins at each position."""
        return stream.uniform((1, *shape[1:]) if self.coupled else shape).float()

    def apply(self, x: Tensor, noise: Tensor) -> Tensor:
        """Return (m / K) ∘ x."""
        height, width = x.shape[-2:]
        block = self.block(height, width)
        inside = noise.narrow(-2, 0, height - block + 1).narrow(-1, 0, width - block + 1)
        seeds = inside < self.gamma(height, width)
        opened = F.pad(seeds.to(x.dtype), (block - 1,) * 4)
        rows = F.max_pool2d(opened.flatten(0, -3), (block, 1), 1)
        dropped = F.max_pool2d(rows, (1, block), 1).reshape(*noise.shape[:-2], height, width)
        return x * ((1 - dropped) / self._divisor(x))

    def mean(self, x: Tensor) -> Tensor:
        """Return x; where even, x K / mean K."""
        return x * (self._kept(x) / self._divisor(x))

    def variance(self, x: Tensor) -> Tensor:
        """Return x² (1 - K) / K; where even, x² K (1 - K) / (mean K)²."""
        kept = self._kept(x)
        return x.square() * (kept * (1 - kept) / self._divisor(x).square())

    def block(self, height: int, width: int) -> int:
        """Return the side of a square on a map."""
        return min(int(self.block_size), height, width)

    def gamma(self, height: int, width: int) -> float:
        """Return how often a square is dropped, at most p."""
        block = self.block(height, width)
        return self.p * height * width / (block**2 * (height - block + 1) * (width - block + 1))

    def _kept(self, x: Tensor) -> Tensor:
        """Return K [H, W]."""
        height, width = x.shape[-2:]
        block = self.block(height, width)
        rows, columns = (_covering(size, block, x.device) for size in (height, width))
        kept: Tensor = (1 - self.gamma(height, width)) ** torch.outer(rows, columns)
        return kept.to(x.dtype)

    def _divisor(self, x: Tensor) -> Tensor:
        kept = self._kept(x)
        return kept.mean() if self.even else kept


def _covering(size: int, block: int, device: torch.device) -> Tensor:
    """Return how many intervals of length `block` inside [0, size) cover each place, float64 [size]."""
    place = torch.arange(size, device=device)
    return (place.clamp_max(size - block) - (place - block + 1).clamp_min(0) + 1).double()


def _forward(x: Tensor, p: float, block_size: int, coupled: bool, even: bool, train: bool) -> Tensor:
    if not train:
        return x
    variant = DropBlock(p, block_size, float(coupled), float(even))
    rows, channels, height, width = x.shape
    noise = torch.rand(rows, 1 if coupled else channels, height, width, device=x.device)
    return variant.apply(x, noise)


drop_block = register(
    "drop_block(Tensor x, float p, int block_size, bool coupled, bool even, bool train) -> Tensor", _forward
)


class DropBlock2d(nn.Module):
    """Train with DropBlock on maps [B, C, H, W], every row with squares of its own; the identity in eval mode.

    Args:
        p: About which share of a map is dropped, 0 ≤ p < 1.
        block_size: The side of a square.
        coupled: Whether all channels share their squares.
        even: Whether to divide by the map's mean of K rather than by each position's own.
    """

    def __init__(
        self, p: float = DropBlock.p, block_size: int = int(DropBlock.block_size), coupled: bool = False,
        even: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        known = DropBlock(p, block_size, float(coupled), float(even))
        self.p, self.block_size = known.p, int(known.block_size)
        self.coupled, self.even = coupled, even

    def forward(self, x: Tensor) -> Tensor:
        """Return (m / K) ∘ x in training, x in eval; the shape is kept."""
        if x.dim() != 4:
            raise ValueError(f"DropBlock2d needs maps [B, C, H, W]; got the shape {tuple(x.shape)}")
        y: Tensor = drop_block(x, self.p, self.block_size, self.coupled, self.even, self.training)
        return y
