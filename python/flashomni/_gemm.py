"""The two sparse projections around attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from . import _arrays, _core, _plans
from ._backend import Backend
from ._call import Call, taylor
from ._symbols import Symbols

_DTYPES = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}


class Weight:
    """A weight matrix packed once, in the order a backend's kernels read. Operators also take plain
    arrays, and then pack them in every call. The CUDA backend reads a GPU array of the dtype asked
    for as it lies: the weight is then no copy, and changes with the array.

    w          [out_features, in_features] float32, bfloat16 or float16
    num_heads  of gemm_q's output; None for gemm_o_update and gemm_o_dispatch
    dtype      "float32", "bfloat16" or "float16": what it is rounded to, which is the dtype of the
               operators that use it; None = that of w
    backend    that will use it; None = the default for w's device
    Raises ValueError if num_heads does not divide out_features.
    """

    def __init__(
        self,
        w: Any,
        num_heads: int | None = None,
        dtype: str | None = None,
        backend: Backend | None = None,
    ):
        call = Call("Weight", "w", w, 2, backend)
        code = call.first.dtype if dtype is None else _dtype_code("Weight", "dtype", dtype)
        self._backend = call.backend
        self._core = _pack(call, w, num_heads, code)

    @property
    def shape(self) -> tuple[int, int]:
        return self._core.out_features, self._core.in_features


def _dtype_code(op: str, name: str, dtype: str) -> str:
    if dtype not in _DTYPES:
        raise ValueError(f"{op}: {name} is {dtype!r}, allowed are {', '.join(_DTYPES)}")
    return _DTYPES[dtype]


def _pack(call: Call, w: Any, num_heads: int | None, dtype: str) -> _core.Weight:
    seen = call.view("w", w, 2)
    if seen.dtype not in _DTYPES.values():
        raise ValueError(f"{call.op}: w is {seen.dtype}, expected f32, bf16 or f16")
    if seen.is_cuda and (rows := _arrays.as_rows(w, dtype)) is not w:
        seen = call.view("w", rows)
    out_features = seen.shape[0]
    if num_heads is not None and (num_heads < 1 or out_features % num_heads):
        raise ValueError(
            f"{call.op}: w has {out_features} output features, no multiple of {num_heads} heads"
        )
    column_group = 0 if num_heads is None else out_features // num_heads
    dtype_code = getattr(_core.DType, dtype)
    return _core.Weight(call.backend._core, seen, dtype_code, column_group, call.stream)


def _packed(call: Call, w: Any, num_heads: int | None) -> _core.Weight:
    if not isinstance(w, Weight):
        seen = call.view("w", w, 2)
        if call.first.is_cuda and not seen.is_cuda:
            raise ValueError(
                f"{call.op}: w is on cpu, expected cuda:{call.first.device_index}; fo.Weight(w, "
                "backend=...) brings a weight of host memory to the GPU once"
            )
        return _pack(call, w, num_heads, call.first.dtype)
    if not w._backend._shares_memory_with(call.backend):
        raise ValueError(
            f"{call.op}: w was packed for another backend, {w._backend.name} instead of "
            f"{call.backend.name}"
        )
    return w._core


def gemm_q(
    x: Any,
    w: Any,
    symbols: Symbols | None = None,
    bias: Any = None,
    out: Any = None,
    *,
    text_offset: int = 0,
    num_heads: int | None = None,
    norm_weight: Any = None,
    eps: float = 1e-6,
    cos: Any = None,
    sin: Any = None,
    backend: Backend | None = None,
) -> Any:
    """x w^T + bias where `symbols` compute a (row block, head); the rest is left alone.

    x         [batch, num_rows, in_features] float32, bfloat16 or float16
    w         [num_heads * head_dim, in_features], an array (rounded to x's dtype) or a Weight
    symbols   None: everything is computed
    bias      [num_heads * head_dim]
    out       [batch, num_rows, num_heads * head_dim] in x's dtype: written and returned; what is
              not computed keeps its value. None: new memory, where it is 0
    text_offset  the token of the sequence that row 0 of x is. With symbols made without
              text_tokens, the tokens before it are text that comes first
    num_heads    needed without symbols, if w is an array and the norm or embedding is used
    norm_weight, eps   RMS norm over head_dim, weight [head_dim]; None = no norm
    cos, sin     [num_rows, head_dim / 2] float32: rotary embedding of the pairs (2i, 2i + 1), after
              the norm; None = none
    Raises ValueError naming the argument that does not fit.
    """
    call = Call("gemm_q", "x", x, 3, backend)
    batch, num_rows, _ = call.first.shape
    all_written = symbols is None
    if symbols is None:
        if num_heads is None:
            num_heads = _heads_of(w)
        symbols = _plans.dense(batch, num_heads, text_offset + num_rows, 1)
    elif num_heads not in (None, symbols.num_heads):
        raise ValueError(f"gemm_q: num_heads is {num_heads}, symbols have {symbols.num_heads}")
    weight = _packed(call, w, symbols.num_heads)
    if out is None:
        out = call.new_output((batch, num_rows, weight.out_features), all_written)
    plan, _ = _plans.gemm_plan("gemm_q", symbols, num_rows, text_offset, call.backend, call.stream)
    epilogue = _core.NormRope(
        call.parameter("norm_weight", norm_weight),
        eps,
        call.optional("cos", cos),
        call.optional("sin", sin),
    )
    _core.gemm_q(
        call.backend._core,
        plan,
        call.first,
        weight,
        call.parameter("bias", bias),
        epilogue,
        call.writable("out", out),
        call.stream,
    )
    return out


def _heads_of(w: Any) -> int:
    if isinstance(w, Weight) and w._core.column_group:
        return w._core.out_features // w._core.column_group
    return 1


class BiasCache:
    """What an update of the output projection remembers for the dispatch steps after it.

    terms        order + 1 arrays [batch, num_rows, out_features], all float32 or, on CUDA, all in
                 the dtype of the operator: B_c, the projection of the cached heads plus the bias,
                 and its finite differences. Sums and differences are formed in fp32 either way
    symbols      of the update
    valid_order  [batch, q_blocks] uint8: the highest order usable in a row block, 0 where its
                 symbols changed at the last update; None = 0 everywhere
    gemm_o_update makes one; the constructor is for terms that come from elsewhere.
    """

    def __init__(self, terms: Sequence[Any], symbols: Symbols, valid_order: Any = None):
        self.terms = list(terms)
        self.symbols = symbols
        self.valid_order = valid_order
        self._version = symbols._version

    @property
    def order(self) -> int:
        return len(self.terms) - 1

    def _symbols_of_update(self, op: str) -> Symbols:
        if self.symbols._version != self._version:
            raise ValueError(
                f"{op}: the symbols of bias_cache were renewed by policy since its update; renew "
                "others, two Symbols in turn"
            )
        return self.symbols

    def _updated(self, symbols: Symbols) -> None:
        self.symbols, self._version = symbols, symbols._version

    def _view(self, call: Call, q_blocks: int) -> _core.BiasCacheView:
        if self.valid_order is None:
            self.valid_order = call.kind.zeros((self.symbols.batch, q_blocks), "u8")
        return _core.BiasCacheView(
            [call.writable(f"terms[{o}]", term) for o, term in enumerate(self.terms)],
            call.writable("valid_order", self.valid_order),
        )


def gemm_o_update(
    o: Any,
    w: Any,
    symbols: Symbols,
    bias: Any = None,
    mlp: Any = None,
    bias_cache: BiasCache | None = None,
    order: int = 0,
    steps_since_update: float = 1,
    out: Any = None,
    *,
    residual: Any = None,
    gate: Any = None,
    text_offset: int = 0,
    bias_cache_dtype: str | None = None,
    backend: Backend | None = None,
) -> tuple[Any, BiasCache]:
    """The output projection of an update step: everything is computed, and what the cached heads
    contribute is remembered.

    o         [batch, num_rows, num_heads * head_dim] float32, bfloat16 or float16
    w         [out_features, num_heads * head_dim (+ mlp_dim)], an array (rounded to o's dtype) or a
              Weight
    bias      [out_features]
    mlp       [batch, num_rows, mlp_dim], the second operand of a single-stream block; never enters
              the bias cache
    bias_cache   of the update before, renewed in place; None = a new one of `order` (0 to 2)
    steps_since_update   between that update and this one
    out       [batch, num_rows, out_features] in o's dtype; rows past an item's length keep their
              value. None: new memory, where they are 0
    residual  [batch, num_rows, out_features] float32, instead of out: the result is added to it,
              not rounded before
    gate      [out_features], multiplies what is added to residual; None = 1
    text_offset  as in gemm_q
    bias_cache_dtype   of a new bias cache: "float32" (None), or on CUDA also the name of o's dtype,
              which halves what a dispatch step reads of it
    returns   out or residual, bias_cache
    Raises ValueError naming the argument that does not fit.
    """
    call = Call("gemm_o_update", "o", o, 3, backend)
    weight = _packed(call, w, None)
    previous = None if bias_cache is None else bias_cache._symbols_of_update(call.op)
    plan, q_blocks = _plans.gemm_plan(
        call.op, symbols, call.first.shape[1], text_offset, call.backend, call.stream, previous
    )
    shape = (*call.first.shape[:2], weight.out_features)
    if bias_cache is None:
        if order not in (0, 1, 2):
            raise ValueError(f"gemm_o_update: order is {order}, allowed are 0, 1 and 2")
        term = _dtype_code(call.op, "bias_cache_dtype", bias_cache_dtype or "float32")
        bias_cache = BiasCache([call.kind.zeros(shape, term) for _ in range(order + 1)], symbols)
    elif order not in (0, bias_cache.order):
        raise ValueError(f"gemm_o_update: order is {order}, bias_cache has {bias_cache.order}")
    elif bias_cache_dtype is not None:
        raise ValueError("gemm_o_update: bias_cache_dtype is given beside a bias_cache")
    if out is None and residual is None:
        out = call.new_output(shape, all_written=False)
    projection = _core.OutputProjection(
        weight,
        call.parameter("bias", bias),
        call.first,
        call.optional("mlp", mlp),
        call.optional_writable("out", out),
        call.optional_writable("residual", residual),
        call.parameter("gate", gate),
    )
    _core.gemm_o_update(
        call.backend._core,
        plan,
        projection,
        steps_since_update,
        bias_cache._view(call, q_blocks),
        call.stream,
    )
    bias_cache._updated(symbols)
    return out if residual is None else residual, bias_cache


def gemm_o_dispatch(
    o: Any,
    w: Any,
    bias_cache: BiasCache,
    mlp: Any = None,
    steps_since_update: float = 1,
    out: Any = None,
    *,
    residual: Any = None,
    gate: Any = None,
    text_offset: int = 0,
    backend: Backend | None = None,
) -> Any:
    """The output projection of a dispatch step: the live heads of bias_cache.symbols, and for the
    cached ones sum over n of k^n / n! terms[n], k = steps_since_update.

    Arguments as in gemm_o_update. `o` of cached heads is never read; there is no bias, because the
    bias cache contains it. Returns out, or residual.
    """
    call = Call("gemm_o_dispatch", "o", o, 3, backend)
    weight = _packed(call, w, None)
    symbols = bias_cache._symbols_of_update(call.op)
    plan, q_blocks = _plans.gemm_plan(
        call.op, symbols, call.first.shape[1], text_offset, call.backend, call.stream
    )
    if out is None and residual is None:
        out = call.new_output((*call.first.shape[:2], weight.out_features), all_written=False)
    projection = _core.OutputProjection(
        weight,
        None,
        call.first,
        call.optional("mlp", mlp),
        call.optional_writable("out", out),
        call.optional_writable("residual", residual),
        call.parameter("gate", gate),
    )
    _core.gemm_o_dispatch(
        call.backend._core,
        plan,
        projection,
        taylor(bias_cache.order + 1, steps_since_update),
        bias_cache._view(call, q_blocks),
        call.stream,
    )
    return out if residual is None else residual
