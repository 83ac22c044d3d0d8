"""Symbols compiled for a backend and a sequence length; kept with the symbols."""

from __future__ import annotations

import functools
from typing import Any

from . import _arrays, _core
from ._backend import Backend
from ._symbols import Axes, Symbols


@functools.lru_cache(maxsize=16)
def dense(batch: int, num_heads: int, num_tokens: int, num_kv_tokens: int) -> Symbols:
    """All-live symbols for calls without symbols; kept for the sake of their plans."""
    return Symbols.all_live(batch, num_heads, num_tokens, num_kv_tokens)


def attention_plan(
    symbols: Symbols, num_tokens: int, num_kv_tokens: int, backend: Backend, stream: int
) -> _core.AttentionPlan:
    axes = Axes(num_tokens, num_kv_tokens, *symbols._text)
    key = (axes, backend._core, stream)
    if key in symbols._plans:
        return symbols._plans[key]
    _refuse_while_capturing("attention", stream)
    q_blocks, kv_blocks = symbols._blocks.num_blocks(axes)
    if q_blocks != symbols.num_q_blocks:
        raise ValueError(
            f"attention: q has {num_tokens} tokens, that is {q_blocks} blocks of "
            f"{symbols.block_q}, but symbols have {symbols.num_q_blocks}"
        )
    if symbols._skip is not None and kv_blocks != symbols.num_kv_blocks:
        raise ValueError(
            f"attention: k has {num_kv_tokens} tokens, that is {kv_blocks} blocks of "
            f"{symbols.block_kv}, but symbols have {symbols.num_kv_blocks}"
        )
    symbols._plans[key] = _core.AttentionPlan(backend._core, symbols._resolve(axes), stream)
    return symbols._plans[key]


def _refuse_while_capturing(op: str, stream: int) -> None:
    if _arrays.is_capturing(stream):
        raise RuntimeError(
            f"{op}: a plan cannot be made while a CUDA graph captures stream {stream:#x}; make the "
            "same calls on that stream once before the capture"
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
    """The plan, and the number of q blocks of the whole sequence. It is kept unless `previous` is
    another Symbols: such a plan is used once, and would keep the symbols before it."""
    key: tuple[Any, ...] = (text_offset, num_rows, previous is symbols, backend._core, stream)
    if key in symbols._plans:
        return symbols._plans[key]
    _refuse_while_capturing(op, stream)
    axes = _row_axes(op, symbols, num_rows, text_offset)
    q_blocks, _ = symbols._blocks.num_blocks(axes)
    before = None if previous is None else previous._resolve(axes)
    plan = _core.GemmPlan(
        backend._core, symbols._resolve(axes), text_offset, num_rows, before, stream
    )
    if previous is None or previous is symbols:
        symbols._plans[key] = plan, q_blocks
    return plan, q_blocks
