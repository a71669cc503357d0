"""Arrays of other libraries given to a collective: taken without a copy, and given back as they
came."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from plait import backend
from plait.comm.after import Norm, Normed
from plait.comm.work import Work

Given = ParamSpec("Given")
Result = TypeVar("Result")


def foreign(x: object) -> bool:
    """Whether x is an array of another library than those of the backends."""
    return backend.is_foreign(x) and not backend.on_device(x)


def bordered(function: Callable[Given, Result]) -> Callable[Given, Result]:
    """The function, on arrays of any library that knows DLPack (torch, JAX): where it returns one
    of its arguments, that is the array that was given; other results are numpy's or CuPy's.

    The other library has streams of its own: with its arrays on a device, a result is complete.
    """

    @wraps(function)
    def call(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        if not any(map(foreign, args)) and not any(map(holds_foreign, kwargs.values())):
            return function(*args, **kwargs)
        border = _Border()
        result: Any = function(
            *map(border.take, args), **{key: border.take(x) for key, x in kwargs.items()}
        )
        if isinstance(result, Work):
            result.then(border.give)
        else:
            result = border.give(result)
        given: Result = result
        return given

    return call


def holds_foreign(x: object) -> bool:
    if isinstance(x, (dict, Norm)):
        return any(map(foreign, x.arrays if isinstance(x, Norm) else x.values()))
    return foreign(x)


class _Border:
    def __init__(self) -> None:
        self._taken: list[tuple[Any, Any]] = []

    def take(self, x: Any) -> Any:
        if isinstance(x, dict):
            return {key: self.take(each) for key, each in x.items()}
        if isinstance(x, Norm):
            return Norm(*map(self.take, x))
        if not foreign(x):
            return x
        self._taken.append((backend.from_dlpack(x), x))
        return self._taken[-1][0]

    def give(self, result: Any) -> Any:
        if any(backend.on_device(own) for own, _ in self._taken):
            backend.wait()
            backend.synchronize()
        if isinstance(result, Normed):
            return result._replace(stream=self._given(result.stream))
        return self._given(result)

    def _given(self, result: Any) -> Any:
        return next((given for own, given in self._taken if own is result), result)
