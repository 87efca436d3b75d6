"""The numbers of `dropout/noise.py`, made inside a kernel: the same bits, and normals to 1e-6.

It does not know what they are for. A network's numbers are told by four 64-bit words in memory, its coordinates: the
key's two, the index of its pass or row, and the counter's third. Whatever a tile needs is made where it is needed.
"""

import triton
import triton.language as tl

_MULTIPLIER_0, _MULTIPLIER_1 = tl.constexpr(0xD2E7470EE14C6C93), tl.constexpr(0xCA5A826395121157)
_WEYL_0, _WEYL_1 = tl.constexpr(0x9E3779B97F4A7C15), tl.constexpr(0xBB67AE8584CAA73B)
_ROUNDS = tl.constexpr(10)
_SIGN = tl.constexpr(1 << 31)
_UNIT = tl.constexpr(2.0**-31)
_NEAR_ONE = tl.constexpr(1 - 2.0**-24)


@triton.jit
def stream_of(numbers, network, stride, blocks):
    """Return key, counter and third word of networks' streams.

    Coordinates are the first four of `stride` words that each has in memory; `blocks` is how many one draws.
    """
    at = numbers + network.to(tl.int64) * stride
    key_0, key_1 = tl.load(at).to(tl.uint64, bitcast=True), tl.load(at + 1).to(tl.uint64, bitcast=True)
    index, third = tl.load(at + 2).to(tl.uint64, bitcast=True), tl.load(at + 3).to(tl.uint64, bitcast=True)
    each = index * 0 + blocks
    return key_0, key_1, index * each, tl.umulhi(index, each), third


@triton.jit
def block(stream, number, lane):
    """Return the four words of a stream's blocks, counted from 0 (Salmon et al. 2011: Philox4x64-10)."""
    key_0, key_1, before, high, third = stream
    c0 = before + number.to(tl.uint64) + 1
    c1 = high + (c0 <= before).to(tl.uint64)
    c2 = c0 * 0 + third
    c3 = c0 * 0 + lane
    for _ in tl.static_range(_ROUNDS):
        first, second = c0 * _MULTIPLIER_0, c2 * _MULTIPLIER_1
        c0, c2 = tl.umulhi(c2, c0 * 0 + _MULTIPLIER_1) ^ c1 ^ key_0, tl.umulhi(c0, c0 * 0 + _MULTIPLIER_0) ^ c3 ^ key_1
        c1, c3 = second, first
        key_0, key_1 = key_0 + _WEYL_0, key_1 + _WEYL_1
    return c0, c1, c2, c3


@triton.jit
def _funnel(low, high, shift):
    return (low >> shift) | ((high << 1) << (63 - shift))


@triton.jit
def words_from(stream, bit):
    """Return the four words, 256 bits, that begin at any bit of a stream."""
    a0, a1, a2, a3 = block(stream, bit >> 8, 0)
    b0, b1, b2, b3 = block(stream, (bit >> 8) + 1, 0)
    by_two = (bit & 128) != 0
    c0, c1, c2 = tl.where(by_two, a2, a0), tl.where(by_two, a3, a1), tl.where(by_two, b0, a2)
    c3, c4, c5 = tl.where(by_two, b1, a3), tl.where(by_two, b2, b0), tl.where(by_two, b3, b1)
    by_one = (bit & 64) != 0
    d0, d1, d2 = tl.where(by_one, c1, c0), tl.where(by_one, c2, c1), tl.where(by_one, c3, c2)
    d3, d4 = tl.where(by_one, c4, c3), tl.where(by_one, c5, c4)
    shift = (bit & 63).to(tl.uint64)
    return _funnel(d0, d1, shift), _funnel(d1, d2, shift), _funnel(d2, d3, shift), _funnel(d3, d4, shift)


@triton.jit
def in_order(w0, w1, w2, w3):
    """Return words [*] as [*, 4]."""
    pairs = tl.join(tl.join(w0, w2), tl.join(w1, w3))
    return pairs.reshape(w0.shape + [4])


@triton.jit
def parts_of(words, WIDTH: tl.constexpr):
    """Return the numbers of WIDTH bits in words [*], low ones first, as [*, 64 / WIDTH]."""
    each: tl.constexpr = 64 // WIDTH
    places = (tl.arange(0, each) * WIDTH).to(tl.uint64)
    return (tl.expand_dims(words, len(words.shape)) >> places) & ((1 << WIDTH) - 1)


@triton.jit
def number_at(stream, index, lane, WIDTH: tl.constexpr):
    """Return a stream's numbers of WIDTH bits by their places."""
    bit = index * WIDTH
    w0, w1, w2, w3 = block(stream, bit >> 8, lane)
    which = (bit >> 6) & 3
    word = tl.where(which == 0, w0, tl.where(which == 1, w1, tl.where(which == 2, w2, w3)))
    return (word >> (bit & 63).to(tl.uint64)) & ((1 << WIDTH) - 1)


@triton.jit
def level_of(word):
    """Return 2 u - 1 of 32-bit words, u being what `Stream.uniform` makes of them."""
    level = (word.to(tl.uint32) ^ _SIGN).to(tl.int32, bitcast=True).to(tl.float32)
    return (level + 0.5) * _UNIT


@triton.jit
def normal(word):
    """Return N(0, 1) of 32-bit words, as `Stream.normal` does."""
    level = level_of(word)
    return quantile(tl.minimum(tl.maximum(level, -_NEAR_ONE), _NEAR_ONE))


@triton.jit
def quantile(level):
    """Return √2 erf⁻¹(x), by polynomials in -log(1 - x²) and its root, as Giles 2010 does; fitted anew, to 5e-7."""
    w = -tl.log((1 - level) * (1 + level))
    c = w - 2.5
    central = 3.293115824476445e-08 * c + 4.844033014705929e-07
    central = central * c - 4.8979254643199965e-06
    central = central * c - 6.199391464178916e-06
    central = central * c + 0.0003087891673203558
    central = central * c - 0.0017730683321133256
    central = central * c - 0.005907721351832151
    central = central * c + 0.34880271553993225
    central = central * c + 2.1233134269714355
    t = tl.sqrt(tl.maximum(w, 5.0)) - 3
    tail = -0.0002576405822765082 * t + 0.0001200300466734916
    tail = tail * t + 0.0018776158103719354
    tail = tail * t - 0.005170751828700304
    tail = tail * t + 0.008129035122692585
    tail = tail * t - 0.010787129402160645
    tail = tail * t + 0.013346905820071697
    tail = tail * t + 1.416581630706787
    tail = tail * t + 4.006434440612793
    return level * tl.where(w < 5, central, tail)
