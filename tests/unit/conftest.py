"""The backend whose kernels a test asks for."""

from typing import Any

import kernel_backends
import pytest


@pytest.fixture(params=kernel_backends.BACKENDS)
def kernels(request: pytest.FixtureRequest) -> Any:
    return kernel_backends.kernels(request.param)
