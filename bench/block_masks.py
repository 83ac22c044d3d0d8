"""Made-up masks: the kinds and patterns of `flashomni bench` (apps/cli/workload.h)."""
import math

import numpy as np

import flashomni as fo

HEADS, BLOCK = 24, 128


def draw_marks(count, dropped, pattern, centre, rank, rng):
    """Marks for `count` things in a row: 1 = keep, one at least."""
    marks = np.zeros(count, np.uint8)
    if pattern == "random":
        marks[:] = rng.random(count) >= dropped
    elif pattern == "clustered":
        kept = min(max(round(count * (1 - dropped)), 1), count)
        first = min(max(centre - kept // 2, 0), count - kept)
        marks[first : first + kept] = 1
    else:
        marks[:] = rank >= dropped
    if not marks.any():
        marks[rng.integers(count)] = 1
    return marks


class Mask:
    """One item of `seq` tokens, a multiple of BLOCK."""

    def __init__(self, seq, kind, pattern, sparsity):
        self.kind, self.pattern, self.sparsity = kind, pattern, sparsity
        blocks, rng = seq // BLOCK, np.random.default_rng(0)
        share = 1 - math.sqrt(1 - sparsity) if kind == "mix" else sparsity
        cached, skipped = (share if kind != other else 0 for other in ("skip", "cache"))
        self.cache = np.ones((1, HEADS, blocks), np.uint8)
        self.skip = np.ones((1, HEADS, blocks, blocks), np.uint8)
        for head in range(HEADS):
            rank = (head + 0.5) / HEADS
            self.cache[0, head] = draw_marks(
                blocks, cached, pattern, rng.integers(blocks), rank, rng
            )
            for i in range(blocks if skipped else 0):
                self.skip[0, head, i] = draw_marks(blocks, skipped, pattern, i, rng.random(), rng)
        self.symbols = fo.Symbols.from_masks(self.cache, self.skip)
        self.density = self.symbols.stats().density
        self.live_fraction = float(self.cache.mean())

    def facts(self):
        pattern = None if self.kind == "dense" else self.pattern
        return {"kind": self.kind, "pattern": pattern, "sparsity": self.sparsity}
