"""fo.policy on the worked example (spec 5.9) and its properties."""

import numpy as np
import pytest

import flashomni as fo
from support import KINDS, make, same_kind

# case: options, S_c of both heads, S_s rows of both heads, official bytes
EXAMPLES = {
    "A": (
        dict(tau_q=0.5, tau_kv=0.1, text_position="first"),
        "1111100 1110111",
        "1111111 1111111 1111111 1111111 1111111 0000000 0000000 "
        "1111111 1111111 1111111 0000000 1111011 1110111 1101101",
        "7F2B FFFFFFFFFFFF01FF37E00ED802",
    ),
    "B": (
        dict(tau_q=0.5, tau_kv=0.1, text_position="first", scope="layer"),
        "1110111 1110111",
        "1111111 1111111 1111111 0000000 1111111 1110111 1111101 "
        "1111111 1111111 1111111 0000000 1111011 1110111 1101101",
        "3F3F FFFFFFFFFF0300FFF7FDFEDD02",
    ),
    "C": (
        dict(tau_q=0.5, tau_kv=0.1, text_position="last"),
        "1010111 1101011",
        "1101111 0000000 0111111 0000000 0111111 1111111 1111111 "
        "1111011 1111011 0000000 1011111 0000000 1111111 1111111",
        "9B3D FB37E0ED0700FA7EC0FFFFFF03",
    ),
    "D": (
        dict(tau_q=0.5, tau_kv=0.25, text_position="first", sim_threshold=0.978),
        "1111110 1110111",
        "1111111 1111111 1111011 1111101 1111011 1111111 0000000 "
        "1111111 1111111 1111010 0000000 1110011 1110010 1101101",
        "7F2F FFFFFFFF7E7D01EFF3FF04D802",
    ),
    "E": (
        dict(tau_q=0.5, tau_kv=0.25, text_position="first"),
        "1111100 1110111",
        "1111111 1111111 1110011 1111101 1111011 0000000 0000000 "
        "1111111 1111111 1111010 0000000 1110011 1110010 1101101",
        "7F2B FFFFFF7F7E7D01EF33E004D802",
    ),
}


def worked_example():
    t, d = np.arange(26)[:, None, None], np.arange(4)[None, None, :]
    h, beta = np.arange(2)[None, :, None], np.arange(26)[:, None, None] // 4
    q = (((3 * beta**2 + 5 * h + 7 * d * beta + 2 * d + 4 * h * d * beta) % 13) - 6) / 4
    k = (((5 * beta**2 + 2 * h + 3 * d * beta + 4 * d + 6 * h * beta) % 11) - 5) / 4
    return (q + (((t + d) % 3) - 1) / 8)[None], (k + (((t + 2 * d) % 3) - 1) / 8)[None]


def bits(text, *shape):
    return np.array([int(c) for c in text.replace(" ", "")], np.uint8).reshape(shape)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", EXAMPLES)
def test_worked_example(backend, kind, name):
    options, cache_bits, skip_bits, official_hex = EXAMPLES[name]
    text = 8 if options["text_position"] == "first" else 6  # two blocks; the last one is short
    q, k = (make(x, kind) for x in worked_example())
    result = fo.policy(q, k, block_q=4, block_kv=4, text_tokens=text, backend=backend, **options)
    cache, skip = result.symbols.to_masks()
    np.testing.assert_array_equal(cache, bits(cache_bits, 1, 2, 7))
    np.testing.assert_array_equal(skip, bits(skip_bits, 1, 2, 7, 7))
    official = result.symbols.to_official()
    cache_bytes, skip_bytes = (bytes.fromhex(part) for part in official_hex.split())
    assert official.cache.tobytes() == cache_bytes and official.skip.tobytes() == skip_bytes
    assert same_kind(result.c_score, (kind[0], "float32"))
    assert same_kind(result.g_score, (kind[0], "float32"))


def test_scores_of_the_worked_example(backend):
    q, k = (x.astype(np.float32) for x in worked_example())
    _, c_score, g_score = fo.policy(q, k, 0.5, 0.1, 4, 4, 8, "first", backend=backend)
    assert c_score.shape == g_score.shape == (1, 2, 7)
    assert (c_score[:, :, :2] == 0).all() and (g_score[:, :, :2] == 0).all()
    c, g = (s[0, :, 2:] / s[0, :, 2:].sum(axis=1, keepdims=True) for s in (c_score, g_score))
    np.testing.assert_allclose(c[0], [0.1389, 0.2748, 0.2306, 0.1613, 0.1944], atol=1e-4)
    np.testing.assert_allclose(c[1], [0.2706, 0.1145, 0.0826, 0.1419, 0.3905], atol=1e-4)
    np.testing.assert_allclose(g[0], [0.1991, 0.2121, 0.2018, 0.1962, 0.1909], atol=1e-4)
    np.testing.assert_allclose(g[1], [0.1789, 0.1854, 0.2092, 0.2156, 0.2110], atol=1e-4)


def test_nothing_is_selected_at_tau_zero_or_cached_without_text(rng):
    q, k = rng.standard_normal((2, 2, 300, 4, 64), dtype=np.float32)
    options = dict(block_q=64, block_kv=64)
    stats = fo.policy(q, k, 0, 0, text_tokens=70, text_position="first", **options).symbols.stats()
    assert stats.density == 1
    cache, skip = fo.policy(q, k, 0.9, 0.5, **options).symbols.to_masks()
    assert (cache == 1).all() and (skip == 0).any()


def test_text_columns_are_kept_on_request(rng):
    q, k = rng.standard_normal((2, 1, 300, 2, 64), dtype=np.float32)
    more = dict(tau_q=0, tau_kv=0.8, block_q=64, block_kv=64, text_tokens=70, text_position="first")
    kept = fo.policy(q, k, **more).symbols.to_masks()[1][..., :2]
    free = fo.policy(q, k, keep_text_kv=False, **more).symbols.to_masks()[1][..., :2]
    assert (kept == 1).all() and (free == 0).any()


def test_grouped_heads_and_lengths(backend, rng):
    q = rng.standard_normal((2, 200, 4, 64), dtype=np.float32)
    k = rng.standard_normal((2, 200, 2, 64), dtype=np.float32)
    more = dict(tau_kv=0.4, block_q=64, block_kv=64, backend=backend)
    grouped = fo.policy(q, k, seq_len=[200, 100], **more)
    repeated = fo.policy(q, np.repeat(k, 2, axis=2), seq_len=[200, 100], **more)
    for a, b in zip(grouped.symbols.to_masks(), repeated.symbols.to_masks()):
        np.testing.assert_array_equal(a, b)
    cache, skip = grouped.symbols.to_masks()
    assert (cache[1, :, 2:] == 0).all() and (skip[1, :, :, 2:] == 0).all()


def test_subtracting_the_mean_of_k_makes_its_tokens_dissimilar(rng):
    """Noise around a common offset: similar tokens, until the offset is taken away."""
    q, k = 3 + rng.standard_normal((2, 1, 300, 2, 64), dtype=np.float32)
    more = dict(tau_kv=0.5, block_q=64, block_kv=64, sim_threshold=0.5)
    assert (fo.policy(q, k, **more).symbols.to_masks()[1] == 0).any()
    assert (fo.policy(q, k, subtract_k_mean=True, **more).symbols.to_masks()[1] == 1).all()


def test_log_count_bias_weighs_short_blocks_by_their_tokens():
    zeros = np.zeros((1, 64 + 128 + 16, 1, 64), np.float32)
    more = dict(block_q=64, block_kv=64, text_tokens=64, text_position="first")
    _, c_score, _ = fo.policy(zeros, zeros, log_count_bias=True, **more)
    np.testing.assert_allclose(c_score[0, 0], np.array([0, 64, 64, 16]) / 208, atol=1e-6)
    _, c_score, _ = fo.policy(zeros, zeros, **more)
    np.testing.assert_allclose(c_score[0, 0], [0, 0.25, 0.25, 0.25], atol=1e-6)


def test_errors():
    q = np.zeros((1, 100, 4, 64), np.float32)
    with pytest.raises(ValueError, match=r"policy: k is \[1, 100, 3, 64\], need"):
        fo.policy(q, q[:, :, :3])
    strided = np.zeros((1, 100, 4, 128), np.float32)[..., ::2]
    with pytest.raises(ValueError, match="policy: k has stride 2 in its last axis, expected 1"):
        fo.policy(q, strided)
    with pytest.raises(ValueError, match="policy: scope is 'row', allowed are 'head' and 'layer'"):
        fo.policy(q, q, scope="row")
    with pytest.raises(ValueError, match="policy: k is f16, expected f32"):
        fo.policy(q, q.astype(np.float16))
    with pytest.raises(ValueError, match="text_tokens is 101, must be between 0 and seq_len 100"):
        fo.policy(q, q, text_tokens=101, text_position="first")
    with pytest.raises(ValueError, match="100 text tokens without a position"):
        fo.policy(q, q, text_tokens=100)
