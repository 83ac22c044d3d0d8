"""Times of calls that enqueue work on a GPU, in turns; and whether their results are right."""
import math
import random
import sys
import time

import numpy as np
import torch

DTYPE = torch.bfloat16
ALLOWED_ERROR = 2e-2  # of bf16 operands and results; as `flashomni bench`
STARTED = time.monotonic()


def say(text):
    print(f"[{time.monotonic() - STARTED:5.0f} s] {text}", file=sys.stderr, flush=True)


class Candidate:
    """A call that is timed, and what its row says beside the time."""

    def __init__(self, call, **row):
        self.call, self.row = call, row
        self.gpu_ms, self.host_ms = [], []

    def ms(self):
        return float(np.median(self.gpu_ms))


class Filler:
    """Keeps the GPU busy, and its clocks as they are under load, while the host runs ahead."""

    def __init__(self):
        self.a = torch.randn(8192, 8192, device="cuda", dtype=DTYPE)
        self.out = torch.empty_like(self.a)

    def run(self, milliseconds):
        for _ in range(max(1, math.ceil(milliseconds / 1.2))):  # one takes 1.4 ms or more
            torch.matmul(self.a, self.a, out=self.out)


def run_round(candidates, filler, lead_ms, apart):
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in candidates]
    filler.run(lead_ms)
    for candidate, (start, end) in zip(candidates, events):
        if apart:
            filler.run(1)
        before = time.perf_counter()
        start.record()
        candidate.call()
        end.record()
        candidate.host_ms.append(1e3 * (time.perf_counter() - before))
    torch.cuda.synchronize()
    for candidate, (start, end) in zip(candidates, events):
        candidate.gpu_ms.append(start.elapsed_time(end))


def measure(candidates, options, what, apart=False):
    """Fills in the candidates' times and rows. `apart`: some of them wait for the GPU, so that each
    needs its own lead."""
    say(f"{what}: {len(candidates)} kernels in turns")
    filler, order, lead_ms = Filler(), random.Random(0), 5.0
    heated = time.monotonic() + 0.4
    rounds = 0
    while rounds < 2 or time.monotonic() < heated:
        run_round(candidates, filler, lead_ms, apart)
        if not apart:  # else the host's time is that of waiting
            lead_ms = 1.5 * sum(np.median(c.host_ms) for c in candidates)
        rounds += 1
    for candidate in candidates:
        candidate.gpu_ms, candidate.host_ms = [], []
    for _ in range(options.runs):
        turns = order.sample(candidates, len(candidates))
        run_round(turns, filler, min(lead_ms, 50), apart)
    for candidate in candidates:
        low, high = np.quantile(candidate.gpu_ms, [0.1, 0.9])
        candidate.row |= {
            "ms_median": round(candidate.ms(), 4),
            "ms_p10": round(float(low), 4),
            "ms_p90": round(float(high), 4),
            "host_ms": round(float(np.median(candidate.host_ms)), 4),
            "runs": options.runs,
        }


def compare(row, peer, dense=None, ideal=None, macs=None):
    """The ratios of a row: over the peer, and over our own dense kernel against the ideal."""
    ms, peer_ms = row["ms_median"], peer.ms()
    row |= {"peer": peer.row["op"], "peer_ms": round(peer_ms, 4)}
    row["speedup_over_peer"], row["efficiency"] = round(peer_ms / ms, 3), None
    if macs:
        row["tflops_done"] = round(2e-9 * macs / ms, 1)
    if dense:
        row |= {"dense_ms": round(dense.ms(), 4), "speedup": round(dense.ms() / ms, 3)}
    if ideal:
        over = dense.ms() if dense else peer_ms
        row |= {"ideal": round(ideal, 3), "efficiency": round(over / ms / ideal, 3)}


def check(what, actual, expected):
    """The relative error, in the Euclidean norm; stops the run if rounding does not explain it."""
    expected = expected.double()
    error = float((actual.double() - expected).norm() / expected.norm())
    if not error <= ALLOWED_ERROR:
        sys.exit(f"peers.py: {what} is wrong: off by {error:.3g}, relative to its norm")
    return error
