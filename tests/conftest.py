"""--long: also what takes minutes (`make test-long`). --cuda: tests of csrc/cuda, no others, on a
GPU or on fibers (`make test-cuda`). The slowest multi-rank cases are told at the end."""

from typing import Any

import pytest

SECONDS = pytest.StashKey[dict[str, float]]()  # of multi-rank cases


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="also run what takes minutes")
    parser.addoption("--cuda", action="store_true", help="run the tests of CUDA kernels, no others")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "long: takes minutes; runs only with --long")
    config.addinivalue_line("markers", "cuda: a test of CUDA kernels; runs only with --cuda")
    config.stash[SECONDS] = {}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    seconds = terminalreporter.config.stash[SECONDS]
    if seconds:
        slow = sorted(seconds, key=lambda name: -seconds[name])[:12]
        told = ", ".join(f"{name} {seconds[name]:.0f} s" for name in slow)
        terminalreporter.write_line(f"cases take {sum(seconds.values()):.0f} s, most: {told}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    cuda, long = config.getoption("--cuda"), config.getoption("--long")
    chosen = [
        item
        for item in items
        if (item.get_closest_marker("cuda") is not None) == cuda
        and (long or item.get_closest_marker("long") is None)
    ]
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = chosen


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def kernels(request: pytest.FixtureRequest) -> Any:
    """The kernels of a backend (tests/unit/kernel_backends.py)."""
    import kernel_backends

    return kernel_backends.kernels(request.param)
