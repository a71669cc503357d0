"""The backend whose kernels a test asks for."""

from typing import Any

import kernel_backends
import pytest

BACKENDS = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


@pytest.fixture(params=BACKENDS)
def kernels(request: pytest.FixtureRequest) -> Any:
    return kernel_backends.kernels(request.param)
