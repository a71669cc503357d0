"""The finaliser of splitmix64 (Steele, Lea and Flood, 2014): integers to well mixed integers."""

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]
MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15


def mix(x: int) -> int:
    """A bijection of [0, 2**64); other integers are taken modulo 2**64."""
    x &= MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def mix_array(values: Words, key: int) -> Words:
    """mix(value + key) of each value."""
    x = values + np.uint64(key & MASK)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
