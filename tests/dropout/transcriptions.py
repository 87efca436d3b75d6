"""Every variant's paper once more, literally and in NumPy's own random numbers; it knows nothing of the service.

Papers write the probability of keeping as p and scale by it in testing; here `keep` is theirs, and a network that was
stored for testing (its weights already scaled) is scaled back first. Each function returns passes [S, …].
"""

from collections.abc import Callable
from math import sqrt

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Array = NDArray[np.float64]
OfActivations = Callable[[Generator, int, float, Array], Array]
OfPairs = Callable[[Generator, int, Array, Array], Array]
OfCells = Callable[[Generator, int, float, Array, Array], Array]
OfWeights = Callable[..., Array]  # rng, passes, p, x, weight, bias and what the layer learned besides


def dropout(rng: Generator, passes: int, p: float, x: Array) -> Array:
    """Srivastava et al. 2014, §4: r ~ Bernoulli(keep), ỹ = r ∗ y, W_test = keep W."""
    keep = 1 - p
    r = (rng.random((passes, *x.shape)) < keep).astype(float)
    return r * (x / keep)


def gaussian_dropout(rng: Generator, passes: int, p: float, x: Array) -> Array:
    """Srivastava et al. 2014, §10: multiply by r′ ~ N(1, σ²) with σ² = (1 - keep) / keep."""
    keep = 1 - p
    return rng.normal(1.0, sqrt((1 - keep) / keep), (passes, *x.shape)) * x


def continuous_dropout(rng: Generator, passes: int, p: float, x: Array) -> Array:
    """Shen et al. 2018: a uniform mask, over its mean; the width has dropout's variance p / q: (2b)² / 12 = p / q."""
    b = sqrt(12 * p / (1 - p)) / 2
    return rng.uniform(1 - b, 1 + b, (passes, *x.shape)) * x


def spatial_dropout(rng: Generator, passes: int, p: float, x: Array) -> Array:
    """Tompson et al. 2015, §3.2: one trial for each feature map, extended over the whole map."""
    keep = 1 - p
    y = np.zeros((passes, *x.shape))
    for channel in range(x.shape[0]):
        trial = (rng.random(passes) < keep).astype(float)
        y[:, channel] = trial[:, None] * x[channel] / keep
    return y


SELU_LAMBDA = 1.0507009873554804934193349852946
SELU_ALPHA = 1.6732632423543772848170429916717


def alpha_dropout(rng: Generator, passes: int, p: float, x: Array) -> Array:
    """Klambauer et al. 2017: x d + α′(1 - d) with α′ = -λα, then a · + b.

    a = (q + α′² q (1 - q))^(-1/2) and b = -a (1 - q) α′ keep mean 0 and variance 1.
    """
    return _alpha(rng.random((passes, *x.shape)) < 1 - p, 1 - p, x)


def feature_alpha_dropout(rng: Generator, passes: int, p: float, x: Array) -> Array:
    """Klambauer et al. 2017 with one d for each feature map."""
    d = np.repeat(rng.random((passes, x.shape[0], 1)) < 1 - p, x.shape[1], axis=2)
    return _alpha(d, 1 - p, x)


def _alpha(d: NDArray[np.bool_], q: float, x: Array) -> Array:
    saturation = -SELU_LAMBDA * SELU_ALPHA
    a = (q + saturation**2 * q * (1 - q)) ** -0.5
    b = -a * (1 - q) * saturation
    return a * np.where(d, x, saturation) + b


def stochastic_depth(rng: Generator, passes: int, p: float, x: Array) -> Array:
    """Huang et al. 2016, eq. 2 and 5: b ~ Bernoulli(survival), b f; f_test = survival f."""
    survival = 1 - p
    y = np.empty((passes, *x.shape))
    for t in range(passes):
        y[t] = x / survival if rng.random() < survival else 0.0
    return y


def concrete_dropout(rng: Generator, passes: int, p: float, x: Array, temperature: float = 0.1) -> Array:
    """Gal, Hron & Kendall 2017, §3 and their code: drop_prob = sigm((log p - log(1 - p) + log u - log(1 - u)) / t)."""
    unif_noise = rng.random((passes, *x.shape))
    return _concrete(p, unif_noise, x, temperature)


def spatial_concrete_dropout(rng: Generator, passes: int, p: float, x: Array) -> Array:
    """Gal, Hron & Kendall 2017, their code for maps: one u for each channel, t = 2 / 3."""
    return _concrete(p, rng.random((passes, x.shape[0], 1)), x, 2 / 3)


def _concrete(p: float, u: Array, x: Array, temperature: float) -> Array:
    drop_prob = np.log(p) - np.log(1.0 - p) + np.log(u) - np.log(1.0 - u)
    drop_prob = 1 / (1 + np.exp(-drop_prob / temperature))
    return x * (1.0 - drop_prob) / (1.0 - p)


def layer_drop(rng: Generator, passes: int, p: float, x: Array) -> Array:
    """Fan et al. 2020, §3.2: each layer of a batch is dropped at rate p, and nothing is rescaled."""
    return np.stack([x if rng.random() >= p else np.zeros_like(x) for _ in range(passes)])


def shake_drop(rng: Generator, passes: int, p: float, x: Array) -> Array:
    """Yamada et al. 2018, eq. 5 and 6: (b + α - bα) f in training and E[b + α - bα] f = survival f = x in testing."""
    survival = 1 - p
    f = x / survival
    y = np.empty((passes, *x.shape))
    for t in range(passes):
        b, alpha = float(rng.random() < survival), rng.uniform(-1, 1)
        y[t] = (b + alpha - b * alpha) * f
    return y


def dropconnect(rng: Generator, passes: int, p: float, x: Array, weight: Array, bias: Array) -> Array:
    """Wan et al. 2013, eq. 3: u = (M ⋆ W) v, M_ij ~ Bernoulli(keep), the biases being W's last column."""
    keep = 1 - p
    w = np.column_stack([weight, bias]) / keep  # stored for testing as keep W
    v = np.append(x, 1.0)
    mask = (rng.random((passes, *w.shape)) < keep).astype(float)
    return np.einsum("sij,j->si", mask * w, v)


def dropconnect_inference(rng: Generator, passes: int, p: float, x: Array, weight: Array, bias: Array) -> Array:
    """Wan et al. 2013, Algorithm 2: μ = keep W v, σ² = keep (1 - keep) (W ⋆ W)(v ⋆ v), u_iz ~ N(μ_i, σ_i²)."""
    keep = 1 - p
    w = np.column_stack([weight, bias]) / keep
    v = np.append(x, 1.0)
    mu = keep * w @ v
    sigma2 = keep * (1 - keep) * (w * w) @ (v * v)
    u = np.empty((passes, len(mu)))
    for unit in range(len(mu)):
        u[:, unit] = rng.normal(mu[unit], sqrt(sigma2[unit]), passes)
    return u


def standout(rng: Generator, passes: int, u: Array, a: Array, alpha: float = 0.5, beta: float = 1.0) -> Array:
    """Ba & Frey 2013, §2-3: P(m_j = 1) = f(Σ_i π_ji a_i), f the logistic function, π = α w + β; a_j = m_j g(·)."""
    keep = 1 / (1 + np.exp(-(alpha * u + beta)))
    m = (rng.random((passes, *a.shape)) < keep).astype(float)
    return m * a


def shake_shake(rng: Generator, passes: int, f1: Array, f2: Array) -> Array:
    """Gastaldi 2017, eq. 2: x + α F(x, W¹) + (1 - α) F(x, W²), α ~ U(0, 1)."""
    y = np.empty((passes, *f1.shape))
    for t in range(passes):
        alpha = rng.uniform()
        y[t] = alpha * f1 + (1 - alpha) * f2
    return y


def fast_dropout(rng: Generator, passes: int, p: float, x: Array, weight: Array, bias: Array) -> Array:
    """Wang & Manning 2013, eq. 5: S → N(E S, Var S) with E S = Σ keep w x and Var S = Σ keep (1 - keep) (w x)²."""
    keep = 1 - p
    w = weight / keep  # stored for testing as keep w
    mean = np.array([sum(keep * w[i, j] * x[j] for j in range(len(x))) for i in range(len(w))])
    square = np.array([sum(keep * (1 - keep) * (w[i, j] * x[j]) ** 2 for j in range(len(x))) for i in range(len(w))])
    return mean + bias + np.sqrt(square) * rng.standard_normal((passes, len(w)))


def variational_dropout_a(rng: Generator, passes: int, p: float, x: Array, weight: Array, bias: Array) -> Array:
    """Kingma et al. 2015, eq. 10: q(b | A) = N(γ, δ), γ = Σ a θ, δ = α Σ a² θ²; α = p / (1 - p) (§3)."""
    alpha = p / (1 - p)
    gamma, delta = weight @ x, alpha * (weight**2 @ x**2)
    zeta = rng.standard_normal((passes, len(gamma)))
    return gamma + np.sqrt(delta) * zeta + bias


def variational_dropout_b(rng: Generator, passes: int, p: float, x: Array, weight: Array, bias: Array) -> Array:
    """Kingma et al. 2015, eq. 11: B = A W, w_i = s_i θ_i, one s_i ~ N(1, α) for each input."""
    s = rng.normal(1.0, sqrt(p / (1 - p)), (passes, len(x)))
    return np.einsum("sj,j,ij->si", s, x, weight) + bias


def shakeout(rng: Generator, passes: int, p: float, x: Array, weight: Array, bias: Array, c: float = 0.1) -> Array:
    """Kang et al. 2018, eq. 1: r_j = 0 with probability τ: W ← -c s; else W ← (W + c τ s) / (1 - τ), s = sign W."""
    s = np.sign(weight)
    u = np.empty((passes, len(weight)))
    for t in range(passes):
        dropped = rng.random(len(x)) < p
        u[t] = np.where(dropped, -c * s, (weight + c * p * s) / (1 - p)) @ x + bias
    return u


def targeted_weight_dropout(
    rng: Generator, passes: int, p: float, x: Array, weight: Array, bias: Array, gamma: float = 0.5
) -> Array:
    """Gomez et al. 2019, §3: the γ |column| smallest weights of a unit are dropped with probability α, none scaled."""
    u = np.empty((passes, len(weight)))
    for unit, w in enumerate(weight):
        targets = set(sorted(range(len(w)), key=lambda j: abs(w[j]))[: int(gamma * len(w))])
        kept = np.array([(rng.random(passes) >= p) if j in targets else np.ones(passes, bool) for j in range(len(w))])
        u[:, unit] = (w * x) @ kept + bias[unit]
    return u


def targeted_unit_dropout(
    rng: Generator, passes: int, p: float, x: Array, weight: Array, bias: Array, gamma: float = 1.0
) -> Array:
    """Gomez et al. 2019, §3: the γ units of smallest norm are dropped with probability α; here, all are targets."""
    targets = sorted(range(len(weight)), key=lambda unit: np.linalg.norm(weight[unit]))[: int(gamma * len(weight))]
    u = np.tile(weight @ x, (passes, 1))
    for unit in targets:
        u[:, unit] *= rng.random(passes) >= p
    return u + bias


def word_dropout(rng: Generator, passes: int, p: float, x: Array) -> Array:
    """Gal & Ghahramani 2016, §4.2: rows of the embedding matrix are set to zero, each word type as a whole."""
    keep = 1 - p
    y = np.zeros((passes, *x.shape))
    for word in range(x.shape[0]):
        y[:, word] = (rng.random(passes) < keep)[:, None] * x[word] / keep
    return y


def locked_dropout(rng: Generator, passes: int, p: float, x: Array) -> Array:
    """Merity et al. 2018, §4.2 and their LockedDropout: m of shape (1, B, units), Bernoulli(1 - p) over 1 - p."""
    y = np.empty((passes, *x.shape))
    m = (rng.random((passes, x.shape[1])) < 1 - p) / (1 - p)
    for step in range(x.shape[0]):
        y[:, step] = m * x[step]
    return y


def weight_dropped(rng: Generator, passes: int, p: float, x: Array, weight: Array, bias: Array) -> Array:
    """Merity et al. 2018, §2 and their WeightDrop: w = dropout(raw_w, p) of the hidden-to-hidden matrix, per batch."""
    u = np.empty((passes, len(weight)))
    for t in range(passes):
        u[t] = np.where(rng.random(weight.shape) < p, 0.0, weight / (1 - p)) @ x + bias
    return u


def sparse_variational_dropout(
    rng: Generator, passes: int, p: float, x: Array, weight: Array, bias: Array, log_sigma2: Array
) -> Array:
    """Molchanov et al. 2017, §4.1 and their code: log α = log σ² - log θ², mu = θ x, si = √(α θ² x²), b afterwards."""
    log_alpha = np.clip(log_sigma2 - np.log(weight**2), -8, 8)
    mu, si = weight @ x, np.sqrt((np.exp(log_alpha) * weight * weight) @ (x * x))
    return mu + rng.standard_normal((passes, len(weight))) * si + bias


def sparse_weights(
    rng: Generator, passes: int, p: float, x: Array, weight: Array, bias: Array, log_sigma2: Array
) -> Array:
    """Molchanov et al. 2017, §4.2, additive noise: w_ij = θ_ij + σ_ij ε_ij, ε_ij ~ N(0, 1)."""
    u = np.empty((passes, len(weight)))
    for t in range(passes):
        u[t] = rng.normal(weight, np.exp(log_sigma2 / 2)) @ x + bias
    return u


def max_pooling_dropout(rng: Generator, passes: int, p: float, x: Array, size: int = 3) -> Array:
    """Wu & Gu 2015, eq. 6: a sorted, index i of 1 … n is drawn with keep p^(n - i), and index 0, a = 0, with p^n."""
    keep = 1 - p
    y = np.empty((passes, x.shape[0], x.shape[1] // size))
    for channel, region in np.ndindex(*y.shape[1:]):
        a = np.concatenate([[0.0], np.sort(x[channel, region * size : (region + 1) * size])])
        chances = [p**size, *(keep * p ** (size - i) for i in range(1, size + 1))]
        y[:, channel, region] = a[rng.choice(size + 1, passes, p=chances)]
    return y


def stochastic_pooling(rng: Generator, passes: int, _: float, x: Array, size: int = 3) -> Array:
    """Zeiler & Fergus 2013, eq. 4 and 5: p_i = a_i / Σ a_k; s_j = a_l with l ~ P(p_1, …, p_|R|)."""
    y = np.empty((passes, x.shape[0], x.shape[1] // size))
    for channel, region in np.ndindex(*y.shape[1:]):
        a = x[channel, region * size : (region + 1) * size]
        y[:, channel, region] = rng.choice(a, passes, p=a / a.sum())
    return y


def masked_max_pooling(rng: Generator, passes: int, p: float, x: Array, size: int = 3) -> Array:
    """Thevenot 2020, "MaxDrop" with a Bernoulli mask: the mask multiplies what the max pooling layer gives."""
    pooled = x.reshape(x.shape[0], -1, size).max(-1)
    return (rng.random((passes, *pooled.shape)) >= p) * pooled


def max_drop(rng: Generator, passes: int, p: float, x: Array) -> Array:
    """Park & Kwak 2016, feature-wise: the maximum of each feature map is set to 0 with probability p."""
    y = np.tile(x, (passes, 1, 1, 1))
    for channel, one in enumerate(x):
        row, column = np.unravel_index(one.argmax(), one.shape)
        y[rng.random(passes) < p, channel, row, column] = 0.0
    return y


def max_drop_channel(rng: Generator, passes: int, p: float, x: Array) -> Array:
    """Park & Kwak 2016, channel-wise: the maximum over the channels at each position is set to 0 with probability p."""
    y = np.tile(x, (passes, 1, 1, 1))
    for row, column in np.ndindex(*x.shape[1:]):
        y[rng.random(passes) < p, x[:, row, column].argmax(), row, column] = 0.0
    return y


def variational_rnn(rng: Generator, passes: int, p: float, new: Array, old: Array) -> Array:
    """Gal & Ghahramani 2016, eq. 7: x_t ∘ z_x with one z_x for all t, of the units [units, steps] of an input."""
    keep = 1 - p
    y = np.empty((passes, *new.shape))
    z = (rng.random((passes, len(new))) < keep).astype(float)
    for t in range(new.shape[1]):
        y[:, :, t] = new[:, t] * z / keep
    return y


def rnn_drop(rng: Generator, passes: int, p: float, new: Array, old: Array) -> Array:
    """Moon et al. 2015: c_t = m ∘ (f ∘ c_{t-1} + i ∘ g) with the sequence's own m, nothing rescaled."""
    y = np.empty((passes, *new.shape))
    for s in range(passes):
        m = (rng.random(len(new)) >= p).astype(float)
        for t in range(new.shape[1]):
            y[s, :, t] = m * new[:, t]
    return y


def recurrent_dropout(rng: Generator, passes: int, p: float, new: Array, old: Array) -> Array:
    """Semeniuta et al. 2016, eq. 14: d(g_t), a mask at every t; the network was stored for testing."""
    keep = 1 - p
    y = np.empty((passes, *new.shape))
    for t in range(new.shape[1]):
        y[:, :, t] = (rng.random((passes, len(new))) < keep) * new[:, t] / keep
    return y


def zoneout(rng: Generator, passes: int, p: float, new: Array, old: Array) -> Array:
    """Krueger et al. 2017, eq. 5: d_t ∘ h_{t-1} + (1 - d_t) ∘ h̃_t, d_t ~ Bernoulli(z) at every t."""
    d = rng.random((passes, *new.shape)) < p
    return np.where(d, old, new)


ACTIVATIONS: dict[str, OfActivations] = {
    "bernoulli": dropout,
    "gaussian": gaussian_dropout,
    "uniform": continuous_dropout,
    "spatial": spatial_dropout,
    "alpha": alpha_dropout,
    "feature-alpha": feature_alpha_dropout,
    "drop-path": stochastic_depth,
    "concrete": concrete_dropout,
    "spatial-concrete": spatial_concrete_dropout,
    "layer-drop": layer_drop,
    "shake-drop": shake_drop,
    "word-dropout": word_dropout,
    "locked": locked_dropout,
}
POOLS: dict[str, OfActivations] = {
    "max-pooling-dropout": max_pooling_dropout,
    "stochastic-pooling": stochastic_pooling,
    "masked-max-pooling": masked_max_pooling,
}
MAXIMA: dict[str, OfActivations] = {"max-drop": max_drop, "max-drop-channel": max_drop_channel}


def dropblock(rng: Generator, passes: int, p: float, x: Array, block_size: int = 2) -> Array:
    """Ghiasi et al. 2018, Algorithm 1 and eq. 1 on x [C, H, W]: A = A × M, then A / (count_ones(M) / count(M)).

    The paper's count is that of one batch; here each position has its own, and over all the masks that there could be.
    """
    _, height, width = x.shape
    gamma = p / block_size**2 * (height * width) / ((height - block_size + 1) * (width - block_size + 1))
    mask, ones = np.ones((passes, *x.shape)), np.ones((height, width))
    for i in range(height - block_size + 1):
        for j in range(width - block_size + 1):
            zero_entry = rng.random((passes, len(x))) < gamma
            mask[:, :, i : i + block_size, j : j + block_size] *= ~zero_entry[:, :, None, None]
            ones[i : i + block_size, j : j + block_size] *= 1 - gamma
    return x * mask / ones


def cutout(rng: Generator, passes: int, p: float, x: Array, length: int = 2) -> Array:
    """DeVries & Taylor 2017, their code on x [C, h, w]: a mask of ones, mask[y1:y2, x1:x2] = 0, img = img * mask."""
    _, h, w = x.shape
    img = np.empty((passes, *x.shape))
    for t, (y, centre) in enumerate(zip(rng.integers(h, size=passes), rng.integers(w, size=passes), strict=True)):
        mask = np.ones((h, w))
        y1, y2 = max(y - length // 2, 0), min(y + length // 2, h)
        x1, x2 = max(centre - length // 2, 0), min(centre + length // 2, w)
        mask[y1:y2, x1:x2] = 0.0
        img[t] = x * mask
    return img


MAPS: dict[str, OfActivations] = {"dropblock": dropblock, "cutout": cutout}
"""Those that take images [C, H, W]."""
CELLS: dict[str, OfCells] = {
    "variational-rnn": variational_rnn,
    "rnn-drop": rnn_drop,
    "recurrent-dropout": recurrent_dropout,
    "zoneout": zoneout,
}
PAIRS: dict[str, OfPairs] = {"standout": standout, "shake-shake": shake_shake}
WEIGHTS: dict[str, OfWeights] = {
    "dropconnect": dropconnect,
    "dropconnect-sampled": dropconnect_inference,
    "fast": fast_dropout,
    "variational-a": variational_dropout_a,
    "variational-b": variational_dropout_b,
    "shakeout": shakeout,
    "targeted-weights": targeted_weight_dropout,
    "targeted-units": targeted_unit_dropout,
    "weight-dropped": weight_dropped,
    "sparse-variational": sparse_variational_dropout,
    "sparse-variational-joint": sparse_weights,
}
