"""CuPy's Stream for csrc/cuda on fibers, where arrays are numpy's: what it is told is done at once,
or kept for the graph that it becomes while it is captured (streams.hpp)."""

from __future__ import annotations

import itertools
from typing import Any

_numbers = itertools.count(1)  # 0 is the stream of those who take none
_free: list[int] = []  # each has working memory, which stays: numbers are used again


class Stream:
    def __init__(self, module: Any):
        self._module, self.ptr = module, _free.pop() if _free else next(_numbers)

    def __del__(self) -> None:
        _free.append(self.ptr)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def begin_capture(self) -> None:
        self._module.begin_capture(self.ptr)

    def end_capture(self) -> Any:
        return self._module.end_capture(self.ptr)
