"""GPT-2's logits, loss and gradients equal those of Hugging Face transformers in float32."""

from pathlib import Path

import numpy as np
import pytest
from engines import one_rank
from golden import HEAD, TOKENS, check_gpt2, compare, load

LARGEST_FILE = 400_000  # bytes


@pytest.mark.parametrize(("data", "tensor"), [(1, 1), (3, 2)])
def test_gpt2_is_that_of_transformers(data: int, tensor: int) -> None:
    check_gpt2(one_rank({"data": data, "tensor": tensor}))


def test_the_golden_values_leave_nothing_out() -> None:
    golden = load()
    assert golden.weights.keys() == golden.gradients.keys()
    assert len(golden.weights) == 2 + 2 * 12 + 2 + 1
    assert golden.weights[HEAD] is golden.weights[TOKENS]
    for name, weight in golden.weights.items():
        assert weight.dtype == np.float32, name
        assert weight.std() > 0.05, f"{name} is not random"
        assert golden.gradients[name].any(), name
    assert (golden.targets < 0).any()
    file = Path(__file__).parents[1] / "golden" / "gpt2.npz"
    assert file.stat().st_size < LARGEST_FILE


def test_a_wrong_value_is_seen() -> None:
    logits = load().logits
    wrong = logits.copy()
    wrong[1, 2, 3] += 2e-4 * np.abs(logits).max()
    with pytest.raises(AssertionError, match="logits is off by"):
        compare("logits", wrong, logits)
