"""Arrays in and out: NumPy, torch, CuPy, and whatever else speaks DLPack, never copied.

An operator sees an array as a `_core.Array`. What it returns has the kind of its first argument
(`Kind.of`): NumPy array, torch tensor, CuPy array; for any other kind, NumPy arrays.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from . import _core

_TORCH_DTYPES = {"f32": "float32", "bf16": "bfloat16", "f16": "float16", "u8": "uint8"}
_NUMPY_DTYPES = {"f32": np.float32, "f16": np.float16, "u8": np.uint8}


def is_torch(array: Any) -> bool:
    torch = sys.modules.get("torch")  # an array of torch's exists only if torch was imported
    return torch is not None and isinstance(array, torch.Tensor)


def is_cupy(array: Any) -> bool:
    cupy = sys.modules.get("cupy")
    return cupy is not None and isinstance(array, cupy.ndarray)


def _exported(op: str, name: str, array: Any) -> tuple[Any, bool]:
    """What DLPack is asked of, and whether its uint16 elements are bfloat16."""
    if isinstance(array, np.ndarray):
        if array.dtype.name == "bfloat16":  # of ml_dtypes; NumPy has none and exports none
            return array.view(np.uint16), True
        return array, False
    if is_torch(array):
        import torch

        if array.requires_grad:
            if torch.is_grad_enabled():
                raise ValueError(
                    f"{op}: {name} requires grad, but there is no backward pass; "
                    "call under torch.no_grad() or torch.inference_mode()"
                )
            array = array.detach()
        if array.is_cuda:
            # stream=-1: no synchronisation; the work is enqueued on torch's current stream.
            with torch.cuda.device(array.device):
                return array.__dlpack__(stream=-1), False
    elif is_cupy(array):
        return array.__dlpack__(stream=-1), False
    return array, False


def view(op: str, name: str, array: Any, writable: bool = False) -> _core.Array:
    """The array as C++ sees it; TypeError or ValueError naming `op` and `name` if it cannot be."""
    exported, is_bf16 = _exported(op, name, array)
    return _core.Array(f"{op}: {name}", exported, writable=writable, is_bf16=is_bf16)


def optional_view(op: str, name: str, array: Any) -> _core.Array | None:
    return None if array is None else view(op, name, array)


def as_f32(array: Any) -> Any:
    """A small parameter (bias, norm weight) in float32; the same object if it already is."""
    if is_torch(array):
        return array.detach().float()
    if is_cupy(array):
        return array.astype(np.float32, copy=False)
    if isinstance(array, np.ndarray):
        return np.ascontiguousarray(array, dtype=np.float32)
    return array


def to_numpy(array: Any) -> np.ndarray:
    """On the host; a copy only if the array lies elsewhere."""
    if is_torch(array):
        return array.detach().cpu().numpy()
    if is_cupy(array):
        return array.get()
    if hasattr(array, "__dlpack__") and not isinstance(array, np.ndarray):
        return np.from_dlpack(array)
    return np.asarray(array)


def stream_of(array: Any, seen: _core.Array) -> int:
    """The CUDA stream that array's framework computes on now; 0 for host arrays."""
    if not seen.is_cuda:
        return 0
    if is_torch(array):
        import torch

        return torch.cuda.current_stream(array.device).cuda_stream
    if is_cupy(array):
        import cupy

        return cupy.cuda.get_current_stream().ptr
    return 0


def is_capturing(stream: int) -> bool:
    """Whether torch records what is enqueued on `stream`, its current one, into a CUDA graph."""
    torch = sys.modules.get("torch")
    return stream != 0 and torch is not None and torch.cuda.is_current_stream_capturing()


def refuse_while_capturing(op: str, what: str, stream: int) -> None:
    """`what` says what cannot be done then."""
    if is_capturing(stream):
        raise RuntimeError(
            f"{op}: {what} while a CUDA graph captures stream {stream:#x}; make the same calls on "
            "that stream once before the capture"
        )


def as_rows(matrix: Any, dtype: str) -> Any:
    """A device matrix rounded to `dtype`, its rows of stride 1, by its own framework, if that is
    torch or CuPy; the same object if it is so already."""
    if is_torch(matrix):
        import torch

        matrix = matrix.to(getattr(torch, _TORCH_DTYPES[dtype]))
        return matrix if matrix.stride(1) == 1 else matrix.contiguous()
    if is_cupy(matrix) and dtype in _NUMPY_DTYPES:
        matrix = matrix.astype(_NUMPY_DTYPES[dtype], copy=False)
        return matrix if matrix.strides[1] == matrix.itemsize else matrix.copy(order="C")
    return matrix


class Kind:
    """Makes arrays like a given one: same framework, same device."""

    def __init__(self, op: str, array: Any, seen: _core.Array):
        self._op, self._array, self._seen = op, array, seen

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Any:
        return self.full(shape, dtype, 0)

    def full(self, shape: tuple[int, ...], dtype: str, value: float) -> Any:
        made = self.empty(shape, dtype)
        if is_torch(made):
            made.fill_(value)
        else:
            made[...] = value
        return made

    def empty(self, shape: tuple[int, ...], dtype: str) -> Any:
        if is_torch(self._array):
            import torch

            torch_dtype = getattr(torch, _TORCH_DTYPES[dtype])
            return torch.empty(shape, dtype=torch_dtype, device=self._array.device)
        if is_cupy(self._array):
            import cupy

            return cupy.empty(shape, dtype=self._numpy_dtype(dtype))
        if self._seen.is_cuda:
            raise NotImplementedError(
                f"{self._op}: cannot make a CUDA array of type {type(self._array).__name__}; "
                "give `out` (and pass torch or CuPy arrays for further results)"
            )
        return np.empty(shape, dtype=self._numpy_dtype(dtype))

    def from_numpy(self, array: np.ndarray) -> Any:
        """A host array as this kind, on this device."""
        if is_torch(self._array):
            import torch

            return torch.from_numpy(array).to(self._array.device)
        if is_cupy(self._array):
            import cupy

            return cupy.asarray(array)
        return array

    def _numpy_dtype(self, dtype: str) -> Any:
        if dtype == "bf16":
            return bfloat16(self._op)
        return _NUMPY_DTYPES[dtype]


def bfloat16(op: str) -> Any:
    """The NumPy dtype of ml_dtypes; NumPy itself has no bfloat16."""
    try:
        import ml_dtypes
    except ImportError:
        raise NotImplementedError(
            f"{op}: NumPy has no bfloat16; install ml_dtypes, or pass torch tensors"
        ) from None
    return np.dtype(ml_dtypes.bfloat16)
