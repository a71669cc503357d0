"""What every stage knows of the parameters of all stages."""

from __future__ import annotations

from dataclasses import dataclass

from plait.ops.parameter import Init, Parameter


@dataclass(frozen=True)
class Declared:
    """A parameter without its values."""

    name: str
    shape: tuple[int, ...]
    true_rows: int | None
    init: Init
    tied_to: str | None

    @staticmethod
    def of(p: Parameter) -> Declared:
        return Declared(p.name, p.shape, p.true_rows, p.init, p.tied_to)


def checked(stages: list[list[Declared]]) -> list[list[Declared]]:
    """The same. Raises ValueError for a name that comes twice, and for ties that cannot be."""
    by_name: dict[str, Declared] = {}
    for p in (p for names in stages for p in names):
        if p.name in by_name:
            raise ValueError(
                f"two parameters are named {p.name}: give layers names of their own (LayerSpec, "
                "build.at), and let a layer appear in one place only"
            )
        by_name[p.name] = p
    for p in by_name.values():
        if p.tied_to is None:
            continue
        original = by_name.get(p.tied_to)
        if original is None:
            raise ValueError(f"{p.name} is tied to {p.tied_to}, which no layer has")
        if original.tied_to is not None:
            raise ValueError(
                f"{p.name} is tied to {p.tied_to}, which is tied itself: tie it to "
                f"{original.tied_to}"
            )
        if (p.shape, p.true_rows) != (original.shape, original.true_rows):
            raise ValueError(
                f"{p.name} {p.shape} is tied to {p.tied_to} {original.shape}: both need one shape"
            )
    return stages
