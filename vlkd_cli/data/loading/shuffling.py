"""Numbers that look random and depend on their keys only: hashes and permutations without a table,
vectorized over numpy arrays.

Any process can compute any piece of an epoch's order on its own, so ranks and workers agree without
sharing a random state, and a set of any size is shuffled without holding its permutation.
"""

from __future__ import annotations

import numpy as np

_ROUNDS = 6


def scramble(values: np.ndarray) -> np.ndarray:
    """A fixed bijection of uint64 that spreads every input bit over all output bits.

    Source: the finalizer of splitmix64; Steele, Lea and Flood, Fast splittable pseudorandom number
        generators, OOPSLA 2014.
    """
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = values ^ (values >> np.uint64(31))
    return mixed


def hashed(*keys: object) -> np.ndarray:
    """One uint64 per element of the broadcast integer keys; the order of the keys matters."""
    result = np.zeros(1, dtype=np.uint64)
    for key in keys:
        result = scramble(result ^ scramble(np.atleast_1d(np.asarray(key)).astype(np.uint64)))
    return result


def permuted(positions: np.ndarray, size: int, keys: np.ndarray) -> np.ndarray:
    """Where a keyed permutation of `range(size)` sends the positions.

    Args:
        positions: int64 in `[0, size)`.
        keys: uint64, one per position (or one for all): each key is a permutation of its own.

    Source: a Feistel network over the next power of four, walked until it lands inside the range;
    Black and Rogaway, Ciphers with arbitrary finite domains, CT-RSA 2002, section 3 (cycle
    walking).
    """
    half = np.uint64(max(1, (max(size - 1, 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    limit = np.uint64(size)
    values = np.asarray(positions).astype(np.uint64)
    keys = np.broadcast_to(keys, values.shape)
    outside = np.arange(len(values))
    while len(outside):
        left, right, key = values[outside] >> half, values[outside] & mask, keys[outside]
        for step in range(_ROUNDS):
            left, right = right, left ^ (scramble(right + (key ^ np.uint64(step << 56))) & mask)
        values[outside] = (left << half) | right
        outside = outside[values[outside] >= limit]
    return values.astype(np.int64)
