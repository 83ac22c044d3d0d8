"""Sparse symbols: which blocks of an attention layer are computed."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from . import _arrays, _core
from ._backend import Backend

_versions = itertools.count()


class OfficialSymbols(NamedTuple):
    """Symbols in the byte format of the published FlashOmni code (docs/symbols.md)."""

    cache: np.ndarray  # uint8
    skip: np.ndarray  # uint8
    cache_indptr: np.ndarray  # int32 [batch + 1], byte offsets
    skip_indptr: np.ndarray  # int32 [batch + 1]


class Axes(NamedTuple):
    """The lengths of a sequence (padding included) and the place of its text."""

    num_tokens: int
    num_kv_tokens: int | None  # None: projections, for which only `cache` matters
    text_tokens: int = 0
    text_position: str = "none"


class Blocks(NamedTuple):
    """How symbols cut a sequence of any length into blocks."""

    batch: int
    num_heads: int
    block_q: int
    block_kv: int
    seq_len: tuple[int, ...]  # of each item; (): whole
    kv_len: tuple[int, ...]

    def grids(self, axes: Axes) -> tuple[_core.BlockGrid, _core.BlockGrid]:
        def grid(block: int, num_tokens: int, lengths: tuple[int, ...]) -> _core.BlockGrid:
            text = axes.text_tokens, axes.text_position
            return _core.BlockGrid(block, self.batch, num_tokens, list(lengths), *text)

        q_grid = grid(self.block_q, axes.num_tokens, self.seq_len)
        if axes.num_kv_tokens is None:
            return q_grid, q_grid
        return q_grid, grid(self.block_kv, axes.num_kv_tokens, self.kv_len)

    def num_blocks(self, axes: Axes) -> tuple[int, int]:
        """q blocks and kv blocks"""
        q_grid, kv_grid = self.grids(axes)
        return q_grid.num_blocks, kv_grid.num_blocks


class DeviceWords(NamedTuple):
    """Symbols in the memory of a backend, as `policy` left them there."""

    core: _core.SymbolWords
    backend: Backend
    stream: int  # that they were last written on


def _mask(name: str, mask: Any, rank: int) -> np.ndarray | None:
    if mask is None:
        return None
    mask = _arrays.to_numpy(mask)
    if mask.dtype not in (np.uint8, np.bool_):
        raise ValueError(f"Symbols: {name} has dtype {mask.dtype}, allowed are uint8 and bool")
    if mask.ndim != rank:
        raise ValueError(f"Symbols: {name} has {mask.ndim} axes, need {rank}")
    return np.array(mask, dtype=np.uint8, order="C")


def _lengths(name: str, lengths: Any, batch: int) -> tuple[int, ...]:
    if lengths is None:
        return ()
    if isinstance(lengths, (int, np.integer)):
        return (int(lengths),) * batch
    items = tuple(int(length) for length in _arrays.to_numpy(lengths).reshape(-1))
    if len(items) != batch:
        raise ValueError(f"Symbols: {name} has {len(items)} lengths for a batch of {batch}")
    return items


def _capacity(num_blocks: int, block: int, text_tokens: int) -> int:
    """The most tokens that so many blocks can hold."""
    return text_tokens + (num_blocks - -(-text_tokens // block)) * block


class Symbols:
    """The sparse symbols of one attention layer. Made by `from_masks`, `all_live`, `from_official`
    or `policy`, and never changed but by `policy(..., symbols=)`.

    Per head, a bit of `cache` says whether a query block is computed (1) or reused (0), and a bit
    of `skip` whether a computed query block uses (1) a key block or leaves it out (0).
    Operators compile symbols to plans on first use and keep the plans here: reuse the object.
    What `policy` chose on a GPU stays there, and plans for that GPU are made there. Masks,
    statistics, repr, the published bytes, a host backend or another GPU bring it to the host, which
    waits.
    """

    def __init__(
        self,
        blocks: Blocks,
        text: tuple[int, str],
        num_tokens: int | None,
        num_kv_tokens: int | None,
        cache: np.ndarray | None,
        skip: np.ndarray | None,
        words: DeviceWords | None = None,
    ):
        """For internal use. With `words` there are no masks, and both lengths."""
        self._blocks, self._text = blocks, text
        self._num_tokens, self._num_kv_tokens = num_tokens, num_kv_tokens
        self._cache, self._skip, self._words = cache, skip, words
        self._version = next(_versions)  # another one for every choice of symbols
        self._resolved: dict[Axes, _core.SparseSymbols] = {}
        self._plans: dict[tuple[Any, ...], Any] = {}
        if blocks.block_q < 1 or blocks.block_kv < 1:
            raise ValueError(f"Symbols: a block is {min(blocks[2:4])}, must be at least 1")
        self._nominal = self._nominal_axes()
        if words is None:
            self._resolve(self._nominal)  # checks every argument

    @classmethod
    def from_masks(
        cls,
        cache: Any = None,
        skip: Any = None,
        block_q: int = 128,
        block_kv: int = 128,
        seq_len: int | Sequence[int] | None = None,
        kv_len: int | Sequence[int] | None = None,
        text_tokens: int = 0,
        text_position: str = "none",
        *,
        num_tokens: int | None = None,
        num_kv_tokens: int | None = None,
    ) -> Symbols:
        """Symbols from dense masks of 1 (compute, use) and 0, uint8 or bool. Masks are copied.

        cache   [batch, num_heads, q_blocks]; None = all 1
        skip    [batch, num_heads, q_blocks, kv_blocks]; None = all 1. Not both None
        block_q, block_kv    tokens per block
        seq_len, kv_len      leading tokens of each item that are valid: [batch], one int, or
                             None = all. Rows past seq_len count as cached, keys past kv_len as
                             skipped
        text_tokens, text_position   how many tokens of the sequence are text, "first" or "last";
                             blocks restart at the border between text and image
        num_tokens, num_kv_tokens    length of the sequence, padding included. None: taken from the
                             tensors an operator gets. Needed where a projection's rows are a part
                             of the sequence that does not reach its end (gemm_q and gemm_o_*)

        Skip bits of cached query blocks, and bits of blocks past an item's length, are ignored.
        Raises ValueError for another dtype, shape or value.
        """
        cache, skip = _mask("cache", cache, 3), _mask("skip", skip, 4)
        known = skip if cache is None else cache
        if known is None:
            raise ValueError("Symbols: cache and skip are both None; use Symbols.all_live")
        if cache is not None and skip is not None and cache.shape != skip.shape[:3]:
            raise ValueError(
                f"Symbols: cache is {list(cache.shape)}, skip is {list(skip.shape)}; "
                "the first three axes must agree"
            )
        batch, num_heads = known.shape[:2]
        lengths = _lengths("seq_len", seq_len, batch), _lengths("kv_len", kv_len, batch)
        blocks = Blocks(batch, num_heads, block_q, block_kv, *lengths)
        return cls(blocks, (text_tokens, text_position), num_tokens, num_kv_tokens, cache, skip)

    @classmethod
    def all_live(
        cls,
        batch: int,
        num_heads: int,
        num_tokens: int,
        num_kv_tokens: int | None = None,
        *,
        block_q: int = 128,
        block_kv: int = 128,
        seq_len: int | Sequence[int] | None = None,
        kv_len: int | Sequence[int] | None = None,
        text_tokens: int = 0,
        text_position: str = "none",
    ) -> Symbols:
        """Nothing cached, nothing skipped; arguments as in `from_masks`.
        num_kv_tokens: None = num_tokens."""
        lengths = _lengths("seq_len", seq_len, batch), _lengths("kv_len", kv_len, batch)
        blocks = Blocks(batch, num_heads, block_q, block_kv, *lengths)
        num_kv_tokens = num_tokens if num_kv_tokens is None else num_kv_tokens
        return cls(blocks, (text_tokens, text_position), num_tokens, num_kv_tokens, None, None)

    @classmethod
    def from_official(cls, official: OfficialSymbols, like: Symbols) -> Symbols:
        """Symbols from bytes of the published format, with the batch, heads, blocks and lengths of
        `like`. Raises ValueError if an indptr does not fit them or a padding bit is set."""
        axes = like._nominal
        symbols = _core.SparseSymbols.from_official(
            *like._blocks.grids(axes),
            like.num_heads,
            np.asarray(official.cache, np.uint8).tobytes(),
            np.asarray(official.skip, np.uint8).tobytes(),
            [int(offset) for offset in official.cache_indptr],
            [int(offset) for offset in official.skip_indptr],
        )
        return cls._from_core(like._blocks, axes, symbols)

    @classmethod
    def _from_core(cls, blocks: Blocks, axes: Axes, symbols: _core.SparseSymbols) -> Symbols:
        text = axes.text_tokens, axes.text_position
        masks = _dense_masks(blocks, axes, symbols)
        return cls(blocks, text, axes.num_tokens, axes.num_kv_tokens, *masks)

    @classmethod
    def _from_words(cls, blocks: Blocks, axes: Axes, words: DeviceWords) -> Symbols:
        text = axes.text_tokens, axes.text_position
        return cls(blocks, text, axes.num_tokens, axes.num_kv_tokens, None, None, words)

    def _renew(self, other: Symbols) -> None:
        """Becomes `other`, of the same blocks and lengths; plans are made anew in their memory."""
        self._cache, self._skip, self._words = other._cache, other._skip, other._words
        self._version, self._resolved = other._version, other._resolved

    def _words_for(self, backend: Backend) -> _core.SymbolWords | None:
        """The words that this backend's kernels can read, if the symbols were chosen there."""
        if self._words is None or not self._words.backend._shares_memory_with(backend):
            return None
        return self._words.core

    @property
    def batch(self) -> int:
        return self._blocks.batch

    @property
    def num_heads(self) -> int:
        return self._blocks.num_heads

    @property
    def block_q(self) -> int:
        return self._blocks.block_q

    @property
    def block_kv(self) -> int:
        return self._blocks.block_kv

    @property
    def num_q_blocks(self) -> int:
        return self._blocks.num_blocks(self._nominal)[0]

    @property
    def num_kv_blocks(self) -> int:
        return self._blocks.num_blocks(self._nominal)[1]

    def __repr__(self) -> str:
        return (
            f"<flashomni.Symbols batch={self.batch} num_heads={self.num_heads} "
            f"q_blocks={self.num_q_blocks}x{self.block_q} "
            f"kv_blocks={self.num_kv_blocks}x{self.block_kv} density={self.stats().density:.3f}>"
        )

    def to_masks(self) -> tuple[np.ndarray, np.ndarray]:
        """The masks in canonical form, uint8: cache [batch, num_heads, q_blocks] and
        skip [batch, num_heads, q_blocks, kv_blocks]; bits of blocks with no valid token, and skip
        bits of cached query blocks, are 0."""
        return _dense_masks(self._blocks, self._nominal, self._resolve(self._nominal))

    def to_official(self) -> OfficialSymbols:
        """The bytes of the published FlashOmni code."""
        cache, skip, cache_indptr, skip_indptr = self._resolve(self._nominal).to_official()
        return OfficialSymbols(
            np.frombuffer(cache, np.uint8),
            np.frombuffer(skip, np.uint8),
            np.array(cache_indptr, np.int32),
            np.array(skip_indptr, np.int32),
        )

    def stats(self) -> _core.SymbolStats:
        """How much is left to do, in blocks and in token pairs; where the length of the sequence
        is not known, the last block counts as full."""
        return self._resolve(self._nominal).stats()

    def _nominal_axes(self) -> Axes:
        """Lengths as far as they are known; else the most that the blocks of the masks hold."""
        num_tokens, num_kv_tokens = self._num_tokens, self._num_kv_tokens
        text_tokens = self._text[0]
        if num_tokens is None:
            known = self._skip if self._cache is None else self._cache
            assert known is not None
            num_tokens = _capacity(known.shape[2], self.block_q, text_tokens)
        if num_kv_tokens is None and self._skip is not None:
            num_kv_tokens = _capacity(self._skip.shape[3], self.block_kv, text_tokens)
        if num_kv_tokens is None:
            num_kv_tokens = max([num_tokens, *self._blocks.kv_len])
        return Axes(num_tokens, num_kv_tokens, *self._text)

    def _resolve(self, axes: Axes) -> _core.SparseSymbols:
        if self._words is not None and self._cache is None:
            self._fetch(self._words)
        symbols = self._resolved.get(axes)
        if symbols is None:
            skip = None if axes.num_kv_tokens is None else self._skip
            symbols = self._resolved[axes] = _core.SparseSymbols(
                *self._blocks.grids(axes),
                self.num_heads,
                _arrays.optional_view("Symbols", "cache", self._cache),
                _arrays.optional_view("Symbols", "skip", skip),
            )
        return symbols

    def _cached_blocks(
        self, grids: tuple[_core.BlockGrid, _core.BlockGrid]
    ) -> _core.SparseSymbols:
        """Of these grids, without skipped blocks."""
        self._resolve(self._nominal)
        cache = _arrays.optional_view("Symbols", "cache", self._cache)
        return _core.SparseSymbols(*grids, self.num_heads, cache, None)

    def _fetch(self, words: DeviceWords) -> None:
        """Brings symbols that were chosen on a GPU to the host; waits for it."""
        _arrays.refuse_while_capturing("Symbols", "none can be fetched", words.stream)
        symbols = words.core.download(words.backend._core, words.stream)
        self._resolved[self._nominal] = symbols
        self._cache, self._skip = _dense_masks(self._blocks, self._nominal, symbols)


def _dense_masks(
    blocks: Blocks, axes: Axes, symbols: _core.SparseSymbols
) -> tuple[np.ndarray, np.ndarray]:
    q_blocks, kv_blocks = blocks.num_blocks(axes)
    cache = np.empty((blocks.batch, blocks.num_heads, q_blocks), np.uint8)
    skip = np.empty((*cache.shape, kv_blocks), np.uint8)
    symbols.to_masks(
        _arrays.view("Symbols", "cache", cache, writable=True),
        _arrays.view("Symbols", "skip", skip, writable=True),
    )
    return cache, skip
