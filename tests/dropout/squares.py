"""Squares on a map, one by one: how often positions are kept or covered, alone and in pairs; by counting only."""

import torch
from torch import Tensor

from service.dropout import Cutout, DropBlock


def blocks(side: int, height: int, width: int) -> Tensor:
    """Return every square of DropBlock inside a map, as the positions that it covers [squares, H, W]."""
    found = []
    for top in range(height - side + 1):
        for left in range(width - side + 1):
            one = torch.zeros(height, width, dtype=torch.float64)
            one[top : top + side, left : left + side] = 1
            found.append(one)
    return torch.stack(found)


def cuts(side: int, height: int, width: int) -> Tensor:
    """Return the square of cutout around every pixel, cut off at the border [squares, H, W]."""
    found = []
    for y in range(height):
        for x in range(width):
            one = torch.zeros(height, width, dtype=torch.float64)
            top, left = y - side // 2, x - side // 2
            one[max(0, top) : top + side, max(0, left) : left + side] = 1
            found.append(one)
    return torch.stack(found)


def kept(p: float, side: int, height: int, width: int) -> Tensor:
    """Return DropBlock's K [H, W]."""
    return (1 - rate(p, side, height, width)) ** blocks(side, height, width).sum(0)


def covered(side: int, height: int, width: int) -> Tensor:
    """Return cutout's P [H, W]."""
    return cuts(side, height, width).mean(0)


def rate(p: float, side: int, height: int, width: int) -> float:
    """Return Ghiasi et al. 2018, eq. 1, for a map that is not square."""
    return p / side**2 * (height * width) / ((height - side + 1) * (width - side + 1))


def correlation(variant: DropBlock | Cutout, shape: tuple[int, ...]) -> Tensor:
    """Return how the elements of a map [C, H, W] correlate, channels outside [C H W, C H W]."""
    channels, height, width = shape
    if isinstance(variant, Cutout):
        squares = cuts(int(variant.size), height, width).flatten(1)
        both = squares.T @ squares / len(squares)
        alone = torch.outer(squares.mean(0), squares.mean(0))
        return torch.kron(torch.ones(channels, channels).double(), _normalised(both - alone))
    side = int(variant.block_size)
    squares = blocks(side, height, width).flatten(1)
    over = squares.T @ squares
    either = over.diag()[:, None] + over.diag()[None, :] - over
    stays = 1 - rate(variant.p, side, height, width)
    within = _normalised(stays**either - torch.outer(stays ** over.diag(), stays ** over.diag()))
    channel = torch.ones(channels, channels) if variant.coupled else torch.eye(channels)
    return torch.kron(channel.double(), within)


def _normalised(covariance: Tensor) -> Tensor:
    deviation = covariance.diag().sqrt()
    return (covariance / torch.outer(deviation, deviation)).fill_diagonal_(1)
