"""Which samples a step trains on: an epoch is a keyed Feistel permutation of [0, samples).

Integer arithmetic on (seed, epoch, position) and nothing else: no index array and no state, so
any rank can ask for any slice of any step, and a resumed run neither repeats nor skips a sample.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from plait.data.mixing import GOLDEN, Words, mix, mix_array

Indices = npt.NDArray[np.int64]

_ROUNDS = 8


@dataclass(frozen=True)
class Sampler:
    """Global sample number step * batch + i runs through epochs one after another.

    samples: in the dataset; batch: samples a step over all replicas; seed: of the order, modulo
    2**64.
    A batch may straddle epochs. Raises ValueError if samples or batch is below 1.
    """

    samples: int
    batch: int
    seed: int = 0

    def __post_init__(self) -> None:
        for key, value in (("samples", self.samples), ("batch", self.batch)):
            if value < 1:
                raise ValueError(f"{key} = {value}: a sampler needs at least 1")

    def indices(self, step: int, start: int = 0, stop: int | None = None) -> Indices:
        """Dataset indices of samples start..stop of the step (its whole batch if left out)."""
        stop = self.batch if stop is None else stop
        if step < 0 or not 0 <= start <= stop <= self.batch:
            raise ValueError(
                f"step {step}, samples {start}..{stop}: not in a batch of {self.batch}"
            )
        out = np.empty(stop - start, np.int64)
        first = step * self.batch + start
        filled = 0
        while filled < len(out):
            epoch, position = divmod(first + filled, self.samples)
            count = min(len(out) - filled, self.samples - position)
            positions = np.arange(position, position + count, dtype=np.uint64)
            out[filled : filled + count] = permute(positions, self.samples, self.seed, epoch)
            filled += count
        return out


def permute(positions: Words, n: int, seed: int, epoch: int) -> Indices:
    """Where the permutation of [0, n) keyed by (seed, epoch) sends each position (uint64, < n).

    The network permutes the next power of two; what falls outside [0, n) walks on along its
    cycle until it is inside (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002).
    Less than half of the domain is outside, so a walk has two steps on average at most.
    """
    bits = (n - 1).bit_length()
    keys = _round_keys(seed, epoch)
    values = _network(positions, bits, keys)
    outside = np.flatnonzero(values >= n)
    while outside.size:
        walked = _network(values[outside], bits, keys)
        values[outside] = walked
        outside = outside[walked >= n]
    return values.astype(np.int64)


def _round_keys(seed: int, epoch: int) -> list[int]:
    state = mix(mix(seed) + epoch)
    return [mix(state + (number + 1) * GOLDEN) for number in range(_ROUNDS)]


def _network(values: Words, bits: int, keys: list[int]) -> Words:
    """A Feistel network on `bits` bits; the halves differ by one bit where bits is odd."""
    low_bits = np.uint64(bits // 2)
    low_mask = np.uint64((1 << (bits // 2)) - 1)
    high_mask = np.uint64((1 << (bits - bits // 2)) - 1)
    low, high = values & low_mask, values >> low_bits
    for number, key in enumerate(keys):
        if number % 2 == 0:
            high = high ^ (mix_array(low, key) & high_mask)
        else:
            low = low ^ (mix_array(high, key) & low_mask)
    return (high << low_bits) | low
