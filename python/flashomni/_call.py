"""What every operator does before it computes: views, backend, stream, outputs."""

from __future__ import annotations

import math
from typing import Any

from . import _arrays, _core
from ._backend import Backend, backend_for


def taylor(num_terms: int, steps: float) -> list[float]:
    """What a forecast multiplies its terms by: steps^n / n!."""
    return [steps**n / math.factorial(n) for n in range(num_terms)]


class Call:
    """One call of an operator. Its first argument decides the default backend, the stream, and the
    kind of array that is returned."""

    def __init__(self, op: str, name: str, first: Any, rank: int, backend: Backend | None):
        self.op = op
        self.first = self.view(name, first, rank)
        if self.first.dtype not in ("f32", "bf16", "f16"):
            raise ValueError(f"{op}: {name} is {self.first.dtype}, expected f32, bf16 or f16")
        self.stream = _arrays.stream_of(first, self.first)
        self.kind = _arrays.Kind(op, first, self.first)
        self.backend = backend or backend_for(op, self.first, self.stream)

    def view(self, name: str, array: Any, rank: int | None = None) -> _core.Array:
        seen = _arrays.view(self.op, name, array)
        if rank is not None and len(seen.shape) != rank:
            raise ValueError(f"{self.op}: {name} has {len(seen.shape)} axes, need {rank}")
        return seen

    def optional(self, name: str, array: Any) -> _core.Array | None:
        return None if array is None else self.view(name, array)

    def parameter(self, name: str, array: Any) -> _core.Array | None:
        """A bias or norm weight, which backends want in float32."""
        return None if array is None else self.view(name, _arrays.as_f32(array))

    def optional_writable(self, name: str, array: Any) -> _core.Array | None:
        return None if array is None else self.writable(name, array)

    def writable(self, name: str, array: Any) -> _core.Array:
        return _arrays.view(self.op, name, array, writable=True)

    def new_output(self, shape: tuple[int, ...], all_written: bool) -> Any:
        """Memory in the dtype of the first argument; 0 where the operator leaves it alone."""
        make = self.kind.empty if all_written else self.kind.zeros
        return make(shape, self.first.dtype)
