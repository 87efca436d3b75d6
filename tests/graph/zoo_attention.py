"""Attention: its heads beside the rows, its masks, its groups."""

from collections.abc import Callable

import torch
from specimen import WIDTH, Specimen, padded, sequence
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Multi-head attention returning its weights: rows and heads share one axis, rows' heads being neighbours."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, dropout=0.3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x)[0].mean(1)


class HeadMajorAttention(nn.Module):
    """Heads and rows share one axis, heads outermost: a row's entries are strided."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        rows, length = x.shape[0], x.shape[1]
        parts = self.qkv(x).view(rows, length, 3, 2, WIDTH // 2).permute(2, 3, 0, 1, 4)
        q, k, v = (part.reshape(2 * rows, length, WIDTH // 2) for part in parts)
        weights = F.dropout(torch.softmax(q @ k.transpose(1, 2), -1), 0.3, self.training)
        return (weights @ v).view(2, rows, length, WIDTH // 2).mean((0, 2))


class PaddedEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 8, dropout=0.2, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        y = self.encoder(x, src_key_padding_mask=padding)
        return y.masked_fill(padding[..., None], 0).mean(1)


Mix = Callable[[Tensor, Tensor, Tensor, float], Tensor]


class ScaledDotProduct(nn.Module):
    """Attention of several heads by the functional form; fewer heads for keys and values where it is grouped."""

    def __init__(self, mix: Mix, heads: int = 1, key_heads: int = 1) -> None:
        super().__init__()
        self.heads = (heads, key_heads, key_heads)
        self.qkv = nn.Linear(WIDTH, 3 * sum(self.heads))
        self.mix = mix

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(x).split([3 * heads for heads in self.heads], -1)
        q, k, v = (part.unflatten(-1, (-1, 3)).transpose(1, 2) for part in parts)
        return self.mix(q, k, v, 0.3 if self.training else 0.0).transpose(1, 2).flatten(2).mean(1)


def causal(q: Tensor, k: Tensor, v: Tensor, p: float) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=True)


def boolean_mask(q: Tensor, k: Tensor, v: Tensor, p: float) -> Tensor:
    """Mask with a row that sees nothing."""
    mask = torch.ones(4, 4, dtype=torch.bool).tril(-1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p)


def float_mask(q: Tensor, k: Tensor, v: Tensor, p: float) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, torch.linspace(-1, 1, 16).view(4, 4), p, scale=0.3)


def fewer_queries(q: Tensor, k: Tensor, v: Tensor, p: float) -> Tensor:
    return F.scaled_dot_product_attention(q[:, :, :2], k, v, None, p, True)


def grouped(q: Tensor, k: Tensor, v: Tensor, p: float) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=True, enable_gqa=True)


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 8, dropout=0.2, batch_first=True)
    return nn.Sequential(nn.TransformerEncoder(layer, 2), nn.Flatten(), nn.Linear(4 * WIDTH, 3))


class TimeFirst(nn.Module):
    """A vision transformer's class token and positions, then attention with the rows on axis 1."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.position = nn.Parameter(torch.randn(1, 1, WIDTH)), nn.Parameter(torch.randn(1, 5, WIDTH))
        self.drop, self.head = nn.Dropout(0.3), nn.Linear(WIDTH, 3)
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 8, dropout=0.2)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        return self.head(self.encoder(self.drop(y + self.position).transpose(0, 1))[0])


ATTENTION = (
    Specimen("row-major attention", Attention, sequence),
    Specimen("head-major attention", HeadMajorAttention, sequence),
    Specimen("causal attention", lambda: ScaledDotProduct(causal), sequence),
    Specimen("attention, boolean mask", lambda: ScaledDotProduct(boolean_mask, 2, 2), sequence),
    Specimen("attention, float mask and scale", lambda: ScaledDotProduct(float_mask), sequence),
    Specimen("causal attention, fewer queries", lambda: ScaledDotProduct(fewer_queries), sequence),
    Specimen("grouped-query attention", lambda: ScaledDotProduct(grouped, 4, 2), sequence),
    Specimen("transformer encoder", encoder, sequence),
    Specimen("transformer encoder, batch on axis 1", TimeFirst, sequence),
    Specimen("padding mask", PaddedEncoder, padded),
)
