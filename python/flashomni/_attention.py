"""Block-sparse attention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from . import _core, _plans
from ._backend import Backend
from ._call import Call, taylor
from ._symbols import Symbols


def attention(
    q: Any,
    k: Any,
    v: Any,
    symbols: Symbols | None = None,
    scale: float | None = None,
    out: Any = None,
    return_lse: bool = False,
    *,
    reuse: Sequence[Any] | None = None,
    steps_since_update: float = 1,
    backend: Backend | None = None,
) -> Any:
    """softmax(scale q k^T) v over the live blocks of `symbols`, normalised over the kept keys.

    q         [batch, seq_len, num_heads, head_dim] float32, bfloat16 or float16
    k, v      [batch, kv_len, num_kv_heads, head_dim], dtype and device of q; num_heads is a
              multiple of num_kv_heads
    symbols   None: everything is computed
    scale     of the logits; None = head_dim ** -0.5
    out       like q: written and returned; rows of cached blocks, and rows past an item's length,
              keep what they hold. None: new memory, where such rows are 0
    reuse     one to three arrays like q, all float32 or all in q's dtype: what `out` was at an
              update, and its finite differences. Rows of cached blocks then become
              sum over n of k^n / n! reuse[n], k = steps_since_update, while the others are computed
    returns   out; with return_lse (out, lse), lse [batch, num_heads, seq_len] float32 in natural
              log, NaN in rows that were not computed. A computed row without a key block has
              out = 0, lse = -inf
    Raises ValueError naming the argument that does not fit, NotImplementedError if the backend has
    no kernel for the dtype or head_dim, or there is no backend for the device.
    """
    call = Call("attention", "q", q, 4, backend)
    k_view, v_view = call.view("k", k, 4), call.view("v", v, 4)
    batch, seq_len, num_heads, head_dim = call.first.shape
    num_kv_tokens = k_view.shape[1]
    if out is None:
        out = call.new_output(call.first.shape, all_written=symbols is None)
    if symbols is None:
        symbols = _plans.dense(batch, num_heads, seq_len, num_kv_tokens)
    given = () if reuse is None else reuse
    terms = [call.view(f"reuse[{n}]", term, 4) for n, term in enumerate(given)]
    lse = call.kind.full((batch, num_heads, seq_len), "f32", math.nan) if return_lse else None
    _core.attention(
        call.backend._core,
        _plans.attention_plan(symbols, seq_len, num_kv_tokens, call.backend, call.stream),
        call.first,
        k_view,
        v_view,
        head_dim**-0.5 if scale is None else scale,
        call.writable("out", out),
        call.optional_writable("lse", lse),
        _core.AttentionReuse(terms, taylor(len(terms), steps_since_update)),
        call.stream,
    )
    return (out, lse) if return_lse else out
