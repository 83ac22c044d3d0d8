"""fo.policy on a GPU: symbols that stay there, and what uses them."""

import numpy as np
import pytest

import flashomni as fo
from gpu import BF16, LONG, torch
from support import make, numbers, same_kind


def test_policy_selects_what_it_selects_on_the_host(rng):
    """Bits of values that almost tie may differ."""
    q, k = (make(rng.standard_normal((2, 900, 4, 64)), BF16) for _ in range(2))
    more = dict(tau_q=0.5, tau_kv=0.3, block_q=64, block_kv=64)
    more |= dict(text_tokens=100, text_position="first", seq_len=[900, 700])
    result, expected = fo.policy(q, k, **more), fo.policy(q.cpu(), k.cpu(), **more)
    assert same_kind(result.c_score, ("cuda", "float32"))
    for name in ("c_score", "g_score"):
        score, right = numbers(getattr(result, name)), numbers(getattr(expected, name))
        np.testing.assert_allclose(score, right, rtol=1e-3, atol=1e-6)
    for bits, right in zip(result.symbols.to_masks(), expected.symbols.to_masks()):
        assert right.mean() < 0.95 and (bits != right).mean() < 0.01


class SelectedLayer:
    """A layer whose symbols the policy chooses, and what uses them."""

    options = dict(tau_q=0.5, tau_kv=0.3, text_tokens=130, text_position="first")

    def __init__(self, rng):
        self.q, self.k, self.v = (make(rng.standard_normal((1, 1100, 6, 64)), BF16) for _ in "qkv")
        self.w = make(rng.standard_normal((384, 384)) / 16, BF16)
        self.out = torch.zeros_like(self.q)

    def select(self, symbols=None):
        return fo.policy(self.q, self.k, symbols=symbols, **self.options)

    def attend(self, symbols):
        self.out.zero_()
        fo.attention(self.q, self.k, self.v, symbols, out=self.out)
        return self.out


@pytest.fixture
def fetches(monkeypatch):
    """How often symbols were brought to the host."""
    counted, fetch = [], fo.Symbols._fetch
    monkeypatch.setattr(fo.Symbols, "_fetch", lambda *a: (counted.append(1), fetch(*a))[1])
    return counted


def test_symbols_of_the_policy_stay_on_the_gpu(rng, fetches):
    layer = SelectedLayer(rng)
    symbols, c_score, g_score = layer.select()
    assert same_kind(c_score, ("cuda", "float32")) and same_kind(g_score, ("cuda", "float32"))
    x = layer.q.reshape(1, 1100, 384)

    def results(symbols):
        yield layer.attend(symbols).clone()
        yield fo.attention(layer.q, layer.k, layer.v, symbols, reuse=[layer.v, layer.k])
        yield fo.gemm_q(x, layer.w, symbols)
        yield fo.gemm_q(x[:, :130].contiguous(), layer.w, symbols)
        out, cache = fo.gemm_o_update(x, layer.w, symbols, order=1)
        yield from (out, cache.terms[0])
        yield fo.gemm_o_dispatch(x, layer.w, cache)

    there = list(results(symbols))
    assert not fetches
    masks, stats = symbols.to_masks(), symbols.stats()
    assert len(fetches) == 1 and 0.2 < stats.density < 0.9
    text = dict(text_tokens=130, text_position="first", num_tokens=1100)
    by_masks = fo.Symbols.from_masks(*masks, **text)
    for actual, right in zip(there, results(by_masks)):
        assert torch.equal(actual, right)


def test_renewed_symbols_queue_and_return(rng, fetches):
    layer, side = SelectedLayer(rng), torch.cuda.Stream()
    fresh = make(rng.standard_normal(tuple(layer.q.shape)), BF16)
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        symbols = layer.select().symbols
        first = layer.attend(symbols).clone()
        side.synchronize()
        torch.cuda._sleep(LONG)
        layer.q.copy_(fresh)  # there only after the sleep
        assert layer.select(symbols).symbols is symbols
        layer.attend(symbols)
        assert not side.query() and not fetches, "the policy or attention waited for the GPU"
        side.synchronize()
        out = layer.out.clone()
        expected = layer.attend(layer.select().symbols)
        side.synchronize()
    assert torch.equal(out, expected) and not torch.equal(out, first)


def test_policy_and_attention_in_a_cuda_graph(rng, fetches):
    layer, side, graph = SelectedLayer(rng), torch.cuda.Stream(), torch.cuda.CUDAGraph()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        symbols = layer.select().symbols
        layer.attend(layer.select(symbols).symbols)  # makes plans and scratch of this stream
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=side):
        layer.attend(layer.select(symbols).symbols)
    for _ in range(3):
        layer.q.copy_(make(rng.standard_normal(tuple(layer.q.shape)), BF16))
        expected = layer.attend(layer.select().symbols).clone()
        layer.out.zero_()
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(layer.out, expected) and expected.abs().sum() > 0
    assert not fetches
    with pytest.raises(RuntimeError, match="policy: new symbols cannot be made while a CUDA graph"):
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            layer.select()
