"""From Q and K to symbols."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from . import _core
from ._backend import Backend
from ._call import Call
from ._symbols import Axes, Blocks, Symbols, _lengths


class PolicyResult(NamedTuple):
    """What `policy` selected, and the two scores behind the cached blocks."""

    symbols: Symbols
    c_score: Any  # float32 [batch, num_heads, q_blocks], 0 at text blocks
    g_score: Any  # the same


def policy(
    q: Any,
    k: Any,
    tau_q: float = 0.5,
    tau_kv: float = 0.05,
    block_q: int = 128,
    block_kv: int = 128,
    text_tokens: int = 0,
    text_position: str = "none",
    *,
    scope: str = "head",
    sim_threshold: float | None = None,
    keep_text_kv: bool = True,
    subtract_k_mean: bool = False,
    log_count_bias: bool = False,
    seq_len: Any = None,
    backend: Backend | None = None,
) -> PolicyResult:
    """The selection of arXiv:2509.25401: symbols for the layer whose Q and K these are.

    q         [batch, seq_len, num_heads, head_dim] float32, bfloat16 or float16, after norm and
              rotary embedding
    k         [batch, seq_len, num_kv_heads, head_dim]
    tau_q     share of the scores C and G that cached blocks may hold; <= 0: nothing is cached
    tau_kv    softmax mass that a row may lose with its skipped blocks; <= 0: nothing is skipped
    text_tokens, text_position, seq_len   as in Symbols.from_masks. Without text nothing is cached
    scope     "head", or "layer": one choice of cached blocks for all heads
    sim_threshold   blocks whose tokens are less similar than this are neither cached nor skipped;
              None = no such test
    keep_text_kv    never skip text columns
    subtract_k_mean, log_count_bias   pool K minus its mean over the tokens; give short blocks
              logits that reflect their number of tokens
    returns   (symbols, c_score, g_score); the scores are those before any sum over heads
    Raises ValueError naming the argument that does not fit.
    """
    call = Call("policy", "q", q, 4, backend)
    k_view = call.view("k", k, 4)
    batch, num_tokens, num_heads, head_dim = call.first.shape
    _check_k(call, k_view)
    options = _core.FlashOmniOptions()
    options.tau_q, options.tau_kv, options.scope = tau_q, tau_kv, scope
    options.sim_threshold, options.keep_text_kv = sim_threshold, keep_text_kv
    options.subtract_k_mean, options.log_count_bias = subtract_k_mean, log_count_bias

    lengths = _lengths("seq_len", seq_len, batch)
    blocks = Blocks(batch, num_heads, block_q, block_kv, lengths, lengths)
    axes = Axes(num_tokens, num_tokens, text_tokens, text_position)
    selected = _core.SparseSymbols(*blocks.grids(axes), num_heads, None, None)
    scores = _core.policy(call.backend._core, options, call.first, k_view, selected, call.stream)
    symbols = Symbols._from_core(blocks, axes, selected)
    shape = (batch, num_heads, symbols.num_q_blocks)
    c_score, g_score = (np.array(score, np.float32).reshape(shape) for score in scores)
    return PolicyResult(symbols, call.kind.from_numpy(c_score), call.kind.from_numpy(g_score))


def _check_k(call: Call, k: _core.Array) -> None:
    """What the checked operators check in C++; block pooling has no such entrance."""
    q = call.first
    batch, num_tokens, num_heads, head_dim = q.shape
    fits = k.shape[:2] == (batch, num_tokens) and k.shape[3] == head_dim
    if not fits or k.shape[2] < 1 or num_heads % k.shape[2]:
        raise ValueError(
            f"policy: k is {list(k.shape)}, need {[batch, num_tokens, num_heads, head_dim]} or a "
            "number of heads that divides q's"
        )
    if k.dtype != q.dtype:
        raise ValueError(f"policy: k is {k.dtype}, expected {q.dtype}")
