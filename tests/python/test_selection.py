"""fo.policy where symbols stay in the memory of the backend, and symbols that are renewed.

The default builders of a host backend read words back by themselves, so what a GPU does here runs
on any backend (test_cuda_policy.py has the GPU).
"""

import numpy as np
import pytest

import flashomni as fo
from flashomni import _policy, _symbols
from support import expect_close, gemm_tolerance

OPTIONS = dict(
    tau_q=0.5, tau_kv=0.3, block_q=64, block_kv=64, text_tokens=100, text_position="first"
)


class Case:
    def __init__(self, rng, backend):
        self.backend = backend
        self.q, self.k, self.v = rng.standard_normal((3, 2, 700, 4, 32), dtype=np.float32)
        self.w = rng.standard_normal((48, 128), dtype=np.float32)
        self.w_q = rng.standard_normal((128, 128), dtype=np.float32)
        self.options = OPTIONS | dict(seq_len=[700, 500], backend=backend)

    def select(self, turn=0, **more):
        return fo.policy(np.roll(self.q, turn, axis=1), self.k, **self.options | more)

    def attend(self, symbols):
        return fo.attention(self.q, self.k, self.v, symbols, return_lse=True, backend=self.backend)

    def rows(self, turn=0):
        return np.roll(self.q, turn, axis=1).reshape(2, 700, 128)


@pytest.fixture
def stays(monkeypatch):
    """Symbols stay where q lies, and whoever fetches them is an error; stays() lets them go."""
    monkeypatch.setattr(_policy, "_is_on_device", lambda call: True)

    def refuse(self, words):
        raise AssertionError("the symbols were brought to the host")

    fetch = _symbols.Symbols._fetch
    monkeypatch.setattr(_symbols.Symbols, "_fetch", refuse)
    return lambda: monkeypatch.setattr(_symbols.Symbols, "_fetch", fetch)


def on_host(monkeypatch):
    monkeypatch.setattr(_policy, "_is_on_device", lambda call: False)


def assert_same(symbols, expected):
    for bits, right in zip(symbols.to_masks(), expected.to_masks()):
        np.testing.assert_array_equal(bits, right)


@pytest.mark.parametrize("options", [{}, dict(scope="layer"), dict(sim_threshold=0.016)])
def test_what_stays_is_what_the_host_selects(backend, rng, stays, monkeypatch, options):
    case = Case(rng, backend)
    result = case.select(**options)
    on_host(monkeypatch)
    expected = case.select(**options)
    for name in ("c_score", "g_score"):
        assert getattr(result, name).shape == (2, 4, 12)
        np.testing.assert_allclose(getattr(result, name), getattr(expected, name), rtol=1e-5)
    stays()
    assert_same(result.symbols, expected.symbols)
    assert result.symbols.stats().density == expected.symbols.stats().density < 1
    official, right = result.symbols.to_official(), expected.symbols.to_official()
    assert official.skip.tobytes() == right.skip.tobytes()
    assert repr(result.symbols) == repr(expected.symbols)


def test_operators_take_what_stays(backend, rng, stays, monkeypatch):
    case = Case(rng, backend)
    symbols = case.select().symbols
    more = dict(num_heads=4, backend=backend)
    out = [*case.attend(symbols), fo.gemm_q(case.rows(), case.w_q, symbols, **more)]
    out.append(fo.gemm_o_update(case.rows(), case.w, symbols, backend=backend)[0])
    text = fo.gemm_q(case.rows()[:, :100], case.w_q, symbols, **more)
    on_host(monkeypatch)
    chosen = case.select().symbols
    expected = [*case.attend(chosen), fo.gemm_q(case.rows(), case.w_q, chosen, **more)]
    expected.append(fo.gemm_o_update(case.rows(), case.w, chosen, backend=backend)[0])
    for actual, right in zip(out, expected):
        np.testing.assert_array_equal(actual, right)
    np.testing.assert_array_equal(text, expected[2][:, :100])


def test_another_backend_gets_them_from_the_host(rng, stays, monkeypatch):
    case = Case(rng, fo.Backend("reference"))
    symbols = case.select().symbols
    expected = case.attend(symbols)
    other = Case(rng, fo.Backend("cpu"))
    other.q, other.k, other.v = case.q, case.k, case.v
    stays()
    np.testing.assert_allclose(other.attend(symbols)[0], expected[0], atol=1e-5)


def test_they_serve_the_lengths_they_were_chosen_for(rng, backend, stays):
    case = Case(rng, backend)
    symbols = fo.policy(case.q, case.k, **OPTIONS, backend=backend).symbols
    short = [x[:, :690] for x in (case.q, case.k, case.v)]
    with pytest.raises(ValueError, match="690 and 690 tokens, but symbols were chosen for 700 and"):
        fo.attention(*short, symbols, backend=backend)
    with pytest.raises(ValueError, match="attention: k has 600 tokens, that is 10 blocks"):
        fo.attention(case.q, case.k[:, :600], case.v[:, :600], symbols, backend=backend)


@pytest.mark.parametrize("device", [True, False])
def test_renewed_symbols_are_the_new_choice(backend, rng, stays, monkeypatch, device):
    case = Case(rng, backend)
    if not device:
        on_host(monkeypatch)
    symbols = case.select().symbols
    first = case.attend(symbols)
    plans = [kept.plan for kept in symbols._plans.values()]
    renewed = case.select(turn=150, symbols=symbols)
    assert renewed.symbols is symbols
    out = case.attend(symbols)
    assert [kept.plan for kept in symbols._plans.values()] == plans
    expected = case.select(turn=150)
    np.testing.assert_array_equal(renewed.c_score, expected.c_score)
    for actual, right in zip(out, case.attend(expected.symbols)):
        np.testing.assert_array_equal(actual, right)
    assert (np.isnan(first[1]) != np.isnan(out[1])).any()
    stays()
    assert_same(symbols, expected.symbols)


def test_what_was_fetched_before_is_fetched_anew(backend, rng, stays):
    case = Case(rng, backend)
    symbols = case.select().symbols
    stays()
    first = symbols.to_masks()
    case.select(turn=150, symbols=symbols)
    assert_same(symbols, case.select(turn=150).symbols)
    assert (symbols.to_masks()[1] != first[1]).any()


def test_two_symbols_in_turn_serve_the_bias_cache(backend, rng, stays, monkeypatch):
    """Updates whose symbols change, on words of two Symbols, give what new symbols give."""
    case = Case(rng, backend)

    def updates(select):
        cache, results = None, []
        for turn, before in ((0, None), (150, None), (150, None), (300, None)):
            symbols = select(turn)
            out, cache = fo.gemm_o_update(
                case.rows(turn), case.w, symbols, bias_cache=cache, order=2, backend=backend
            )
            results += [out, *(term.copy() for term in cache.terms), cache.valid_order.copy()]
            results.append(fo.gemm_o_dispatch(case.rows(7), case.w, cache, backend=backend))
        return results

    turns = [case.select().symbols, case.select().symbols]

    def renew(turn):
        turns.reverse()
        return case.select(turn, symbols=turns[0]).symbols

    actual = updates(renew)
    on_host(monkeypatch)
    expected = updates(lambda turn: case.select(turn).symbols)
    assert any((order == 1).any() for order in expected[4::6])
    for value, right in zip(actual, expected):
        np.testing.assert_array_equal(value, right)


def test_the_first_update_may_have_had_masks(backend, rng, stays):
    case = Case(rng, backend)
    cache = rng.integers(0, 2, (2, 4, 12), np.uint8)
    text = dict(text_tokens=100, text_position="first")
    masks = fo.Symbols.from_masks(cache, block_q=64, seq_len=[700, 500], num_tokens=700, **text)
    more = dict(order=1, backend=backend)
    _, bias_cache = fo.gemm_o_update(case.rows(), case.w, masks, **more)
    symbols = case.select().symbols
    out, _ = fo.gemm_o_update(
        case.rows(), case.w, symbols, bias_cache=bias_cache, backend=backend
    )
    same = (cache == symbols_cache(stays, symbols)).all(axis=1)
    valid = np.array([[True] * 12, [i < 9 for i in range(12)]])  # 500 tokens end in block 8
    np.testing.assert_array_equal(bias_cache.valid_order[valid], same[valid])
    expect_close(out[0], case.rows()[0] @ case.w.T, gemm_tolerance(case.rows(), case.w, "float32"))


def symbols_cache(stays, symbols):
    stays()
    return symbols.to_masks()[0]


def test_errors(backend, rng, stays):
    case = Case(rng, backend)
    symbols = case.select().symbols
    with pytest.raises(ValueError, match="policy: symbols are Blocks.*, expected Blocks.*"):
        case.select(symbols=symbols, block_q=32)
    with pytest.raises(ValueError, match="policy: symbols are Blocks.*, expected Blocks.*"):
        case.select(symbols=symbols, seq_len=[700, 400])
    _, cache = fo.gemm_o_update(case.rows(), case.w, symbols, backend=backend)
    case.select(symbols=symbols)
    for op in ("gemm_o_dispatch", "gemm_o_update"):
        arguments = dict(bias_cache=cache, backend=backend)
        if op == "gemm_o_update":
            arguments["symbols"] = symbols
        with pytest.raises(ValueError, match=f"{op}: the symbols of bias_cache were renewed"):
            getattr(fo, op)(case.rows(), case.w, **arguments)
