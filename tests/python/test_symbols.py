"""fo.Symbols: masks in and out, the published bytes, statistics, errors."""

import numpy as np
import pytest

import flashomni as fo
from support import needs_torch


def random_masks(rng, batch=2, heads=3, q_blocks=5, kv_blocks=4):
    cache = rng.integers(0, 2, (batch, heads, q_blocks), np.uint8)
    return cache, rng.integers(0, 2, (batch, heads, q_blocks, kv_blocks), np.uint8)


def test_masks_come_back_canonical(rng):
    cache, skip = random_masks(rng)
    symbols = fo.Symbols.from_masks(cache, skip, block_q=64, block_kv=32)
    assert (symbols.batch, symbols.num_heads) == (2, 3)
    assert (symbols.num_q_blocks, symbols.num_kv_blocks) == (5, 4)
    assert (symbols.block_q, symbols.block_kv) == (64, 32)
    cache_back, skip_back = symbols.to_masks()
    np.testing.assert_array_equal(cache_back, cache)
    np.testing.assert_array_equal(skip_back, skip * cache[..., None])


def test_bits_past_an_items_length_are_ignored(rng):
    cache, skip = random_masks(rng)
    symbols = fo.Symbols.from_masks(cache, skip, 64, 64, seq_len=[320, 65], kv_len=[1, 256])
    cache[1, :, 2:] = 0
    skip = skip * cache[..., None]
    skip[0, :, :, 1:] = 0
    for actual, expected in zip(symbols.to_masks(), (cache, skip)):
        np.testing.assert_array_equal(actual, expected)
    same = fo.Symbols.from_masks(cache, skip, 64, 64, seq_len=65).to_masks()[0]
    assert (same[:, :, 2:] == 0).all()


def test_masks_are_copied_and_may_be_bool_or_strided(rng):
    cache, skip = random_masks(rng)
    expected = fo.Symbols.from_masks(cache, skip).to_masks()
    wide = np.repeat(skip, 2, axis=3)[..., ::2]
    symbols = fo.Symbols.from_masks(cache.astype(bool), wide)
    cache[:] = 0
    for actual, wanted in zip(symbols.to_masks(), expected):
        np.testing.assert_array_equal(actual, wanted)


@needs_torch
def test_torch_masks(rng):
    import torch

    cache, skip = random_masks(rng)
    expected = fo.Symbols.from_masks(cache, skip).to_masks()
    symbols = fo.Symbols.from_masks(torch.from_numpy(cache).bool(), torch.from_numpy(skip))
    for actual, wanted in zip(symbols.to_masks(), expected):
        np.testing.assert_array_equal(actual, wanted)


def test_stats():
    cache = np.array([[[1, 1, 0]]], np.uint8)
    skip = np.array([[[[1, 0, 1], [1, 1, 1], [1, 1, 1]]]], np.uint8)
    symbols = fo.Symbols.from_masks(cache, skip, 10, 10, num_tokens=25, num_kv_tokens=25)
    stats = symbols.stats()
    assert (stats.q_blocks, stats.live_q_blocks) == (3, 2)
    assert (stats.block_pairs, stats.live_block_pairs) == (9, 5)
    assert (stats.pairs, stats.live_pairs) == (625, 10 * 15 + 10 * 25)
    assert stats.density == 400 / 625
    assert stats.cached_fraction == 5 * 25 / 625
    assert stats.skipped_fraction == 100 / 500
    assert stats.live_fraction == 2 / 3
    assert "density=0.640" in repr(symbols)
    as_if_full = fo.Symbols.from_masks(cache, skip, 10, 10).stats()
    assert as_if_full.pairs == 900


def test_published_bytes_by_the_formula(rng):
    """Bit q_block * heads + head of cache; times kv_blocks plus kv_block for skip; LSB first."""
    cache, skip = random_masks(rng)
    skip = skip * cache[..., None]
    symbols = fo.Symbols.from_masks(cache, skip)
    official = symbols.to_official()
    for name, mask in (("cache", cache), ("skip", skip)):
        rows = mask.swapaxes(1, 2).reshape(2, -1)
        packed = np.packbits(rows, axis=1, bitorder="little")
        np.testing.assert_array_equal(getattr(official, name), packed.reshape(-1))
        width = packed.shape[1]
        np.testing.assert_array_equal(getattr(official, f"{name}_indptr"), [0, width, 2 * width])


def test_published_bytes_round_trip(rng):
    cache, skip = random_masks(rng)
    shape = dict(block_q=64, block_kv=64, seq_len=[300, 100], kv_len=[200, 256])
    symbols = fo.Symbols.from_masks(cache, skip, num_tokens=300, num_kv_tokens=256, **shape)
    like = fo.Symbols.all_live(2, 3, 300, 256, **shape)
    back = fo.Symbols.from_official(symbols.to_official(), like)
    for actual, expected in zip(back.to_masks(), symbols.to_masks()):
        np.testing.assert_array_equal(actual, expected)
    broken = symbols.to_official()._replace(cache_indptr=np.array([0, 1, 2], np.int32))
    with pytest.raises(ValueError, match="cache of item 0 is bytes"):
        fo.Symbols.from_official(broken, like)


def test_all_live():
    cache, skip = fo.Symbols.all_live(1, 2, 130, block_q=64, block_kv=128).to_masks()
    assert cache.shape == (1, 2, 3) and skip.shape == (1, 2, 3, 2)
    assert (cache == 1).all() and (skip == 1).all()


def test_text_blocks_restart():
    cache = np.ones((1, 1, 2 + 3), np.uint8)
    more = dict(block_q=64, block_kv=64, text_tokens=70)
    symbols = fo.Symbols.from_masks(cache, text_position="first", num_tokens=70 + 129, **more)
    assert symbols.num_kv_blocks == 5
    assert symbols.stats().pairs == 199**2
    with pytest.raises(ValueError, match=r"cache is \[1, 1, 5\], expected \[1, 1, 4\]"):
        fo.Symbols.from_masks(cache, text_position="last", num_tokens=70 + 128, **more)


ONES = np.ones((1, 2, 3), np.uint8)
WRONG = [
    ("cache and skip are both None", {}),
    ("cache has dtype float32, allowed are uint8 and bool", dict(cache=ONES.astype(np.float32))),
    ("cache has 2 axes, need 3", dict(cache=ONES[0])),
    ("cache holds 2 at element 0, expected 0 or 1", dict(cache=2 * ONES)),
    ("the first three axes must agree", dict(cache=ONES, skip=np.ones((1, 2, 4, 4), np.uint8))),
    ("a block is 0, must be at least 1", dict(cache=ONES, block_q=0)),
    ("seq_len has 2 lengths for a batch of 1", dict(cache=ONES, seq_len=[1, 2])),
    ("the length of item 0 is 400, must be between 0 and 384", dict(cache=ONES, seq_len=[400])),
    ("70 text tokens without a position", dict(cache=ONES, text_tokens=70)),
    (
        "text_position is 'middle', allowed are 'none', 'first' and 'last'",
        dict(cache=ONES, text_tokens=70, text_position="middle"),
    ),
    (
        "text_tokens is 600, must be between 0 and seq_len",
        dict(cache=ONES, text_tokens=600, text_position="first"),
    ),
    (r"cache is \[1, 2, 3\], expected \[1, 2, 2\]", dict(cache=ONES, num_tokens=200)),
]


@pytest.mark.parametrize("message, arguments", WRONG, ids=[message for message, _ in WRONG])
def test_errors(message, arguments):
    with pytest.raises(ValueError, match=message):
        fo.Symbols.from_masks(**arguments)
