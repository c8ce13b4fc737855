"""Sums in a tensor core's registers from their definition, in Python loops, written apart from
dsjax: numbers are floats (exact here: nothing has more than 53 bits), cut off with `math.frexp`.
"""

import math

import numpy as np


def last_place(x, fraction_bits):
    """The last place of a number that has 1 bit before the point and `fraction_bits` after."""
    _, exponent = math.frexp(x)
    return 2.0 ** (exponent - 1 - fraction_bits)


def cut(x, unit):
    """The multiple of `unit` next to x on the side of zero."""
    return math.trunc(x / unit) * unit


def entry(a, b, promote, fraction_bits, instruction=32):
    """One entry of the product: a and b [K] -> float32."""
    total, register = np.float32(0), 0.0
    for start in range(0, len(a), instruction):
        stop = start + instruction
        terms = [register, *(float(x) * float(y) for x, y in zip(a[start:stop], b[start:stop]))]
        largest = max(map(abs, terms))
        if largest:
            register = sum(cut(term, last_place(largest, fraction_bits)) for term in terms)
        if register:
            register = cut(register, last_place(register, fraction_bits))
        if promote and stop % promote == 0:
            total, register = np.float32(total + np.float32(register)), 0.0
    return np.float32(total + np.float32(register))


def product(a, b, promote, fraction_bits):
    """a [M, K] b [K, N] -> [M, N] float32."""
    return np.array([[entry(row, column, promote, fraction_bits) for column in b.T] for row in a])
