"""The operators on a GPU's torch tensors, where they lie."""

import numpy as np
import pytest

import flashomni as fo
import oracle
import test_attention
import test_gemm
from gpu import BF16, F16, torch
from support import (
    EPSILON,
    expect_close,
    gemm_tolerance,
    make,
    numbers,
    same_kind,
)

KINDS = [pytest.param(BF16, id="bf16"), pytest.param(F16, id="f16")]

# as test_attention.SHAPES, with the head_dims and blocks that the GPU has kernels for
SHAPES = [
    pytest.param((1, 256, 256, 2, 2, 128, 128, 128, 0, "none"), id="whole-blocks"),
    pytest.param((2, 1000, 1000, 3, 3, 64, 128, 128, 0, "none"), id="ragged-tail"),
    pytest.param((1, 129, 129, 1, 1, 128, 128, 128, 0, "none"), id="one-token-tail"),
    pytest.param((1, 1, 1, 3, 3, 64, 128, 128, 0, "none"), id="one-token"),
    pytest.param((2, 500, 700, 6, 2, 64, 128, 64, 0, "none"), id="cross-gqa"),
    pytest.param((1, 700, 700, 24, 8, 128, 128, 128, 70, "first"), id="gqa-text-first"),
    pytest.param((1, 530, 530, 5, 5, 64, 64, 64, 70, "last"), id="text-last"),
]


def projection_case(rng, kind=BF16, **more):
    return test_gemm.Case(rng, **dict(heads=3, dim=64, width=96, kind=kind) | more)


def filled(tensor, value):
    return torch.full_like(tensor, value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_attention_with_random_masks(rng, shape, kind):
    case = test_attention.Case(rng, shape, kind)
    out, lse = fo.attention(case.q, case.k, case.v, case.symbols(), return_lse=True)
    assert same_kind(out, kind) and same_kind(lse, ("cuda", "float32"))
    case.expect(out, lse, *case.expected())


@pytest.mark.parametrize("kind", KINDS)
def test_attention_without_symbols(rng, kind):
    case = test_attention.Case(rng, (2, 300, 200, 4, 2, 64, 128, 128, 0, "none"), kind)
    everything = dict(cache=np.ones_like(case.cache), skip=np.ones_like(case.skip))
    out, lse = fo.attention(case.q, case.k, case.v, return_lse=True)
    case.expect(out, lse, *case.expected(**everything))


def test_attention_keeps_what_is_not_computed(rng):
    case = test_attention.Case(rng, (3, 500, 460, 4, 2, 128, 128, 128, 0, "none"), BF16)
    lengths = dict(seq_len=[500, 170, 0], kv_len=[165, 460, 0])
    out = filled(case.q, -7)
    assert fo.attention(case.q, case.k, case.v, case.symbols(**lengths), out=out) is out
    expected, _ = case.expected(**lengths)
    untouched = np.isnan(expected)
    expect_close(out, np.where(untouched, -7, expected), case.tolerance())
    assert untouched.any() and (numbers(out)[untouched] == -7).all()


def test_rows_with_no_key_and_all_cached(rng):
    case = test_attention.Case(rng, (1, 300, 300, 2, 2, 64, 64, 64, 0, "none"), BF16)
    case.cache[:, 0], case.cache[:, 1], case.skip[:] = 1, 0, 0
    out = filled(case.q, -7)
    _, lse = fo.attention(case.q, case.k, case.v, case.symbols(), out=out, return_lse=True)
    assert (out[:, :, 0] == 0).all() and (out[:, :, 1] == -7).all()
    assert torch.isneginf(lse[:, 0]).all() and torch.isnan(lse[:, 1]).all()


def test_attention_on_views(rng):
    """Slices of one projection, heads before tokens, and a part of a wider output."""
    case = test_attention.Case(rng, (2, 300, 300, 3, 3, 64, 64, 64, 0, "none"), BF16)
    expected, _ = case.expected()
    expected = np.where(np.isnan(expected), -7, expected)
    fused = torch.stack([case.q, case.k, case.v], dim=2)
    turned = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (case.q, case.k, case.v))
    for q, k, v in (fused.unbind(2), turned):
        wide = torch.full((2, 300, 3, 128), -7.0, dtype=q.dtype, device=q.device)
        fo.attention(q, k, v, case.symbols(), out=wide[..., 64:])
        expect_close(wide[..., 64:], expected, case.tolerance())
        assert (wide[..., :64] == -7).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("term", ["float32", "own"])
@pytest.mark.parametrize("dim", [64, 128])
def test_cached_rows_become_the_forecast(rng, dim, term, kind):
    case = test_attention.Case(rng, (2, 700, 700, 4, 2, dim, 128, 128, 0, "none"), kind)
    terms = [
        make(rng.standard_normal(tuple(case.q.shape)), ("cuda", kind[1] if term == "own" else term))
        for _ in range(3)
    ]
    lengths = dict(seq_len=[700, 300])
    expected, _ = case.expected(**lengths)
    cached = np.isnan(expected)
    cached[1, 300:] = False
    out, value = filled(case.q, -7), test_attention.forecast(terms, 2)
    more = dict(reuse=terms, steps_since_update=2, out=out)
    assert fo.attention(case.q, case.k, case.v, case.symbols(**lengths), **more) is out
    wanted = np.where(cached, value, expected)
    tolerance = case.tolerance() + EPSILON[kind[1]] * np.abs(value).max()
    expect_close(out, np.where(np.isnan(wanted), -7, wanted), tolerance)
    assert cached.any() and (numbers(out)[1, 300:] == -7).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim, offset", [(64, 0), (64, 70), (128, 70)])
def test_gemm_q(rng, kind, dim, offset):
    case = projection_case(rng, kind, dim=dim, offset=offset)
    out = filled(make(np.zeros((2, 200, 3 * dim)), kind), -7)
    more = dict(text_offset=offset, out=out)
    assert fo.gemm_q(case.x, case.w_q, case.symbols, case.bias_q, **more) is out
    expected = oracle.project(numbers(case.x), numbers(case.w_q), numbers(case.bias_q))
    expected = np.where(case.live_columns(), expected, -7)
    expect_close(out, expected, gemm_tolerance(case.x, case.w_q, kind[1]))
    assert (numbers(out)[~case.live_columns()] == -7).all()


def test_gemm_q_norm_rotary_embedding_and_lengths(rng):
    case = projection_case(rng, dim=128)
    norm, angle = rng.standard_normal(128), rng.uniform(0, 6, (200, 64))
    parameters = dict(
        norm_weight=make(norm, BF16),
        cos=make(np.cos(angle), ("cuda", "float32")),
        sin=make(np.sin(angle), ("cuda", "float32")),
    )
    symbols = fo.Symbols.from_masks(case.cache, block_q=64, seq_len=[200, 90])
    out = fo.gemm_q(case.x, case.w_q, symbols, case.bias_q, eps=1e-5, **parameters)
    y = oracle.project(numbers(case.x), numbers(case.w_q), numbers(case.bias_q))
    y = y.reshape(2, 200, 3, 128)
    y = y / np.sqrt((y**2).mean(axis=3, keepdims=True) + 1e-5) * numbers(parameters["norm_weight"])
    even, odd, c, s = y[..., 0::2], y[..., 1::2], np.cos(angle)[:, None], np.sin(angle)[:, None]
    y = np.stack([even * c - odd * s, even * s + odd * c], axis=4).reshape(2, 200, 384)
    live = oracle.live_rows(case.cache, case.row_blocks, 200, seq_len=[200, 90])
    expected = np.where(np.repeat(live, 128, axis=2), y, 0)
    expect_close(out, expected, 2 * EPSILON["bfloat16"] * np.abs(y).max())


@pytest.mark.parametrize("term", ["float32", "own"])
@pytest.mark.parametrize("kind", KINDS)
def test_gemm_o_over_three_updates(rng, kind, term):
    """As test_gemm.test_differences_and_forecast, with the MLP part and either bias cache."""
    case = projection_case(rng, kind, rows=250)
    term = kind[1] if term == "own" else term
    o = [make(rng.standard_normal(tuple(case.o.shape)), kind) for _ in range(3)]
    before = case.cache.copy()
    before[:, 0, 1] ^= 1  # row block 1 differs from case.cache in one head
    first = fo.Symbols.from_masks(before, block_q=64)
    w, b, more = case.w_o_mlp, case.bias_o, dict(mlp=case.mlp)
    _, cache = fo.gemm_o_update(o[0], w, first, b, order=2, bias_cache_dtype=term, **more)
    assert all(same_kind(x, ("cuda", term)) for x in cache.terms)
    for value, steps in ((o[1], 6), (o[2], 5)):
        out, _ = fo.gemm_o_update(
            value, w, case.symbols, b, bias_cache=cache, steps_since_update=steps, **more
        )
    np.testing.assert_array_equal(numbers(cache.valid_order), [[2, 1, 2, 2]] * 2)

    both = torch.cat([o[2], case.mlp], dim=2)
    unit = gemm_tolerance(numbers(both), w, kind[1])
    expect_close(out, oracle.project(numbers(both), numbers(w), numbers(b)), unit)
    width = case.o.shape[2]
    w_heads, w_mlp = numbers(w)[:, :width], numbers(w)[:, width:]
    f = [case.cached_part(x, w_heads) for x in o]
    slopes = [(f[1] - f[0]) / 6, (f[2] - f[1]) / 5]
    unit = max(unit, 4 * EPSILON[term] * np.abs(f).max())
    expect_close(cache.terms[0], f[2] + numbers(b), unit)
    expect_close(cache.terms[1], slopes[1], unit)
    of_block_1 = np.zeros(f[0].shape, bool)
    of_block_1[:, 64:128] = True
    curve = np.where(of_block_1, 0, (slopes[1] - slopes[0]) / 5)
    expect_close(cache.terms[2], curve, unit, ignore=of_block_1)

    canary = filled(out, -7)
    fo.gemm_o_dispatch(o[2], w, cache, steps_since_update=3, out=canary, **more)
    forecast = f[2] + numbers(b) + 3 * slopes[1] + 4.5 * curve
    live = oracle.project_heads(numbers(o[2]), w_heads, case.live)
    expected = forecast + live + numbers(case.mlp) @ w_mlp.T
    expect_close(canary, expected, 8 * unit)


@pytest.mark.parametrize("kind", KINDS)
def test_gemm_o_adds_to_a_residual(rng, kind):
    case = projection_case(rng, kind, rows=250)
    w, both = numbers(case.w_o_mlp), np.concatenate([numbers(case.o), numbers(case.mlp)], axis=2)
    start, gate = rng.standard_normal((2, 250, 96)), make(rng.standard_normal(96), kind)
    residual = make(start, ("cuda", "float32"))
    more = dict(mlp=case.mlp, residual=residual, gate=gate)
    got, cache = fo.gemm_o_update(case.o, case.w_o_mlp, case.symbols, case.bias_o, **more)
    value = numbers(gate) * oracle.project(both, w, numbers(case.bias_o))
    tolerance = 4 * gemm_tolerance(both, w, "float32")
    assert got is residual
    expect_close(residual, start + value, tolerance)
    assert fo.gemm_o_dispatch(case.o, case.w_o_mlp, cache, **more) is residual
    expect_close(residual, start + 2 * value, 3 * tolerance)


def test_dispatch_never_reads_cached_heads(rng):
    case = projection_case(rng)
    _, cache = fo.gemm_o_update(case.o, case.w_o, case.symbols, bias_cache_dtype="bfloat16")
    live = torch.from_numpy(np.repeat(case.live, 64, axis=2)).cuda()
    o = torch.where(live, case.o, filled(case.o, np.nan))
    out = fo.gemm_o_dispatch(o, case.w_o, cache)
    expected = oracle.project(numbers(case.o), numbers(case.w_o))
    expect_close(out, expected, 3 * gemm_tolerance(case.o, case.w_o, "bfloat16"))


def test_weights_stay_where_they_are(rng):
    """Strided rows, another dtype, packed once or not; what is borrowed changes with the array."""
    case = projection_case(rng)
    expected = fo.gemm_q(case.x, case.w_q, case.symbols)
    wide = torch.cat([case.w_q, case.w_q], dim=1)
    for w in (wide[:, :96], case.w_q.float(), case.w_q.t().contiguous().t()):
        assert torch.equal(fo.gemm_q(case.x, w, case.symbols), expected)
    weight = fo.Weight(case.w_q, num_heads=3)
    on_host = fo.Weight(case.w_q.cpu(), num_heads=3, backend=fo.Backend("cuda"))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        assert torch.equal(fo.gemm_q(case.x, weight, case.symbols), expected)
        assert torch.equal(fo.gemm_q(case.x, on_host, case.symbols), expected)
    torch.cuda.current_stream().wait_stream(side)
    case.w_q.zero_()
    assert (fo.gemm_q(case.x, weight, case.symbols) == 0).all()


def test_what_has_no_kernel_is_one_sentence(rng):
    q = torch.randn(1, 200, 2, 64, device="cuda")
    with pytest.raises(NotImplementedError, match="attention: .* has no kernel for f32"):
        fo.attention(q, q, q)
    with pytest.raises(NotImplementedError, match="gemm_q: .* has no kernel for f32"):
        fo.gemm_q(q[:, :, 0], q[0, :64, 0], num_heads=1)
    half = torch.zeros(1, 200, 2, 96, device="cuda", dtype=torch.float16)
    with pytest.raises(NotImplementedError, match="no kernel for f16, head_dim 96"):
        fo.attention(half, half, half)
    odd = torch.zeros(1, 200, 2, 72, device="cuda", dtype=torch.float16)[..., 1:65]
    even = torch.zeros(1, 200, 2, 64, device="cuda", dtype=torch.float16)
    for tensors in ((odd, even, even), (even, odd, even), (even, even, even, odd)):
        with pytest.raises(NotImplementedError, match="no multiple of 16 bytes; copy it"):
            fo.attention(*tensors[:3], out=tensors[3] if len(tensors) > 3 else None)


def test_mixed_devices_and_dtypes(rng):
    case = test_attention.Case(rng, (1, 200, 200, 2, 2, 64, 64, 64, 0, "none"), BF16)
    q, k, v = case.q, case.k, case.v
    with pytest.raises(ValueError, match="attention: k is on cpu, expected cuda:0"):
        fo.attention(q, k.cpu(), v)
    with pytest.raises(ValueError, match="attention: v is on cuda:0, expected cpu"):
        fo.attention(q.cpu(), k.cpu(), v)
    with pytest.raises(ValueError, match="attention: out is on cpu, expected cuda:0"):
        fo.attention(q, k, v, out=q.cpu())
    with pytest.raises(ValueError, match="attention: k is f16, expected bf16"):
        fo.attention(q, k.half(), v)
    case = projection_case(rng)
    with pytest.raises(ValueError, match="gemm_q: w is on cpu, expected cuda:0; fo.Weight"):
        fo.gemm_q(case.x, case.w_q.cpu(), case.symbols)
    with pytest.raises(ValueError, match="gemm_q: bias is on cpu, expected cuda:0"):
        fo.gemm_q(case.x, case.w_q, case.symbols, case.bias_q.cpu())
    with pytest.raises(ValueError, match=r"gemm_o_update: terms\[0\] is f16, expected f32"):
        fo.gemm_o_update(case.o, case.w_o, case.symbols, bias_cache_dtype="float16")


def test_cupy_arrays(rng):
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    case = test_attention.Case(rng, (1, 300, 300, 2, 2, 64, 64, 64, 0, "none"), F16)
    torch.cuda.synchronize()
    with cupy.cuda.Stream(non_blocking=True) as stream:
        q, k, v = (cupy.from_dlpack(x) for x in (case.q, case.k, case.v))
        out, lse = fo.attention(q, k, v, case.symbols(), return_lse=True)
        stream.synchronize()
    assert isinstance(out, cupy.ndarray) and out.dtype == cupy.float16
    case.expect(torch.from_dlpack(out), torch.from_dlpack(lse), *case.expected())


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_the_current_device_stays(rng):
    case = test_attention.Case(rng, (1, 300, 300, 2, 2, 64, 64, 64, 0, "none"), BF16)
    expected = fo.attention(case.q, case.k, case.v, case.symbols())
    there = [x.to("cuda:1") for x in (case.q, case.k, case.v)]
    out = fo.attention(*there, case.symbols())
    assert out.device.index == 1 and torch.cuda.current_device() == 0
    assert torch.equal(out.cpu(), expected.cpu())
