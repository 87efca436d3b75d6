"""Word dropout, its operator and layer; it does not know which words come."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from service.dropout.noise import Shape, Stream
from service.dropout.operator import register
from service.dropout.variant import ActivationVariant, Kind, scaled_keep, shared_after_first


@dataclass(frozen=True)
class WordDropout(ActivationVariant):
    """Drop whole words of an embedding table: e_w → (m_w / q) e_w, m_w ~ Bernoulli(q) (Gal & Ghahramani 2016).

    Its x is the table [words, features]: a word is dropped at all its positions, in all rows of a pass. In a table that
    is also another layer's weight, it acts where words are looked up and nowhere else.
    """

    name = "word-dropout"
    equation = "y_w = (m_w / q) e_w, m_w ~ Bernoulli(q)"
    sampled = "one Bernoulli(q) per word of the table"
    shared = "all features and occurrences of a word"
    mean_form = "x"
    variance_form = "x² p / q"
    reference = "Gal et al. 2016, NIPS (arXiv 1512.05287)"
    kinds = frozenset({Kind.EMBEDDING})

    p: float = 0.1

    def draw(self, stream: Stream, shape: Shape) -> Tensor:
        """Draw m / q [S, R, words, 1]."""
        return scaled_keep(stream, self.q, shared_after_first(shape))

    def apply(self, x: Tensor, noise: Tensor) -> Tensor:
        """Return noise ∘ table."""
        return x * noise

    def mean(self, x: Tensor) -> Tensor:
        """Return the table."""
        return x

    def variance(self, x: Tensor) -> Tensor:
        """Return x² p / q."""
        return x.square() * (self.p / self.q)


def _forward(weight: Tensor, indices: Tensor, padding: int, p: float, train: bool) -> Tensor:
    if not train:
        return F.embedding(indices, weight, None if padding < 0 else padding)
    keep = (torch.rand(len(weight), 1, device=weight.device) >= p) / (1 - p)
    return F.embedding(indices, weight * keep, None if padding < 0 else padding)


word_dropout_embedding = register(
    "word_dropout_embedding(Tensor weight, Tensor indices, int padding, float p, bool train) -> Tensor", _forward
)


class WordDropoutEmbedding(nn.Embedding):
    """Train an embedding whose words are dropped for a whole batch; the plain table in eval mode.

    Args:
        num_embeddings: How many words.
        embedding_dim: How many features.
        padding_idx: The word that is never trained, if any.
        p: The probability of dropping a word, 0 ≤ p < 1.
    """

    def __init__(
        self, num_embeddings: int, embedding_dim: int, padding_idx: int | None = None, p: float = WordDropout.p
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, padding_idx)
        self.p = WordDropout(p).p

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 # torch's own name
        """Look up word numbers [*] as vectors [*, features]."""
        padding = -1 if self.padding_idx is None else self.padding_idx
        y: Tensor = word_dropout_embedding(self.weight, input, padding, self.p, self.training)
        return y
