"""The operators on a GPU: on the current stream, several at once, in CUDA graphs."""

import numpy as np
import pytest

import flashomni as fo
import test_attention
import test_gemm
from gpu import BF16, LONG, torch
from support import make


class DispatchStep:
    """GEMM-Q, attention and GEMM-O of one layer into buffers of its own."""

    def __init__(self, rng, tokens=600, heads=6, kv_heads=2, dim=64):
        width, blocks = heads * dim, -(-tokens // 128)
        self.heads_shape = (2, tokens, heads, dim)

        def draw(*shape):
            return make(rng.standard_normal(shape) / 4, BF16)

        self.x, self.w_q, self.w_o = draw(2, tokens, width), draw(width, width), draw(width, width)
        self.k, self.v = (draw(2, tokens, kv_heads, dim) for _ in range(2))
        cache = rng.integers(0, 2, (2, heads, blocks), np.uint8)
        skip = rng.integers(0, 2, (2, heads, blocks, blocks), np.uint8)
        self.symbols = fo.Symbols.from_masks(cache, skip, seq_len=[tokens, tokens - 90])
        self.q, self.o, self.out = (torch.zeros_like(self.x) for _ in range(3))
        first = draw(2, tokens, width)
        _, self.bias_cache = fo.gemm_o_update(
            first, self.w_o, self.symbols, order=1, bias_cache_dtype="bfloat16"
        )

    def project(self):
        fo.gemm_q(self.x, self.w_q, self.symbols, out=self.q)

    def attend(self):
        q, o = self.q.view(self.heads_shape), self.o.view(self.heads_shape)
        fo.attention(q, self.k, self.v, self.symbols, out=o)

    def update(self):
        fo.gemm_o_update(self.o, self.w_o, self.symbols, bias_cache=self.bias_cache, out=self.out)

    def dispatch(self):
        fo.gemm_o_dispatch(self.o, self.w_o, self.bias_cache, out=self.out)

    def run(self):
        self.project()
        self.attend()
        self.dispatch()
        return self.out


@pytest.mark.parametrize("operator", ["project", "attend", "update", "dispatch"])
def test_operators_queue_on_the_current_stream_and_return(rng, operator):
    step = DispatchStep(rng)
    call, side = getattr(step, operator), torch.cuda.Stream()
    operand = step.x if operator == "project" else step.q if operator == "attend" else step.o
    result = dict(project=step.q, attend=step.o).get(operator, step.out)
    operand.copy_(make(rng.standard_normal(tuple(operand.shape)), BF16))
    right = operand.clone()
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        call()  # makes the plan
        side.synchronize()
        expected = result.clone()
        operand.fill_(np.nan)
        result.zero_()
        side.synchronize()
        torch.cuda._sleep(LONG)
        operand.copy_(right)  # what the operator shall see is there only after the sleep
        call()
        assert not side.query(), "the operator waited for the GPU"
    side.synchronize()
    assert torch.equal(result, expected)


def test_two_streams_at_once_share_symbols(rng):
    case = test_attention.Case(rng, (1, 4000, 4000, 6, 6, 64, 128, 128, 0, "none"), BF16)
    symbols, streams = case.symbols(), [torch.cuda.Stream() for _ in range(2)]
    inputs = [(case.q, case.k, case.v), (case.v, case.q, case.k)]
    expected = [fo.attention(*x, symbols) for x in inputs]
    torch.cuda.synchronize()
    results = [[], []]
    for _ in range(20):
        for turn, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                results[turn].append(fo.attention(*inputs[turn], symbols))
    torch.cuda.synchronize()
    for turn in range(2):
        assert all(torch.equal(out, expected[turn]) for out in results[turn])


def test_repeated_calls_reuse_plans_and_memory(rng):
    step = DispatchStep(rng)
    expected, states = step.run().clone(), []
    for _ in range(20):
        assert torch.equal(step.run(), expected)
        free, _ = torch.cuda.mem_get_info()
        states.append((free, dict(step.symbols._plans)))
    assert states[-1] == states[0]


def test_a_dispatch_step_in_a_cuda_graph(rng):
    step, side, graph = DispatchStep(rng), torch.cuda.Stream(), torch.cuda.CUDAGraph()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step.run()  # makes plans and scratch of this stream
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=side):
        step.run()
    for _ in range(3):
        step.x.copy_(make(rng.standard_normal(tuple(step.x.shape)), BF16))
        expected = step.run().clone()
        for buffer in (step.q, step.o, step.out):
            buffer.zero_()
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(step.out, expected) and expected.abs().sum() > 0


def test_a_capture_without_a_plan_is_refused(rng):
    case = test_attention.Case(rng, (1, 200, 200, 2, 2, 64, 64, 64, 0, "none"), BF16)
    projection = test_gemm.Case(rng, heads=3, dim=64, width=96, kind=BF16)
    with pytest.raises(RuntimeError, match="attention: a plan cannot be made while a CUDA graph"):
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            fo.attention(case.q, case.k, case.v, case.symbols())
    with pytest.raises(RuntimeError, match="gemm_q: a plan cannot be made while a CUDA graph"):
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            fo.gemm_q(projection.x, projection.w_q, projection.symbols)
