"""Arrays of every kind, and tolerances."""

import importlib.util

import numpy as np
import pytest

HAS_TORCH = importlib.util.find_spec("torch") is not None
HAS_ML_DTYPES = importlib.util.find_spec("ml_dtypes") is not None
needs_torch = pytest.mark.skipif(not HAS_TORCH, reason="torch is not installed")
needs_ml_dtypes = pytest.mark.skipif(not HAS_ML_DTYPES, reason="ml_dtypes is not installed")

# (framework, dtype) of the arrays that operators are tested with
KINDS = [
    pytest.param(("numpy", "float32"), id="numpy-f32"),
    pytest.param(("numpy", "float16"), id="numpy-f16"),
    pytest.param(("numpy", "bfloat16"), id="numpy-bf16", marks=needs_ml_dtypes),
    pytest.param(("torch", "float32"), id="torch-f32", marks=needs_torch),
    pytest.param(("torch", "bfloat16"), id="torch-bf16", marks=needs_torch),
]

EPSILON = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}


def make(values, kind):
    """`values` (float) rounded to an array of `kind`; "cuda" is torch on a GPU."""
    framework, dtype = kind
    if framework in ("torch", "cuda"):
        import torch

        device = "cpu" if framework == "torch" else "cuda"
        return torch.tensor(np.asarray(values, np.float32)).to(device, getattr(torch, dtype))
    if dtype == "bfloat16":
        import ml_dtypes

        return np.asarray(values, np.float32).astype(ml_dtypes.bfloat16)
    return np.asarray(values).astype(dtype)


def numbers(array):
    """Any array in float64."""
    if HAS_TORCH:
        import torch

        if isinstance(array, torch.Tensor):
            return array.detach().double().cpu().numpy()
    return np.asarray(array).astype(np.float64)


def same_kind(array, kind):
    framework, dtype = kind
    if framework in ("torch", "cuda"):
        import torch

        on_gpu = framework == "cuda"
        is_torch = isinstance(array, torch.Tensor) and array.is_cuda == on_gpu
        return is_torch and array.dtype == getattr(torch, dtype)
    return isinstance(array, np.ndarray) and array.dtype.name == dtype


def attention_tolerance(q, k, v, dtype, scale=None):
    """Operands are exact; what differs is fp32 arithmetic of logits and sums, the rounding of the
    weights to the operands' dtype before the second product, and the rounding of the result."""
    q, k, v = numbers(q), numbers(k), numbers(v)
    head_dim, num_keys = q.shape[3], k.shape[1]
    scale = head_dim**-0.5 if scale is None else scale
    largest_logit = abs(scale) * np.linalg.norm(q, axis=3).max() * np.linalg.norm(k, axis=3).max()
    of_weights = (head_dim + 8) * EPSILON["float32"] * largest_logit + EPSILON[dtype]
    of_sums = num_keys * EPSILON["float32"]
    return np.abs(v).max() * (2 * of_weights + of_sums + EPSILON[dtype])


def gemm_tolerance(x, w, dtype):
    """fp32 sums of exact products, then one rounding."""
    x, w = numbers(x), numbers(w)
    largest = (np.abs(x) @ np.abs(w).T).max()
    return largest * (x.shape[-1] * EPSILON["float32"] + EPSILON[dtype])


def expect_close(actual, expected, tolerance, ignore=None):
    actual, expected = numbers(actual), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    difference = np.abs(actual - expected)
    if ignore is not None:
        difference = np.where(ignore, 0, difference)
    worst = np.unravel_index(np.argmax(difference), difference.shape)
    assert not np.isnan(difference).any() and difference[worst] <= tolerance, (
        f"at {worst}: {actual[worst]} instead of {expected[worst]}, tolerance {tolerance}"
    )
