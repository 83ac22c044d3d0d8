"""From Q and K to symbols."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from . import _arrays, _core
from ._backend import Backend
from ._call import Call
from ._symbols import Axes, Blocks, DeviceWords, Symbols, _lengths


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
    symbols: Symbols | None = None,
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
    symbols   of an earlier call for such a q and k: they become the new choice and are returned, in
              the memory that they and their plans have. None = new ones
    returns   (symbols, c_score, g_score); the scores are those before any sum over heads, on the
              device of q. On a GPU the symbols stay there and nothing waits for it
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
    if symbols is not None and (symbols._blocks, symbols._nominal) != (blocks, axes):
        raise ValueError(
            f"policy: symbols are {symbols._blocks} of {symbols._nominal}, expected {blocks} of "
            f"{axes}"
        )
    if _is_on_device(call):
        words = None if symbols is None else symbols._words_for(call.backend)
        chosen = _select_on_device(call, k_view, options, blocks, axes, words)
    else:
        chosen = _select_on_host(call, k_view, options, blocks, axes)
    if symbols is None:
        return chosen
    symbols._renew(chosen.symbols)
    return chosen._replace(symbols=symbols)


def _is_on_device(call: Call) -> bool:
    return call.first.is_cuda


def _select_on_host(
    call: Call,
    k: _core.Array,
    options: _core.FlashOmniOptions,
    blocks: Blocks,
    axes: Axes,
) -> PolicyResult:
    selected = _core.SparseSymbols(*blocks.grids(axes), blocks.num_heads, None, None)
    scores = _core.policy(call.backend._core, options, call.first, k, selected, call.stream)
    symbols = Symbols._from_core(blocks, axes, selected)
    shape = (blocks.batch, blocks.num_heads, symbols.num_q_blocks)
    c_score, g_score = (np.array(score, np.float32).reshape(shape) for score in scores)
    return PolicyResult(symbols, call.kind.from_numpy(c_score), call.kind.from_numpy(g_score))


def _select_on_device(
    call: Call,
    k: _core.Array,
    options: _core.FlashOmniOptions,
    blocks: Blocks,
    axes: Axes,
    words: _core.SymbolWords | None,
) -> PolicyResult:
    if words is None:
        _arrays.refuse_while_capturing("policy", "new symbols cannot be made", call.stream)
        grids = blocks.grids(axes)
        words = _core.SymbolWords(call.backend._core, *grids, blocks.num_heads)
    shape = (blocks.batch, blocks.num_heads, blocks.num_blocks(axes)[0])
    c_score, g_score = (call.kind.empty(shape, "f32") for _ in range(2))
    _core.select_symbols(
        call.backend._core,
        options,
        call.first,
        k,
        words,
        (call.writable("c_score", c_score), call.writable("g_score", g_score)),
        call.stream,
    )
    symbols = Symbols._from_words(blocks, axes, DeviceWords(words, call.backend, call.stream))
    return PolicyResult(symbols, c_score, g_score)


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
