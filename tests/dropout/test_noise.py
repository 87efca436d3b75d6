"""The numbers behind the noise: what they depend on, that they are Philox's, and that they are random."""

import functools
from dataclasses import replace
from hashlib import blake2b
from math import erf, log, sqrt
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.dropout import Stream

N = 1 << 16
MASK = (1 << 64) - 1
KS_LIMIT = sqrt(-log(1e-6 / 2) / 2)
BASE = Stream(seed=7, site="encoder.dropout", first_pass=0, passes=1)


def philox4x64_10(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    """Salmon et al. 2011, §3.3, word by word."""
    c, k = list(counter), list(key)
    for _ in range(10):
        low, high = 0xD2E7470EE14C6C93 * c[0], 0xCA5A826395121157 * c[2]
        c = [(high >> 64) ^ c[1] ^ k[0], high & MASK, (low >> 64) ^ c[3] ^ k[1], low & MASK]
        k = [(k[0] + 0x9E3779B97F4A7C15) & MASK, (k[1] + 0xBB67AE8584CAA73B) & MASK]
    return tuple(c)


def words_of(counter: tuple[int, ...], key: tuple[int, ...]) -> list[int]:
    """Return a block's eight 32-bit words, the low half of each 64-bit word first."""
    return [half for word in philox4x64_10(counter, key) for half in (word & 0xFFFFFFFF, word >> 32)]


def key_of(part: str, seed: int, site: str) -> tuple[int, int]:
    digest = blake2b(f"thinnet/1/{part}\0{seed}\0{site}".encode(), digest_size=16).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


def words(stream: Stream, shape: tuple[int, ...], part: str = "") -> list[int]:
    return ((stream.uniform(shape, part) * 2**32) - 0.5).to(torch.int64).flatten().tolist()


def numbers(**changes: Any) -> Tensor:
    return replace(BASE, **changes).uniform((N,)).flatten()


def strongest_correlation_at_any_shift(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Return the largest circular correlation over all shifts, in standard errors of one."""
    a, b = (each - each.mean() for each in (a, b))
    products = np.fft.irfft(np.fft.rfft(a) * np.conj(np.fft.rfft(b)), len(a))
    return float(np.abs(products).max() / (a.std() * b.std() * sqrt(len(a))))


def test_the_cipher_is_the_papers() -> None:
    """The first known answer that the authors publish with Random123."""
    expected = (0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B)

    assert philox4x64_10((0, 0, 0, 0), (0, 0)) == expected
    assert tuple(np.random.Philox(counter=(1 << 256) - 1, key=0).random_raw(4).tolist()) == expected


@pytest.mark.parametrize("first_pass", [0, 1, 1000])
@pytest.mark.parametrize("part", ["", "second"])
def test_a_pass_starts_at_its_own_block_of_the_sites_key(first_pass: int, part: str) -> None:
    """Eleven numbers take two blocks of eight words; blocks are counted from 1."""
    key = key_of(part, BASE.seed, BASE.site)
    one, two = (words_of((2 * first_pass + block, 0, 0, 0), key) for block in (1, 2))

    assert words(replace(BASE, first_pass=first_pass), (11,), part) == one + two[:3]


def test_a_row_has_a_counter_of_its_own() -> None:
    key = key_of("", BASE.seed, BASE.site)
    rows = (0, 5, (1 << 62) - 1)
    expected = [word for row in rows for word in words_of((row + 1, 0, 3 + 1, 0), key)[:4]]

    assert words(replace(BASE, first_pass=3, rows=rows), (2, 2)) == expected


def test_neighbouring_rows_are_those_drawn_alone() -> None:
    """Eleven numbers take two blocks; the last rows' counters are past 64 bits."""
    for rows in (range(3, 9), range((1 << 63) - 2, (1 << 63) + 3)):
        together = words(replace(BASE, passes=2, rows=rows), (11,))
        alone = [words(replace(BASE, passes=2, rows=(row,)), (11,)) for row in rows]

        assert together == [word for at in (0, 11) for each in alone for word in each[at : at + 11]]


def test_a_growing_site_keeps_two_to_the_forty_blocks_for_a_pass() -> None:
    key = key_of("", BASE.seed, BASE.site)

    assert words(replace(BASE, first_pass=3, growing=frozenset({0})), (8,)) == words_of(((3 << 40) + 1, 0, 0, 0), key)


def test_two_growing_axes_are_numbered_in_square_shells() -> None:
    line = words(replace(BASE, growing=frozenset({0})), (9,))
    square = words(replace(BASE, growing=frozenset({0, 1})), (3, 3))

    assert [line.index(word) for word in square] == [0, 1, 4, 2, 3, 5, 6, 7, 8]


def test_fixed_axes_follow_row_by_row_under_each_position() -> None:
    grown = replace(BASE, growing=frozenset({1})).uniform((2, 4, 3))[0, 0]
    flat = replace(BASE, growing=frozenset({0})).uniform((24,))[0, 0]

    assert torch.equal(grown.transpose(0, 1).flatten(), flat)


@pytest.mark.parametrize("growing", [frozenset(), frozenset({1})])
@pytest.mark.parametrize("rows", [None, (4, 0, 9)])
def test_shapes_are_passes_then_rows_then_the_sites(growing: frozenset[int], rows: tuple[int, ...] | None) -> None:
    stream = replace(BASE, passes=6, rows=rows, growing=growing)

    for draw in (stream.uniform, stream.normal, *(functools.partial(stream.keep, q) for q in (0.5, 0.7))):
        assert draw((2, 5)).shape == (6, 1 if rows is None else 3, 2, 5)


def test_passes_do_not_depend_on_their_grouping() -> None:
    stream = replace(BASE, passes=10, rows=(0, 1))
    parts = [replace(stream, first_pass=first, passes=count) for first, count in ((0, 1), (1, 6), (7, 3))]

    assert torch.equal(torch.cat([part.normal((3, 5)) for part in parts]), stream.normal((3, 5)))


def test_the_global_generators_are_neither_read_nor_moved() -> None:
    torch.manual_seed(1)
    first = BASE.normal((5,))
    state, legacy = torch.get_rng_state(), np.random.get_state()[1]
    torch.manual_seed(2)
    second = BASE.normal((5,))
    torch.manual_seed(1)

    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], legacy)


def test_uniforms_are_strictly_between_zero_and_one(monkeypatch: pytest.MonkeyPatch) -> None:
    extremes = np.array([[[0, 2**32 - 1]]], dtype=np.uint32)
    monkeypatch.setattr(Stream, "_words", lambda self, key, count: extremes)
    low, high = BASE.uniform((2,)).flatten().tolist()

    assert (low, 1 - high) == (2.0**-33, 2.0**-33)
    assert BASE.normal((2,)).isfinite().all()
    assert BASE.normal((2,)).sum().abs() < 1e-6


def bytes_of(counter: tuple[int, ...], key: tuple[int, int]) -> bytes:
    """Return a block's 32 bytes, the low one of each 64-bit word first."""
    return b"".join(word.to_bytes(8, "little") for word in philox4x64_10(counter, key))


def test_a_half_takes_one_bit_of_each_draw() -> None:
    """A pass of 300 draws takes two blocks of 256 bits, the low bit of each byte first."""
    raw = b"".join(bytes_of((2 * 5 + block, 0, 0, 0), key_of("", BASE.seed, BASE.site)) for block in (1, 2))
    expected = [raw[index // 8] >> index % 8 & 1 for index in range(300)]

    assert replace(BASE, first_pass=5).keep(0.5, (300,)).flatten().tolist() == expected


@pytest.mark.parametrize("growing", [frozenset(), frozenset({0})])
@pytest.mark.parametrize("rows", [None, (0, 6)])
def test_another_rate_takes_a_byte_of_each_draw_and_settles_ties_by_words_of_lane_1(
    rows: tuple[int, ...] | None, growing: frozenset[int]
) -> None:
    q, count, first_pass = 0.7123, 2500, 2
    key, threshold = key_of("", BASE.seed, BASE.site), round(q * 2**40)
    value_blocks, tie_blocks = -(-count // 32), -(-(4 + count // 32) // 8)
    places = [(first_pass, 0)] if rows is None else [(row, first_pass + 1) for row in rows]
    for index, (number, network) in enumerate(places):
        starts = [number * (1 << 40 if growing else blocks) + 1 for blocks in (value_blocks, tie_blocks)]
        raw = b"".join(bytes_of((starts[0] + block, 0, network, 0), key) for block in range(value_blocks))
        words = [w for b in range(tie_blocks) for w in words_of((starts[1] + b, 0, network, 1), key)]
        ties = iter(words)
        expected = [
            value < threshold >> 32 or (value == threshold >> 32 and next(ties) < threshold & 0xFFFFFFFF)
            for value in raw[:count]
        ]
        stream = replace(BASE, first_pass=first_pass, rows=rows, growing=growing)

        assert len(list(ties)) < len(words)  # some were used
        assert stream.keep(q, (count,))[0, index].tolist() == expected


@pytest.mark.parametrize("q", [1.0, 0.75, 2**-8, 0.0])
def test_a_rate_of_whole_bytes_has_no_ties(q: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Stream, "_settle", None)
    kept = BASE.keep(q, (1 << 18,)).double().mean().item()

    assert abs(kept - q) <= 5 * sqrt(q * (1 - q) / (1 << 18))


def test_a_rate_is_exact_beyond_its_first_byte() -> None:
    """Of the ties alone, the share kept is what the rate's later bits say."""
    count = 1 << 22
    below, exact, above = (BASE.keep(q, (count,)) for q in (25 / 256, 25.25 / 256, 26 / 256))
    ties = above & ~below
    share = (exact & ties).sum().item() / ties.sum().item()

    assert not (below & ~exact).any()
    assert not (exact & ~above).any()
    assert abs(share - 0.25) <= 5 * sqrt(0.25 * 0.75 / ties.sum().item())


@pytest.mark.parametrize("p", [1e-3, 0.1, 0.5, 1 - 1e-3])
def test_the_keep_rate_is_met(p: float) -> None:
    count = 1 << 21
    dropped = (~BASE.keep(1 - p, (count,))).sum().item()

    assert abs(dropped - p * count) <= 5 * sqrt(count * p * (1 - p))
    assert 5 * sqrt((1 - p) / (count * p)) < 0.12  # a rate off by an eighth would be seen


def test_uniforms_are_uniform() -> None:
    ordered = np.sort(numbers().numpy())
    gap = np.abs(ordered - (np.arange(N) + 0.5) / N).max()

    assert gap <= KS_LIMIT / sqrt(N)


def test_normals_are_normal() -> None:
    z = BASE.normal((N,)).flatten().double()
    moments = [z.pow(k).mean().item() for k in (1, 2, 3, 4)]
    below = torch.tensor([(1 + erf(value / sqrt(2))) / 2 for value in z.sort().values.tolist()])
    gap = (below - (torch.arange(N) + 0.5) / N).abs().max().item()

    # Var(z^k) = E z^2k - (E z^k)²: 1, 2, 15, 96
    for moment, expected, variance in zip(moments, (0, 1, 0, 3), (1, 2, 15, 96), strict=True):
        assert abs(moment - expected) <= 5 * sqrt(variance / N)
    assert gap <= KS_LIMIT / sqrt(N)


def test_a_normal_is_the_inverse_distribution_function_of_its_uniform() -> None:
    z, u = BASE.normal((100,)).flatten(), BASE.uniform((100,)).flatten()
    below = torch.tensor([(1 + erf(value / sqrt(2))) / 2 for value in z.tolist()], dtype=torch.float64)

    torch.testing.assert_close(below, u, rtol=0, atol=1e-6)


def test_seeds_sites_parts_passes_and_rows_are_uncorrelated() -> None:
    streams = [
        *(numbers(seed=seed) for seed in (0, 1, 2, 7, 1 << 63)),
        *(numbers(site=site) for site in ("", "encoder.dropout#2", "decoder.dropout", "encoder.dropou")),
        *(numbers(first_pass=index) for index in (1, 2, 9_999)),
        *(numbers(rows=(row,)) for row in (0, 1, 1000)),
        *(numbers(growing=frozenset({0}), first_pass=index) for index in (1, 2)),
        BASE.uniform((N,), "second").flatten(),
    ]
    together = torch.corrcoef(torch.stack(streams))
    apart = together - torch.eye(len(streams))

    assert apart.abs().max() <= 5.5 / sqrt(N)  # 153 pairs


def test_numbers_are_uncorrelated_with_themselves_at_any_shift() -> None:
    u = numbers().numpy() - 0.5
    power = np.abs(np.fft.rfft(u)) ** 2
    power[0] = 0
    shifted = np.fft.irfft(power)[1:] / (u.var() * N)

    assert np.abs(shifted).max() <= 6 / sqrt(N)


@pytest.mark.parametrize("seed", [0, 1, 2, 42, 1234])
def test_the_generators_that_initialise_weights_share_nothing_with_the_same_seed(seed: int) -> None:
    mine = {"uniform": numbers(seed=seed).numpy(), "normal": replace(BASE, seed=seed).normal((N,)).flatten().numpy()}
    torchs, numpys = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    philox = np.random.Generator(np.random.Philox(seed))
    theirs = [
        torch.rand(N, generator=torchs, dtype=torch.float64).numpy(),
        torch.randn(N, generator=torchs, dtype=torch.float64).numpy(),
        torch.rand(N, generator=torch.Generator().manual_seed(seed)).double().numpy(),
        numpys.random(N),
        numpys.normal(size=N),
        philox.random(N),
    ]

    for own in mine.values():
        assert max(strongest_correlation_at_any_shift(own, each) for each in theirs) < 6.5  # 65 536 shifts each


def test_the_check_for_shared_numbers_sees_a_shifted_copy() -> None:
    u = numbers().numpy()

    assert strongest_correlation_at_any_shift(u, np.roll(u, 1234)) > 100
