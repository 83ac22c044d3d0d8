"""The C++ interface of FlashOmni; use the package `flashomni` instead."""

from collections.abc import Sequence
import enum


class Array:
    """A DLPack array seen without a copy."""

    def __init__(self, name: str, object: object, *, writable: bool = False, is_bf16: bool = False) -> None:
        """
        `name` opens error messages. `is_bf16`: the elements, uint16 to DLPack, are bfloat16.
        """

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> str: ...

    @property
    def is_cuda(self) -> bool: ...

    @property
    def device_index(self) -> int: ...

class DType(enum.Enum):
    f32 = 0

    bf16 = 1

    f16 = 2

def list_backends() -> list[tuple[str, bool, str]]:
    """(name, available, detail) of every backend of this build."""

class Backend:
    def __init__(self, name: str, num_threads: int = 0, device_index: int = 0) -> None: ...

    @property
    def name(self) -> str: ...

    @property
    def description(self) -> str: ...

class Weight:
    """A weight matrix in a backend's own order."""

    def __init__(self, backend: Backend, weight: Array, dtype: DType, column_group: int) -> None: ...

    @property
    def out_features(self) -> int: ...

    @property
    def in_features(self) -> int: ...

    @property
    def column_group(self) -> int: ...

class BlockGrid:
    def __init__(self, block: int, batch: int, num_tokens: int, lengths: Sequence[int], text_tokens: int, text_position: str) -> None: ...

    @property
    def num_blocks(self) -> int: ...

class SparseSymbols:
    def __init__(self, q_grid: BlockGrid, kv_grid: BlockGrid, num_heads: int, cache: Array | None, skip: Array | None) -> None: ...

    @staticmethod
    def from_official(q_grid: BlockGrid, kv_grid: BlockGrid, num_heads: int, cache: bytes, skip: bytes, cache_indptr: Sequence[int], skip_indptr: Sequence[int]) -> SparseSymbols: ...

    def to_official(self) -> tuple[bytes, bytes, list[int], list[int]]: ...

    def to_masks(self, cache: Array, skip: Array) -> None: ...

    def stats(self) -> SymbolStats: ...

class SymbolStats:
    """What symbols leave to do; pairs are (query token, key token) pairs."""

    @property
    def q_blocks(self) -> int: ...

    @property
    def live_q_blocks(self) -> int: ...

    @property
    def block_pairs(self) -> int: ...

    @property
    def live_block_pairs(self) -> int: ...

    @property
    def pairs(self) -> int: ...

    @property
    def live_pairs(self) -> int: ...

    @property
    def live_fraction(self) -> float: ...

    @property
    def cached_fraction(self) -> float: ...

    @property
    def skipped_fraction(self) -> float: ...

    @property
    def density(self) -> float: ...

class AttentionPlan:
    def __init__(self, backend: Backend, symbols: SparseSymbols, stream: int) -> None: ...

class GemmPlan:
    def __init__(self, backend: Backend, symbols: SparseSymbols, first_token: int, num_tokens: int, previous: SparseSymbols | None, stream: int) -> None: ...

class NormRope:
    def __init__(self, norm_weight: Array | None, eps: float, cos: Array | None, sin: Array | None) -> None: ...

class OutputProjection:
    def __init__(self, weight: Weight, bias: Array | None, o: Array, mlp: Array | None, out: Array) -> None: ...

class BiasCacheView:
    def __init__(self, terms: Sequence[Array], valid_order: Array) -> None: ...

def attention(backend: Backend, plan: AttentionPlan, q: Array, k: Array, v: Array, scale: float, out: Array, lse: Array | None, stream: int) -> None: ...

def gemm_q(backend: Backend, plan: GemmPlan, x: Array, weight: Weight, bias: Array | None, epilogue: NormRope, out: Array, stream: int) -> None: ...

def gemm_o_update(backend: Backend, plan: GemmPlan, projection: OutputProjection, steps_since_update: float, cache: BiasCacheView, stream: int) -> None: ...

def gemm_o_dispatch(backend: Backend, plan: GemmPlan, projection: OutputProjection, coefficients: Sequence[float], cache: BiasCacheView, stream: int) -> None: ...

class FlashOmniOptions:
    def __init__(self) -> None: ...

    @property
    def tau_q(self) -> float: ...

    @tau_q.setter
    def tau_q(self, arg: float, /) -> None: ...

    @property
    def tau_kv(self) -> float: ...

    @tau_kv.setter
    def tau_kv(self, arg: float, /) -> None: ...

    @property
    def scope(self) -> str: ...

    @scope.setter
    def scope(self, arg: str, /) -> None: ...

    @property
    def sim_threshold(self) -> float | None: ...

    @sim_threshold.setter
    def sim_threshold(self, arg: float | None, /) -> None: ...

    @property
    def keep_text_kv(self) -> bool: ...

    @keep_text_kv.setter
    def keep_text_kv(self, arg: bool, /) -> None: ...

    @property
    def subtract_k_mean(self) -> bool: ...

    @subtract_k_mean.setter
    def subtract_k_mean(self, arg: bool, /) -> None: ...

    @property
    def log_count_bias(self) -> bool: ...

    @log_count_bias.setter
    def log_count_bias(self, arg: bool, /) -> None: ...

def policy(backend: Backend, options: FlashOmniOptions, q: Array, k: Array, symbols: SparseSymbols, stream: int) -> tuple[list[float], list[float]]: ...
