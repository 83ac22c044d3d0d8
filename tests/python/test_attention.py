"""fo.attention against a masked softmax in float64."""

import math

import numpy as np
import pytest

import flashomni as fo
import oracle
from support import (
    EPSILON,
    KINDS,
    attention_tolerance,
    expect_close,
    make,
    needs_torch,
    numbers,
    same_kind,
)

# (batch, tokens, kv tokens, heads, kv heads, head_dim, block_q, block_kv, text, text_position)
SHAPES = [
    pytest.param((1, 128, 128, 2, 2, 64, 64, 64, 0, "none"), id="whole-blocks"),
    pytest.param((2, 300, 300, 3, 3, 64, 64, 64, 0, "none"), id="ragged-tail"),
    pytest.param((1, 129, 129, 1, 1, 64, 128, 128, 0, "none"), id="one-token-tail"),
    pytest.param((1, 1, 1, 2, 2, 64, 128, 128, 0, "none"), id="one-token"),
    pytest.param((2, 200, 333, 6, 2, 64, 64, 128, 0, "none"), id="cross-gqa"),
    pytest.param((1, 150, 150, 2, 2, 128, 64, 32, 0, "none"), id="head-dim-128"),
    pytest.param((2, 230, 230, 2, 1, 24, 64, 64, 70, "first"), id="text-first-head-dim-24"),
    pytest.param((1, 230, 230, 2, 2, 64, 64, 64, 70, "last"), id="text-last"),
]


class Case:
    def __init__(self, rng, shape, kind=("numpy", "float32")):
        batch, num, num_kv, heads, kv_heads, dim, block_q, block_kv, text, position = shape
        self.kind = kind
        self.q = make(rng.standard_normal((batch, num, heads, dim)), kind)
        self.k = make(rng.standard_normal((batch, num_kv, kv_heads, dim)), kind)
        self.v = make(rng.standard_normal((batch, num_kv, kv_heads, dim)), kind)
        self.q_blocks = oracle.block_slices(num, block_q, text, position)
        self.kv_blocks = oracle.block_slices(num_kv, block_kv, text, position)
        rows = (batch, heads, len(self.q_blocks))
        self.cache = rng.integers(0, 2, rows, dtype=np.uint8)
        self.skip = rng.integers(0, 2, (*rows, len(self.kv_blocks)), dtype=np.uint8)
        self.options = dict(
            block_q=block_q, block_kv=block_kv, text_tokens=text, text_position=position
        )

    def symbols(self, **more):
        return fo.Symbols.from_masks(self.cache, self.skip, **self.options, **more)

    def expected(self, **more):
        masks = dict(cache=self.cache, skip=self.skip) | more
        q, k, v = (numbers(x) for x in (self.q, self.k, self.v))
        return oracle.attention(q, k, v, self.q_blocks, self.kv_blocks, **masks)

    def tolerance(self, **more):
        return attention_tolerance(self.q, self.k, self.v, self.kind[1], **more)

    def expect(self, out, lse, expected_out, expected_lse, **more):
        """Computed rows are right, others 0 in out and NaN in lse."""
        expect_close(out, np.nan_to_num(expected_out), self.tolerance(**more))
        lse = numbers(lse)
        finite = np.isfinite(expected_lse)
        np.testing.assert_array_equal(np.isnan(lse), np.isnan(expected_lse))
        np.testing.assert_array_equal(np.isneginf(lse), np.isneginf(expected_lse))
        np.testing.assert_allclose(lse[finite], expected_lse[finite], atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_random_masks(backend, rng, shape):
    case = Case(rng, shape)
    out, lse = fo.attention(
        case.q, case.k, case.v, case.symbols(), return_lse=True, backend=backend
    )
    case.expect(out, lse, *case.expected())


@pytest.mark.parametrize("kind", KINDS)
def test_kinds(backend, rng, kind):
    case = Case(rng, (2, 200, 200, 4, 2, 64, 64, 64, 0, "none"), kind)
    out, lse = fo.attention(
        case.q, case.k, case.v, case.symbols(), return_lse=True, backend=backend
    )
    assert same_kind(out, kind)
    assert same_kind(lse, (kind[0], "float32"))
    case.expect(out, lse, *case.expected())


def test_without_symbols_everything_is_computed(backend, rng):
    case = Case(rng, (2, 300, 200, 4, 2, 64, 128, 128, 0, "none"))
    everything = dict(cache=np.ones_like(case.cache), skip=np.ones_like(case.skip))
    out, lse = fo.attention(case.q, case.k, case.v, return_lse=True, backend=backend)
    case.expect(out, lse, *case.expected(**everything))


def test_one_mask_alone(backend, rng):
    case = Case(rng, (1, 200, 200, 2, 2, 64, 64, 64, 0, "none"))
    for mask in ("cache", "skip"):
        given = getattr(case, mask)
        symbols = fo.Symbols.from_masks(**{mask: given}, **case.options)
        out, lse = fo.attention(case.q, case.k, case.v, symbols, return_lse=True, backend=backend)
        masks = dict(cache=np.ones_like(case.cache), skip=np.ones_like(case.skip))
        case.expect(out, lse, *case.expected(**masks | {mask: given}))


def test_lengths_of_items(backend, rng):
    case = Case(rng, (3, 200, 260, 2, 2, 64, 64, 64, 0, "none"))
    lengths = dict(seq_len=[200, 70, 0], kv_len=[65, 260, 0])
    symbols = case.symbols(**lengths)
    out, lse = fo.attention(case.q, case.k, case.v, symbols, return_lse=True, backend=backend)
    case.expect(out, lse, *case.expected(**lengths))


def test_scale(backend, rng):
    case = Case(rng, (1, 100, 100, 2, 2, 64, 64, 64, 0, "none"))
    out, lse = fo.attention(
        case.q, case.k, case.v, case.symbols(), 0.25, return_lse=True, backend=backend
    )
    case.expect(out, lse, *case.expected(scale=0.25), scale=0.25)


def test_rows_with_no_key_and_all_cached(backend, rng):
    case = Case(rng, (1, 200, 200, 2, 2, 64, 64, 64, 0, "none"))
    case.cache[:, 0], case.cache[:, 1], case.skip[:] = 1, 0, 0
    out, lse = fo.attention(
        case.q, case.k, case.v, case.symbols(), return_lse=True, backend=backend
    )
    assert (out == 0).all()
    assert np.isneginf(lse[:, 0]).all() and np.isnan(lse[:, 1]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_out_keeps_what_is_not_computed(backend, rng, kind):
    case = Case(rng, (2, 200, 200, 2, 2, 64, 64, 64, 0, "none"), kind)
    out = make(np.full(case.q.shape, -7.0), kind)
    symbols = case.symbols(seq_len=[200, 100])
    assert fo.attention(case.q, case.k, case.v, symbols, out=out, backend=backend) is out
    expected, _ = case.expected(seq_len=[200, 100])
    expect_close(out, np.where(np.isnan(expected), -7, expected), case.tolerance())
    untouched = np.isnan(expected)
    assert untouched.any() and (numbers(out)[untouched] == -7).all()


def forecast(terms, k):
    return sum(k**n / math.factorial(n) * numbers(term) for n, term in enumerate(terms))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("term", ["float32", "own"])
def test_cached_rows_become_the_forecast(backend, rng, kind, term):
    case = Case(rng, (2, 200, 200, 4, 2, 64, 64, 64, 0, "none"), kind)
    term = kind[1] if term == "own" else term
    terms = [make(rng.standard_normal(case.q.shape), (kind[0], term)) for _ in range(3)]
    lengths = dict(seq_len=[200, 100])
    expected, expected_lse = case.expected(**lengths)
    cached = np.isnan(expected)
    cached[1, 100:] = False
    for count, k in ((1, 1), (3, 2.5)):
        out = make(np.full(case.q.shape, -7.0), kind)
        more = dict(reuse=terms[:count], steps_since_update=k, out=out, return_lse=True)
        got, lse = fo.attention(
            case.q, case.k, case.v, case.symbols(**lengths), backend=backend, **more
        )
        assert got is out and np.isnan(numbers(lse)).sum() == np.isnan(expected_lse).sum()
        wanted = np.where(cached, forecast(terms[:count], k), expected)
        tolerance = case.tolerance() + EPSILON[kind[1]] * np.abs(forecast(terms[:count], k)).max()
        expect_close(out, np.where(np.isnan(wanted), -7, wanted), tolerance)
    assert cached.any() and (numbers(out)[1, 100:] == -7).all()


def test_reuse_without_out(backend, rng):
    case = Case(rng, (1, 130, 130, 2, 2, 64, 64, 64, 0, "none"))
    terms = rng.standard_normal((2, *case.q.shape)).astype(np.float32)
    tensors = case.q, case.k, case.v, case.symbols()
    out = fo.attention(*tensors, reuse=terms, steps_since_update=3, backend=backend)
    given = np.zeros_like(case.q)
    fo.attention(*tensors, reuse=list(terms), steps_since_update=3, out=given, backend=backend)
    np.testing.assert_array_equal(out, given)


def test_errors_of_reuse(rng):
    case = Case(rng, (1, 130, 130, 2, 2, 64, 64, 64, 0, "none"))
    tensors, half = (case.q, case.k, case.v, case.symbols()), case.q.astype(np.float16)
    with pytest.raises(ValueError, match="attention: reuse has 4 terms, allowed are up to 3"):
        fo.attention(*tensors, reuse=[case.q] * 4)
    with pytest.raises(ValueError, match=r"attention: reuse.terms\[1\] is f16, expected f32"):
        fo.attention(*tensors, reuse=[case.q, half])
    with pytest.raises(ValueError, match=r"attention: reuse\[0\] has 3 axes, need 4"):
        fo.attention(*tensors, reuse=[case.q[0]])
    with pytest.raises(ValueError, match=r"attention: reuse.coefficients\[1\] is inf"):
        fo.attention(*tensors, reuse=[case.q] * 2, steps_since_update=math.inf)
    term = np.zeros_like(case.q)
    with pytest.raises(ValueError, match=r"attention: out overlaps reuse.terms\[0\]"):
        fo.attention(*tensors, reuse=[term], out=term)


def test_strided_inputs_and_output(backend, rng):
    case = Case(rng, (2, 200, 200, 2, 2, 64, 64, 64, 0, "none"))
    qkv = np.stack([case.q, case.k, case.v], axis=3)  # [batch, tokens, heads, 3, head_dim]
    q, k, v = (qkv[:, :, :, i] for i in range(3))
    wide = np.full((2, 200, 2, 128), -7, np.float32)
    fo.attention(q, k, v, case.symbols(), out=wide[..., 64:], backend=backend)
    expected, _ = case.expected()
    expect_close(wide[..., 64:], np.where(np.isnan(expected), -7, expected), case.tolerance())
    assert (wide[..., :64] == -7).all()


def test_symbols_serve_sequences_of_several_lengths(backend, rng):
    for num_tokens in (257, 300, 320):  # all of 5 blocks of 64
        case = Case(rng, (1, num_tokens, num_tokens, 2, 2, 64, 64, 64, 0, "none"))
        if num_tokens == 257:
            symbols, first = case.symbols(), case
        case.cache, case.skip = first.cache, first.skip
        out, lse = fo.attention(case.q, case.k, case.v, symbols, return_lse=True, backend=backend)
        case.expect(out, lse, *case.expected())


@needs_torch
def test_torch_inference_with_parameters_and_views(rng):
    import torch

    q = torch.randn(1, 2, 100, 64, requires_grad=True)  # heads before tokens
    with torch.no_grad():
        seen = q.transpose(1, 2)
        out = fo.attention(seen, seen, seen)
        expected = torch.nn.functional.scaled_dot_product_attention(q, q, q).transpose(1, 2)
    expect_close(out, numbers(expected), attention_tolerance(seen, seen, seen, "float32"))
    with pytest.raises(ValueError, match="attention: q requires grad"):
        fo.attention(seen.detach().requires_grad_(), seen, seen)


def test_worked_example_of_the_policy():
    """Spec 5.9, case A: attention values."""
    t, d = np.arange(26)[:, None, None], np.arange(4)[None, None, :]
    h, beta = np.arange(2)[None, :, None], np.arange(26)[:, None, None] // 4
    q = (((3 * beta**2 + 5 * h + 7 * d * beta + 2 * d + 4 * h * d * beta) % 13) - 6) / 4
    q = q + (((t + d) % 3) - 1) / 8
    k = (((5 * beta**2 + 2 * h + 3 * d * beta + 4 * d + 6 * h * beta) % 11) - 5) / 4
    k = k + (((t + 2 * d) % 3) - 1) / 8
    v = (((3 * t + h + 2 * d) % 7) - 3) / 4 + np.zeros_like(q)
    q, k, v = (x.astype(np.float32)[None] for x in (q, k, v))
    np.testing.assert_array_equal(q[0, 0, 0], [-1.625, -1, -0.375, -0.125])
    backend = fo.Backend("reference")
    symbols, *_ = fo.policy(q, k, 0.5, 0.1, 4, 4, 8, "first", backend=backend)
    out = fo.attention(q, k, v, symbols, scale=0.5, backend=backend)[0]
    np.testing.assert_allclose(out[8, 0], [0.0399, -0.0335, -0.0473, 0.0408], atol=1e-4)
    np.testing.assert_allclose(out[25, 1], [0.0668, -0.0421, 0.0511, -0.0891], atol=1e-4)
    np.testing.assert_allclose(out[0, 0], [-0.0648, 0.0335, -0.0147, 0.0349], atol=1e-4)
