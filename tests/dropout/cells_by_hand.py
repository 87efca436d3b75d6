"""LSTM and GRU layers with dropout as their papers write them, in NumPy, many passes side by side; no service in it.

An LSTM's gates are i, f, g, o and a GRU's r, z, n, as torch orders them.
"""

from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from torch import nn

Array = NDArray[np.float64]


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def mask(rng: Generator, p: float, shape: tuple[int, ...]) -> Array:
    return (rng.random(shape) >= p).astype(float)


def layers(rng: Generator, module: nn.RNNBase, x: Array, variant: str = "", **own: float) -> Array:
    """Return the last layer's outputs [passes, steps, directions · units] for x [passes, steps, inputs]."""
    for layer in range(module.num_layers):
        ways = [one_way(rng, module, f"_l{layer}", x, variant, **own)]
        if module.bidirectional:
            backwards = one_way(rng, module, f"_l{layer}_reverse", x[:, ::-1], variant, **own)
            ways.append(backwards[:, ::-1])
        x = np.concatenate(ways, -1)
    return x


def one_way(rng: Generator, module: nn.RNNBase, suffix: str, x: Array, variant: str, **own: float) -> Array:
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    given: Any = [getattr(module, f"{name}{suffix}", None) for name in names]
    w, u, b, d = (None if each is None else each.detach().double().numpy() for each in given)
    none = np.zeros(len(w))
    run = lstm if isinstance(module, nn.LSTM) or module.mode == "LSTM" else gru
    return run(rng, x, w, u, none if b is None else b, none if d is None else d, variant, **own)


def variational_masks(
    rng: Generator, variant: str, p: float, per_gate: float, gates: int, x: Array, units: int
) -> tuple[Array, Array]:
    """Gal & Ghahramani 2016, eq. 4 (masks for each gate) and 7 (for all): z_x and z_h, drawn once for all steps."""
    passes, inputs = len(x), x.shape[2]
    if variant != "variational-rnn":
        return np.ones((gates, 1, inputs)), np.ones((gates, 1, units))
    drawn = gates if per_gate else 1
    z_x, z_h = (mask(rng, p, (drawn, passes, width)) / (1 - p) for width in (inputs, units))
    return np.broadcast_to(z_x, (gates, passes, inputs)), np.broadcast_to(z_h, (gates, passes, units))


def lstm(
    rng: Generator, x: Array, w: Array, u: Array, b: Array, d: Array, variant: str,
    p: float = 0.0, per_gate: float = 0, per_step: float = 1, p_h: float = 0.05,
) -> Array:  # fmt: skip
    passes, steps, _ = x.shape
    units = u.shape[1]
    w_i, w_f, w_g, w_o = np.split(w, 4)
    u_i, u_f, u_g, u_o = np.split(u, 4)
    b_i, b_f, b_g, b_o = np.split(b + d, 4)
    z_x, z_h = variational_masks(rng, variant, p, per_gate, 4, x, units)
    m = mask(rng, p, (passes, units))  # one for the sequence
    h, c = np.zeros((passes, units)), np.zeros((passes, units))
    outputs = []
    for t in range(steps):
        i = sigmoid((x[:, t] * z_x[0]) @ w_i.T + (h * z_h[0]) @ u_i.T + b_i)
        f = sigmoid((x[:, t] * z_x[1]) @ w_f.T + (h * z_h[1]) @ u_f.T + b_f)
        g = np.tanh((x[:, t] * z_x[2]) @ w_g.T + (h * z_h[2]) @ u_g.T + b_g)
        o = sigmoid((x[:, t] * z_x[3]) @ w_o.T + (h * z_h[3]) @ u_o.T + b_o)
        if variant == "recurrent-dropout":  # Semeniuta et al. 2016, eq. 14
            g = g * (mask(rng, p, g.shape) if per_step else m) / (1 - p)
        new = f * c + i * g
        if variant == "rnn-drop":  # Moon et al. 2015: c_t = m (f c + i g)
            new = m * new
        h_new = o * np.tanh(new)
        if variant == "zoneout":  # Krueger et al. 2017, eq. 5: h_t reads f c + i g, not what is kept of c
            keep_c, keep_h = 1 - mask(rng, p, c.shape), 1 - mask(rng, p_h, h.shape)
            new, h_new = keep_c * c + (1 - keep_c) * new, keep_h * h + (1 - keep_h) * h_new
        h, c = h_new, new
        outputs.append(h)
    return np.stack(outputs, 1)


def gru(
    rng: Generator, x: Array, w: Array, u: Array, b: Array, d: Array, variant: str,
    p: float = 0.0, per_gate: float = 0, per_step: float = 1, p_h: float = 0.0,
) -> Array:  # fmt: skip
    passes, steps, _ = x.shape
    units = u.shape[1]
    w_r, w_z, w_n = np.split(w, 3)
    u_r, u_z, u_n = np.split(u, 3)
    (b_r, b_z, b_n), (d_r, d_z, d_n) = np.split(b, 3), np.split(d, 3)
    z_x, z_h = variational_masks(rng, variant, p, per_gate, 3, x, units)
    m = mask(rng, p, (passes, units))
    h = np.zeros((passes, units))
    outputs = []
    for t in range(steps):
        r = sigmoid((x[:, t] * z_x[0]) @ w_r.T + b_r + (h * z_h[0]) @ u_r.T + d_r)
        z = sigmoid((x[:, t] * z_x[1]) @ w_z.T + b_z + (h * z_h[1]) @ u_z.T + d_z)
        n = np.tanh((x[:, t] * z_x[2]) @ w_n.T + b_n + r * ((h * z_h[2]) @ u_n.T + d_n))
        if variant == "recurrent-dropout":  # Semeniuta et al. 2016, eq. 15
            n = n * (mask(rng, p, n.shape) if per_step else m) / (1 - p)
        new = z * h + (1 - z) * n
        if variant == "zoneout":
            kept = 1 - mask(rng, p, h.shape)
            new = kept * h + (1 - kept) * new
        h = new
        outputs.append(h)
    return np.stack(outputs, 1)
