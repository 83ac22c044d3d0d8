"""fo.gemm_q, fo.gemm_o_update and fo.gemm_o_dispatch against projections in float64."""

import numpy as np
import pytest

import flashomni as fo
import oracle
from support import KINDS, expect_close, gemm_tolerance, make, numbers, same_kind

F32 = ("numpy", "float32")


class Case:
    """A projection of `rows` rows behind `offset` tokens, heads of `dim` features."""

    def __init__(self, rng, *, rows=200, heads=3, dim=32, width=40, offset=0, kind=F32):
        self.kind, self.heads = kind, heads
        self.row_blocks = oracle.block_slices(rows, 64)
        blocks_before = -(-offset // 64)
        self.cache = rng.integers(0, 2, (2, heads, blocks_before + len(self.row_blocks)), np.uint8)
        self.live = oracle.live_rows(self.cache[:, :, blocks_before:], self.row_blocks, rows)
        self.symbols = fo.Symbols.from_masks(self.cache, block_q=64)
        self.x = make(rng.standard_normal((2, rows, width)), kind)
        self.w_q = make(rng.standard_normal((heads * dim, width)), kind)
        self.o = make(rng.standard_normal((2, rows, heads * dim)), kind)
        self.w_o = make(rng.standard_normal((width, heads * dim)), kind)
        self.mlp = make(rng.standard_normal((2, rows, 48)), kind)
        self.w_o_mlp = make(rng.standard_normal((width, heads * dim + 48)), kind)
        self.bias_q = make(rng.standard_normal(heads * dim), kind)  # any dtype will do
        self.bias_o = make(rng.standard_normal(width), kind)

    def live_columns(self):
        return np.repeat(self.live, self.w_q.shape[0] // self.heads, axis=2)

    def cached_part(self, o, w, bias=0):
        return oracle.project_heads(numbers(o), numbers(w), ~self.live) + bias


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("offset", [0, 70])
def test_gemm_q(backend, rng, kind, offset):
    case = Case(rng, kind=kind, offset=offset)
    out = fo.gemm_q(
        case.x, case.w_q, case.symbols, case.bias_q, text_offset=offset, backend=backend
    )
    assert same_kind(out, kind)
    expected = oracle.project(numbers(case.x), numbers(case.w_q), numbers(case.bias_q))
    tolerance = gemm_tolerance(case.x, case.w_q, kind[1])
    expect_close(out, np.where(case.live_columns(), expected, 0), tolerance)


def test_gemm_q_keeps_what_is_not_computed(backend, rng):
    case = Case(rng)
    out = np.full((2, 200, 96), -7, np.float32)
    assert fo.gemm_q(case.x, case.w_q, case.symbols, out=out, backend=backend) is out
    expected = oracle.project(case.x, case.w_q)
    expected = np.where(case.live_columns(), expected, -7)
    expect_close(out, expected, gemm_tolerance(case.x, case.w_q, "float32"))
    assert (out[~case.live_columns()] == -7).all()


def test_gemm_q_without_symbols(backend, rng):
    case = Case(rng)
    out = fo.gemm_q(case.x, case.w_q, bias=case.bias_q, backend=backend)
    expected = oracle.project(case.x, case.w_q, case.bias_q)
    expect_close(out, expected, gemm_tolerance(case.x, case.w_q, "float32"))


def test_weights_of_any_strides(backend, rng):
    x, w = rng.standard_normal((1, 100, 64), np.float32), rng.standard_normal((64, 192), np.float32)
    for strided in (w.T, w[:, ::2].T, w.T[::-1]):
        copied = np.ascontiguousarray(strided)
        expected = fo.gemm_q(x, copied, backend=backend)
        np.testing.assert_array_equal(fo.gemm_q(x, strided, backend=backend), expected)


def test_gemm_q_of_a_part_of_the_sequence(backend, rng):
    """Text last: image rows alone, text rows alone, and all rows see the same symbols."""
    case = Case(rng, rows=230)
    q_blocks = oracle.block_slices(230, 64, 70, "last")
    cache = rng.integers(0, 2, (2, 3, len(q_blocks)), np.uint8)
    symbols = fo.Symbols.from_masks(
        cache, block_q=64, text_tokens=70, text_position="last", num_tokens=230
    )
    whole = fo.gemm_q(case.x, case.w_q, symbols, backend=backend)
    image = fo.gemm_q(case.x[:, :160], case.w_q, symbols, backend=backend)
    text = fo.gemm_q(case.x[:, 160:], case.w_q, symbols, text_offset=160, backend=backend)
    live = np.repeat(oracle.live_rows(cache, q_blocks, 230), 32, axis=2)
    expected = np.where(live, oracle.project(case.x, case.w_q), 0)
    tolerance = gemm_tolerance(case.x, case.w_q, "float32")
    expect_close(whole, expected, tolerance)
    expect_close(np.concatenate([image, text], axis=1), expected, tolerance)
    vague = fo.Symbols.from_masks(cache, block_q=64, text_tokens=70, text_position="last")
    with pytest.raises(ValueError, match="gemm_q: symbols with text last need num_tokens"):
        fo.gemm_q(case.x[:, :160], case.w_q, vague, backend=backend)


def test_gemm_q_lengths_of_items(backend, rng):
    case = Case(rng)
    symbols = fo.Symbols.from_masks(case.cache, block_q=64, seq_len=[200, 90])
    out = fo.gemm_q(case.x, case.w_q, symbols, backend=backend)
    live = oracle.live_rows(case.cache, case.row_blocks, 200, seq_len=[200, 90])
    expected = np.where(np.repeat(live, 32, axis=2), oracle.project(case.x, case.w_q), 0)
    expect_close(out, expected, gemm_tolerance(case.x, case.w_q, "float32"))


def test_gemm_q_norm_and_rotary_embedding(backend, rng):
    case = Case(rng)
    norm = rng.standard_normal(32).astype(np.float32)
    angle = rng.uniform(0, 6, (200, 16))
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    more = dict(norm_weight=norm, eps=1e-5, cos=cos, sin=sin, backend=backend)
    out = fo.gemm_q(case.x, case.w_q, case.symbols, case.bias_q, **more)
    y = oracle.project(case.x, case.w_q, case.bias_q).reshape(2, 200, 3, 32)
    y = y / np.sqrt((y**2).mean(axis=3, keepdims=True) + 1e-5) * norm
    even, odd = y[..., 0::2], y[..., 1::2]
    c, s = np.cos(angle)[:, None], np.sin(angle)[:, None]
    y = np.stack([even * c - odd * s, even * s + odd * c], axis=4).reshape(2, 200, 96)
    expect_close(out, np.where(case.live_columns(), y, 0), 1e-4)
    dense = fo.gemm_q(case.x, case.w_q, bias=case.bias_q, num_heads=3, **more)
    expect_close(dense, y, 1e-4)


def test_packed_weight(backend, rng):
    case = Case(rng)
    weight = fo.Weight(case.w_q, num_heads=3, backend=backend)
    assert weight.shape == (96, 40)
    packed = fo.gemm_q(case.x, weight, case.symbols, backend=backend)
    np.testing.assert_array_equal(
        packed, fo.gemm_q(case.x, case.w_q, case.symbols, backend=backend)
    )
    np.testing.assert_array_equal(
        fo.gemm_q(case.x, weight, backend=backend), fo.gemm_q(case.x, case.w_q, backend=backend)
    )
    half = fo.Weight(case.w_q, num_heads=3, dtype="float16", backend=backend)
    x = case.x.astype(np.float16)
    out = fo.gemm_q(x, half, case.symbols, backend=backend)
    expected = oracle.project(x, case.w_q.astype(np.float16))
    tolerance = gemm_tolerance(x, case.w_q, "float16")
    expect_close(out, np.where(case.live_columns(), expected, 0), tolerance)
    alike = fo.Backend(backend.name, num_threads=1)
    np.testing.assert_array_equal(packed, fo.gemm_q(case.x, weight, case.symbols, backend=alike))
    other = fo.Backend("cpu" if backend.name == "reference" else "reference")
    with pytest.raises(ValueError, match="gemm_q: w was packed for another backend"):
        fo.gemm_q(case.x, weight, case.symbols, backend=other)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("offset", [0, 70])
def test_gemm_o_update_and_dispatch(backend, rng, kind, offset):
    case = Case(rng, kind=kind, offset=offset)
    more = dict(text_offset=offset, backend=backend)
    out, cache = fo.gemm_o_update(case.o, case.w_o, case.symbols, case.bias_o, **more)
    tolerance = gemm_tolerance(case.o, case.w_o, kind[1])
    assert same_kind(out, kind) and cache.order == 0
    assert same_kind(cache.terms[0], (kind[0], "float32"))
    o, w, bias = numbers(case.o), numbers(case.w_o), numbers(case.bias_o)
    expect_close(out, oracle.project(o, w, bias), tolerance)
    remembered = case.cached_part(o, w, bias)
    expect_close(cache.terms[0], remembered, gemm_tolerance(case.o, case.w_o, "float32"))

    fresh = make(np.random.default_rng(1).standard_normal(case.o.shape), kind)
    out = fo.gemm_o_dispatch(fresh, case.w_o, cache, **more)
    live = oracle.project_heads(numbers(fresh), w, case.live)
    assert same_kind(out, kind)
    expect_close(out, remembered + live, 2 * tolerance)


def test_dispatch_never_reads_cached_heads(backend, rng):
    case = Case(rng)
    _, cache = fo.gemm_o_update(case.o, case.w_o, case.symbols, backend=backend)
    o = np.where(np.repeat(case.live, 32, axis=2), case.o, np.nan).astype(np.float32)
    out = fo.gemm_o_dispatch(o, case.w_o, cache, backend=backend)
    tolerance = gemm_tolerance(case.o, case.w_o, "float32")
    expect_close(out, oracle.project(case.o, case.w_o), tolerance)


def test_mlp_part_stays_out_of_the_bias_cache(backend, rng):
    case = Case(rng)
    w, both = case.w_o_mlp, np.concatenate([case.o, case.mlp], axis=2)
    out, cache = fo.gemm_o_update(
        case.o, w, case.symbols, case.bias_o, mlp=case.mlp, backend=backend
    )
    tolerance = gemm_tolerance(both, w, "float32")
    expect_close(out, oracle.project(both, w, case.bias_o), tolerance)
    remembered = case.cached_part(case.o, w, case.bias_o)
    expect_close(cache.terms[0], remembered, tolerance)
    fresh = rng.standard_normal(case.mlp.shape).astype(np.float32)
    out = fo.gemm_o_dispatch(case.o, w, cache, mlp=fresh, backend=backend)
    expected = oracle.project(np.concatenate([case.o, fresh], axis=2), w, case.bias_o)
    expect_close(out, expected, 2 * gemm_tolerance(np.abs(both) + 4, w, "float32"))


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_gemm_o_adds_to_a_residual(backend, rng, kind, gated):
    """An update and a dispatch, each with the MLP part; the result is not rounded before."""
    case = Case(rng, kind=kind)
    w, both = numbers(case.w_o_mlp), np.concatenate([numbers(case.o), numbers(case.mlp)], axis=2)
    gate = make(rng.standard_normal(40), kind) if gated else None  # any dtype will do
    factor = numbers(gate) if gated else 1
    start = rng.standard_normal((2, 200, 40)).astype(np.float32)
    residual = make(start, (kind[0], "float32"))
    more = dict(mlp=case.mlp, residual=residual, gate=gate, backend=backend)
    got, cache = fo.gemm_o_update(case.o, case.w_o_mlp, case.symbols, case.bias_o, **more)
    assert got is residual
    value = oracle.project(both, w, numbers(case.bias_o))
    tolerance = 4 * gemm_tolerance(both, w, "float32")  # a gate is at most about 4
    expect_close(residual, start + factor * value, tolerance)
    got = fo.gemm_o_dispatch(case.o, case.w_o_mlp, cache, **more)
    assert got is residual
    expect_close(residual, start + 2 * factor * value, 3 * tolerance)


def test_differences_and_forecast(backend, rng):
    """Three updates, six and five steps apart; the symbols of some row blocks change at the
    second, so that only the others have differences of first and then second order."""
    case = Case(rng, rows=256)
    o = [rng.standard_normal(case.o.shape).astype(np.float32) for _ in range(3)]
    before = case.cache.copy()
    before[:, 0, 1] ^= 1  # row block 1 differs from case.cache in one head
    first = fo.Symbols.from_masks(before, block_q=64)
    w, b = case.w_o, case.bias_o
    _, cache = fo.gemm_o_update(o[0], w, first, b, order=2, backend=backend)
    same = fo.gemm_o_update(
        o[1], w, case.symbols, b, bias_cache=cache, steps_since_update=6, backend=backend
    )[1]
    assert same is cache and cache.symbols is case.symbols and cache.order == 2
    np.testing.assert_array_equal(cache.valid_order, [[1, 0, 1, 1]] * 2)
    fo.gemm_o_update(
        o[2], w, case.symbols, b, bias_cache=cache, steps_since_update=5, backend=backend
    )
    np.testing.assert_array_equal(cache.valid_order, [[2, 1, 2, 2]] * 2)

    f = [case.cached_part(x, w) for x in o]  # the constant bias drops out of differences
    first_order = [(f[1] - f[0]) / 6, (f[2] - f[1]) / 5]
    second_order = (first_order[1] - first_order[0]) / 5
    tolerance = 4 * gemm_tolerance(np.abs(o[0]) + 4, w, "float32")
    expect_close(cache.terms[0], f[2] + b, tolerance)
    expect_close(cache.terms[1], first_order[1], tolerance)
    of_block_1 = np.zeros(f[0].shape, bool)
    of_block_1[:, 64:128] = True
    expect_close(cache.terms[2], second_order, tolerance, ignore=of_block_1)

    forecast = f[2] + b + 3 * first_order[1] + np.where(of_block_1, 0, 4.5 * second_order)
    out = fo.gemm_o_dispatch(o[2], w, cache, steps_since_update=3, backend=backend)
    expect_close(out, forecast + oracle.project_heads(o[2], w, case.live), 8 * tolerance)


def test_bias_cache_from_elsewhere(backend, rng):
    case = Case(rng)
    terms = [rng.standard_normal((2, 200, 40)).astype(np.float32) for _ in range(2)]
    valid_order = np.array([[1, 0, 1, 0]] * 2, np.uint8)
    cache = fo.BiasCache(terms, case.symbols, valid_order)
    out = fo.gemm_o_dispatch(case.o, case.w_o, cache, steps_since_update=2, backend=backend)
    use = np.repeat(valid_order, 64, axis=1)[:, :200, None]
    expected = terms[0] + 2 * use * terms[1]
    expected = expected + oracle.project_heads(case.o, case.w_o, case.live)
    expect_close(out, expected, 2 * gemm_tolerance(case.o, case.w_o, "float32"))


def test_integer_example():
    """Spec 4.5: three heads of two features, two tokens, heads 0 and 2 cached."""
    o = np.array([[[1, 2, 0, 1, 2, 0], [3, 4, 1, 0, 0, 2]]], np.float32)
    w = np.concatenate([np.eye(2), [[1, 1], [0, 1]], [[2, 0], [1, 1]]]).T.astype(np.float32)
    bias = np.array([1, -1], np.float32)
    symbols = fo.Symbols.from_masks(np.array([[[0], [1], [0]]], np.uint8), block_q=2)
    backend = fo.Backend("reference")
    out, cache = fo.gemm_o_update(o, w, symbols, bias, backend=backend)
    np.testing.assert_array_equal(cache.terms[0], [[[6, 1], [6, 5]]])
    np.testing.assert_array_equal(out, [[[6, 2], [7, 6]]])
    o[:, :, 2:4] = [[1, 1], [2, 0]]
    out = fo.gemm_o_dispatch(o, w, cache, backend=backend)
    np.testing.assert_array_equal(out, [[[7, 3], [8, 7]]])


def test_errors(rng):
    case = Case(rng)
    with pytest.raises(ValueError, match="gemm_q: w has 95 output features, no multiple of 3"):
        fo.gemm_q(case.x, case.w_q[:95], case.symbols)
    with pytest.raises(ValueError, match="gemm_q: 300 rows from token 0 on end in block 5 of 64"):
        fo.gemm_q(np.zeros((2, 300, 40), np.float32), case.w_q, case.symbols)
    with pytest.raises(ValueError, match="gemm_q: x has 2 axes, need 3"):
        fo.gemm_q(case.x[0], case.w_q, case.symbols)
    with pytest.raises(ValueError, match="gemm_q: num_heads is 2, symbols have 3"):
        fo.gemm_q(case.x, case.w_q, case.symbols, num_heads=2)
    with pytest.raises(ValueError, match="gemm_o_update: order is 3, allowed are 0, 1 and 2"):
        fo.gemm_o_update(case.o, case.w_o, case.symbols, order=3)
    with pytest.raises(ValueError, match="gemm_o_update: w is i64"):
        fo.gemm_o_update(case.o, case.w_o.astype(np.int64), case.symbols)
    with pytest.raises(ValueError, match="Weight: dtype is 'f32', allowed are float32, bfloat16"):
        fo.Weight(case.w_o, dtype="f32")
    _, cache = fo.gemm_o_update(case.o, case.w_o, case.symbols)
    with pytest.raises(ValueError, match="gemm_o_update: order is 1, bias_cache has 0"):
        fo.gemm_o_update(case.o, case.w_o, case.symbols, bias_cache=cache, order=1)
    with pytest.raises(ValueError, match="gemm_o_dispatch: o is .* expected"):
        fo.gemm_o_dispatch(case.o[..., :64], case.w_o, cache)
    with pytest.raises(ValueError, match="bias_cache has 4 terms, allowed are 1 to 3"):
        fo.gemm_o_dispatch(case.o, case.w_o, fo.BiasCache(cache.terms * 4, case.symbols))
    residual = np.zeros((2, 200, 40), np.float32)
    for op, last in ((fo.gemm_o_update, case.symbols), (fo.gemm_o_dispatch, cache)):
        name, more = op.__name__, (case.o, case.w_o, last)
        with pytest.raises(ValueError, match=f"{name}: out and residual are both given"):
            op(*more, residual=residual, out=residual.copy())
        with pytest.raises(ValueError, match=f"{name}: gate is given without residual"):
            op(*more, gate=residual[0, 0])
        with pytest.raises(ValueError, match=f"{name}: residual is f16, expected f32"):
            op(*more, residual=residual.astype(np.float16))
        with pytest.raises(ValueError, match=f"{name}: gate is .*, expected"):
            op(*more, residual=residual, gate=residual[0, 0, :39])
