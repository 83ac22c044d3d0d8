"""What the tests on a GPU share; they are skipped where there is none, or no torch."""

import pytest

import flashomni as fo

torch = pytest.importorskip("torch", reason="torch is not installed")
if not torch.cuda.is_available():
    pytest.skip("torch sees no GPU", allow_module_level=True)
for info in fo.backends():
    if info.name == "cuda" and not info.available:
        pytest.skip(f"the cuda backend cannot run: {info.detail}", allow_module_level=True)
if "cuda" not in [info.name for info in fo.backends()]:
    pytest.skip("this build has no CUDA backend", allow_module_level=True)

BF16, F16 = ("cuda", "bfloat16"), ("cuda", "float16")
LONG = 200_000_000  # clocks: a GPU at 2 GHz is busy for 0.1 s
