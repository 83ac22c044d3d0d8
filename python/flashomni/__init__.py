"""FlashOmni: sparse attention for diffusion transformers, on NumPy arrays and torch tensors.

    import flashomni as fo
    symbols = fo.Symbols.from_masks(cache, skip, block_q=64, block_kv=64)
    out = fo.attention(q, k, v, symbols)

Arrays are taken through DLPack without a copy; results are of the first argument's kind, on its
device. bfloat16: torch tensors, or NumPy arrays with the dtype of the package ml_dtypes.
The GIL is released while an operator computes.
"""

from ._attention import attention
from ._backend import Backend, BackendInfo, backends
from ._core import SymbolStats, __version__
from ._gemm import BiasCache, Weight, gemm_o_dispatch, gemm_o_update, gemm_q
from ._generate import Pipeline, generate
from ._policy import PolicyResult, policy
from ._symbols import OfficialSymbols, Symbols

__all__ = [
    "Backend",
    "BackendInfo",
    "BiasCache",
    "OfficialSymbols",
    "Pipeline",
    "PolicyResult",
    "SymbolStats",
    "Symbols",
    "Weight",
    "__version__",
    "attention",
    "backends",
    "gemm_o_dispatch",
    "gemm_o_update",
    "gemm_q",
    "generate",
    "policy",
]
