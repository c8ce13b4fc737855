"""FP8 quantization from its definition, in NumPy loops (V3 report sec. 3.3.2, facts of the released
kernels), written apart from dsjax: every representable number is listed and the nearest is taken.
"""

import functools
import itertools

import numpy as np

FORMATS = {  # mantissa bits, exponent bits, largest finite number
    "e4m3": (3, 4, 448.0),
    "e5m2": (2, 5, 57344.0),
    "e5m6": (6, 5, 65024.0),
}


@functools.cache
def numbers(name):
    """All numbers of a format that are not negative, ascending; index = code without sign."""
    mantissa, exponent, largest = FORMATS[name]
    bias = 2 ** (exponent - 1) - 1
    found = []
    for e, m in itertools.product(range(2**exponent), range(2**mantissa)):
        if e == 0:
            value = m * 2.0 ** (1 - bias - mantissa)
        else:
            value = (1 + m / 2**mantissa) * 2.0 ** (e - bias)
        if value <= largest:
            found.append(value)
    return np.array(found)


def nearest(x, name):
    """Indices of the numbers nearest to |x| (compared in float64), ties to the even index."""
    table = numbers(name)
    size = np.minimum(np.abs(np.asarray(x, np.float64)), table[-1])
    above = np.searchsorted(table, size)
    below = np.maximum(above - 1, 0)
    to_below, to_above = size - table[below], table[above] - size
    is_above = (to_above < to_below) | ((to_above == to_below) & (above % 2 == 0))
    return np.where(is_above | (to_above == 0), above, below)


def quantize(x, tile, pow2, name):
    """Values of the codes and the scales of a 2-D float32 array, by tiles."""
    x = np.asarray(x, np.float32)
    table = numbers(name)
    largest = np.float32(FORMATS[name][2])
    rows, columns = (-(-n // t) for n, t in zip(x.shape, tile))
    scales = np.zeros((rows, columns), np.float32)
    values = np.zeros(x.shape, np.float32)
    for i, j in itertools.product(range(rows), range(columns)):
        part = (slice(i * tile[0], (i + 1) * tile[0]), slice(j * tile[1], (j + 1) * tile[1]))
        scale = max(np.abs(x[part]).max(), np.float32(1e-4)) / largest
        if pow2:
            scale = np.float32(2.0) ** np.ceil(np.log2(np.float64(scale)))
        scale = np.float32(scale)
        scales[i, j] = scale
        inverse = np.float32(1) / scale
        scaled = x[part] * inverse
        values[part] = np.copysign(table[nearest(scaled, name)], scaled)
    return values, scales
