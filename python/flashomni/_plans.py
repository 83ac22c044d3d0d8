"""Symbols compiled for a backend and a sequence length; kept with the symbols."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from . import _arrays, _core
from ._backend import Backend
from ._symbols import Axes, Symbols


class Kept(NamedTuple):
    """A plan, and the versions of the symbols it was built of: of others it is built again."""

    plan: Any
    versions: tuple[int, int | None]
    q_blocks: int = 0  # of the whole sequence, where a projection has a part


@functools.lru_cache(maxsize=16)
def dense(batch: int, num_heads: int, num_tokens: int, num_kv_tokens: int) -> Symbols:
    """All-live symbols for calls without symbols; kept for the sake of their plans."""
    return Symbols.all_live(batch, num_heads, num_tokens, num_kv_tokens)


def attention_plan(
    symbols: Symbols, num_tokens: int, num_kv_tokens: int, backend: Backend, stream: int
) -> _core.AttentionPlan:
    axes = Axes(num_tokens, num_kv_tokens, *symbols._text)
    key = (axes, backend._core, stream)
    kept, versions = symbols._plans.get(key), (symbols._version, None)
    if kept is not None and kept.versions == versions:
        return kept.plan
    if kept is None:
        _arrays.refuse_while_capturing("attention", "a plan cannot be made", stream)
    words = symbols._words_for(backend)
    _check_lengths(symbols, axes, words is not None)
    plan = _core.AttentionPlan() if kept is None else kept.plan
    plan.build(backend._core, symbols._resolve(axes) if words is None else words, stream)
    symbols._plans[key] = Kept(plan, versions)
    return plan


def _check_lengths(symbols: Symbols, axes: Axes, exactly: bool) -> None:
    """Masks serve all lengths of so many blocks, words only those they were chosen for."""
    q_blocks, kv_blocks = symbols._blocks.num_blocks(axes)
    if q_blocks != symbols.num_q_blocks:
        raise ValueError(
            f"attention: q has {axes.num_tokens} tokens, that is {q_blocks} blocks of "
            f"{symbols.block_q}, but symbols have {symbols.num_q_blocks}"
        )
    has_kv_blocks = exactly or symbols._skip is not None
    if has_kv_blocks and kv_blocks != symbols.num_kv_blocks:
        raise ValueError(
            f"attention: k has {axes.num_kv_tokens} tokens, that is {kv_blocks} blocks of "
            f"{symbols.block_kv}, but symbols have {symbols.num_kv_blocks}"
        )
    if exactly and axes != symbols._nominal:
        raise ValueError(
            f"attention: q and k have {axes.num_tokens} and {axes.num_kv_tokens} tokens, but "
            f"symbols were chosen for {symbols._num_tokens} and {symbols._num_kv_tokens}"
        )


def _row_axes(op: str, symbols: Symbols, num_rows: int, text_offset: int) -> Axes:
    """The sequence of which rows [text_offset, text_offset + num_rows) are projected."""
    text_tokens, text_position = symbols._text
    if symbols._num_tokens is not None:
        return Axes(symbols._num_tokens, None, text_tokens, text_position)
    if text_position == "last" and text_tokens > 0:
        raise ValueError(
            f"{op}: symbols with text last need num_tokens, to tell image rows from all rows"
        )
    if text_tokens == 0 and text_offset > 0:
        text_tokens, text_position = text_offset, "first"
    axes = Axes(text_offset + num_rows, None, text_tokens, text_position)
    q_blocks, _ = symbols._blocks.num_blocks(axes)
    if q_blocks != symbols.num_q_blocks:
        raise ValueError(
            f"{op}: {num_rows} rows from token {text_offset} on end in block {q_blocks} of "
            f"{symbols.block_q}, but symbols have {symbols.num_q_blocks}; give Symbols num_tokens "
            "if more tokens follow"
        )
    return axes


def gemm_plan(
    op: str,
    symbols: Symbols,
    num_rows: int,
    text_offset: int,
    backend: Backend,
    stream: int,
    previous: Symbols | None = None,
) -> tuple[_core.GemmPlan, int]:
    """The plan, and the number of q blocks of the whole sequence."""
    of_previous = "none" if previous is None else "same" if previous is symbols else "other"
    key: tuple[Any, ...] = (text_offset, num_rows, of_previous, backend._core, stream)
    versions = symbols._version, None if previous is None else previous._version
    kept = symbols._plans.get(key)
    if kept is not None and kept.versions == versions:
        return kept.plan, kept.q_blocks
    if kept is None:
        _arrays.refuse_while_capturing(op, "a plan cannot be made", stream)
    axes = _row_axes(op, symbols, num_rows, text_offset)
    q_blocks, _ = symbols._blocks.num_blocks(axes)
    plan = _core.GemmPlan() if kept is None else kept.plan
    words = symbols._words_for(backend)
    if words is None:
        before = None if previous is None else previous._resolve(axes)
        now = symbols._resolve(axes)
        plan.build(backend._core, now, text_offset, num_rows, before, stream)
    else:
        before = None if previous is None else _as_words(previous, symbols, backend, stream)
        plan.build(backend._core, words, text_offset, num_rows, before, stream)
    symbols._plans[key] = Kept(plan, versions, q_blocks)
    return plan, q_blocks


def _as_words(symbols: Symbols, like: Symbols, backend: Backend, stream: int) -> _core.SymbolWords:
    """Of the grids of `like`, for the cached blocks alone; uploaded, which waits, if they were not
    chosen on the device."""
    words = symbols._words_for(backend)
    if words is None:
        _arrays.refuse_while_capturing("Symbols", "they cannot be uploaded", stream)
        grids = like._blocks.grids(like._nominal)
        words = _core.SymbolWords(backend._core, *grids, like.num_heads)
        words.upload(backend._core, symbols._cached_blocks(grids), stream)
    return words
