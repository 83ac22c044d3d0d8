import math
import unittest

from support import BACKENDS, Random, ToolTest, read_safetensors, write_safetensors

NAN = float("nan")


def blocks(length, block, text=0, position="none"):
    """(first, count) of every block; blocks restart where text and image meet."""
    parts = {"none": [length], "first": [text, length - text], "last": [length - text, text]}
    found, start = [], 0
    for part in parts[position]:
        found += [(start + i, min(block, part - i)) for i in range(0, part, block)]
        start += part
    return found


class Case:
    """Attention on one small problem, and what it must give, in double precision."""

    def __init__(self, n, nk, heads, kv_heads, dim, batch=1, seed=1):
        random = Random(seed)
        self.n, self.nk, self.heads, self.kv_heads, self.dim, self.batch = (
            n, nk, heads, kv_heads, dim, batch)
        self.q = random.floats(batch * n * heads * dim)
        self.k = random.floats(batch * nk * kv_heads * dim)
        self.v = random.floats(batch * nk * kv_heads * dim)
        self.random = random

    def tensors(self, dtype="F32"):
        return {"q": (dtype, [self.batch, self.n, self.heads, self.dim], self.q),
                "k": (dtype, [self.batch, self.nk, self.kv_heads, self.dim], self.k),
                "v": (dtype, [self.batch, self.nk, self.kv_heads, self.dim], self.v)}

    def row(self, values, length, heads, b, t, h):
        start = ((b * length + t) * heads + h) * self.dim
        return values[start:start + self.dim]

    def expected(self, q_blocks, kv_blocks, cache=None, skip=None, seq_len=None, kv_len=None,
                 scale=None, out=None):
        scale = self.dim**-0.5 if scale is None else scale
        out = list(out) if out else [-7.0] * len(self.q)
        lse = [NAN] * (self.batch * self.heads * self.n)
        nq, nk = len(q_blocks), len(kv_blocks)
        for b in range(self.batch):
            q_valid = seq_len[b] if seq_len else self.n
            kv_valid = kv_len[b] if kv_len else self.nk
            for h in range(self.heads):
                kv_head = h // (self.heads // self.kv_heads)
                for i, (first, count) in enumerate(q_blocks):
                    at = (b * self.heads + h) * nq + i
                    if cache and not cache[at]:
                        continue
                    keys = [t for j, (start, size) in enumerate(kv_blocks)
                            if not skip or skip[at * nk + j]
                            for t in range(start, start + size) if t < kv_valid]
                    for t in range(first, min(first + count, q_valid)):
                        row, total = self.attend(b, h, kv_head, t, keys, scale)
                        start = ((b * self.n + t) * self.heads + h) * self.dim
                        out[start:start + self.dim] = row
                        lse[(b * self.heads + h) * self.n + t] = total
        return out, lse

    def attend(self, b, h, kv_head, t, keys, scale):
        if not keys:
            return [0.0] * self.dim, -math.inf
        q = self.row(self.q, self.n, self.heads, b, t, h)
        logits = [scale * sum(x * y for x, y in zip(
            q, self.row(self.k, self.nk, self.kv_heads, b, key, kv_head))) for key in keys]
        peak = max(logits)
        weights = [math.exp(x - peak) for x in logits]
        total = sum(weights)
        row = [0.0] * self.dim
        for weight, key in zip(weights, keys):
            for d, value in enumerate(self.row(self.v, self.nk, self.kv_heads, b, key, kv_head)):
                row[d] += weight / total * value
        return row, peak + math.log(total)


class RunAttention(ToolTest):
    def attention(self, backend, tensors, *settings):
        write_safetensors(self.folder / "in.safetensors", tensors)
        extra = ["--set", ",".join(settings)] if settings else []
        self.run_ok("run-op", "attention", "--input", self.folder / "in.safetensors", "--output",
                    self.folder / "out.safetensors", "--backend", backend, *extra)
        return read_safetensors(self.folder / "out.safetensors")

    def check(self, result, expected, tolerance=2e-6, dtype="F32"):
        out, lse = expected
        self.assertEqual(result["out"][0], dtype)
        self.assertEqual(result["lse"][0], "F32")
        self.assert_close(result["out"][2], out, tolerance)
        self.assert_close(result["lse"][2], lse, tolerance)

    def test_without_masks_is_dense(self):
        case = Case(n=21, nk=13, heads=2, kv_heads=2, dim=8)
        whole = [(0, 21)], [(0, 13)]
        for backend in BACKENDS:
            with self.subTest(backend):
                result = self.attention(backend, case.tensors())
                self.assertEqual(result["lse"][1], [1, 2, 21])
                self.check(result, case.expected(*whole))

    def test_masks_and_grouped_heads_and_canary(self):
        case = Case(n=21, nk=19, heads=4, kv_heads=2, dim=8, seed=2)
        grids = blocks(21, 8), blocks(19, 8)
        cache, skip = case.random.mask(4 * 3), case.random.mask(4 * 3 * 3)
        self.assertIn(0, cache)
        skip[0:3], cache[0] = [0, 0, 0], 1  # a live row with nothing to look at
        tensors = case.tensors() | {"cache": ("U8", [1, 4, 3], cache),
                                    "skip": ("U8", [1, 4, 3, 3], skip)}
        for backend in BACKENDS:
            with self.subTest(backend):
                self.check(self.attention(backend, tensors, "block_q=8", "block_kv=8"),
                           case.expected(*grids, cache, skip))

    def test_lengths_and_out_and_scale(self):
        case = Case(n=16, nk=16, heads=1, kv_heads=1, dim=16, batch=2, seed=3)
        kept = [0.5] * len(case.q)
        tensors = case.tensors() | {"seq_len": ("I32", [2], [16, 5]),
                                    "kv_len": ("I32", [2], [7, 0]),
                                    "out": ("F32", [2, 16, 1, 16], kept)}
        for backend in BACKENDS:
            with self.subTest(backend):
                self.check(self.attention(backend, tensors, "block_q=8", "block_kv=8", "scale=0.5"),
                           case.expected(blocks(16, 8), blocks(16, 8), None, None, [16, 5], [7, 0],
                                         0.5, kept))

    def test_cached_rows_are_extrapolated(self):
        case = Case(n=21, nk=19, heads=2, kv_heads=2, dim=8, seed=6)
        grids, shape = (blocks(21, 8), blocks(19, 8)), [1, 21, 2, 8]
        cache = [1, 0, 0, 0, 1, 0]
        terms = [case.random.floats(len(case.q)) for _ in range(3)]
        tensors = case.tensors() | {"cache": ("U8", [1, 2, 3], cache)}
        path, out = self.folder / "in.safetensors", self.folder / "out.safetensors"
        for backend in BACKENDS:
            for order in range(3):
                names = ["reuse", "reuse_1", "reuse_2"][:order + 1]
                tensors |= {name: ("F32", shape, term) for name, term in zip(names, terms)}
                forecast = [sum(c * term[i] for c, term in zip([1, 1.5, 1.125], terms[:order + 1]))
                            for i in range(len(case.q))]
                with self.subTest(backend=backend, order=order):
                    result = self.attention(backend, tensors, "block_q=8", "block_kv=8",
                                            "steps_since_update=1.5")
                    self.check(result, case.expected(*grids, cache, out=forecast))
            del tensors["reuse_1"]
            write_safetensors(path, tensors)
            self.assert_fails(1, "the input has reuse_2 without reuse_1", "run-op", "attention",
                              "--input", path, "--output", out, "--backend", backend, "--set",
                              "block_q=8,block_kv=8")
            del tensors["reuse_2"]

    def test_blocks_restart_at_the_text(self):
        case = Case(n=20, nk=20, heads=1, kv_heads=1, dim=8, seed=4)
        for backend in BACKENDS:
            for position in ("first", "last"):
                grid = blocks(20, 8, 5, position)
                self.assertEqual(len(grid), 3)
                cache = [1, 0, 1]
                tensors = case.tensors() | {"cache": ("U8", [1, 1, 3], cache)}
                with self.subTest(backend=backend, position=position):
                    self.check(self.attention(backend, tensors, "block_q=8", "block_kv=8",
                                              "text_tokens=5", f"text_position={position}"),
                               case.expected(grid, grid, cache))

    def test_sixteen_bit_operands(self):
        case = Case(n=9, nk=9, heads=1, kv_heads=1, dim=64, seed=5)
        expected = case.expected([(0, 9)], [(0, 9)])
        for backend in BACKENDS:
            for name, dtype, ulp in (("bf16", "BF16", 2**-8), ("f16", "F16", 2**-11)):
                with self.subTest(backend=backend, dtype=dtype):
                    # Values below 1 rounded twice (P and the result): two units in the last place.
                    self.check(self.attention(backend, case.tensors(dtype)), expected, 2 * ulp,
                               dtype)
                    self.check(self.attention(backend, case.tensors(), f"dtype={name}"), expected,
                               2 * ulp, dtype)

    def test_bad_input_is_named(self):
        case = Case(n=8, nk=8, heads=2, kv_heads=2, dim=8)
        path, out = self.folder / "in.safetensors", self.folder / "out.safetensors"
        call = ["run-op", "attention", "--input", path, "--output", out]
        self.assert_fails(1, str(path), *call)
        tensors = case.tensors()
        write_safetensors(path, {"q": tensors["q"], "k": tensors["k"]})
        self.assert_fails(1, "run-op attention: the input has no tensor 'v'", *call)
        write_safetensors(path, tensors | {"cache": ("U8", [1, 2, 1], [1, 2])})
        self.assert_fails(1, "cache", *call)
        write_safetensors(path, tensors | {"cache": ("U8", [1, 2, 2], [1] * 4)})
        self.assert_fails(1, "cache", *call)
        write_safetensors(path, tensors)
        self.assert_fails(2, "there is no setting 'block'; there are dtype, block_q", *call,
                          "--set", "block=8")
        self.assert_fails(2, "block_q=eight is not an integer", *call, "--set", "block_q=eight")
        self.assert_fails(2, "'i8' is not one of f32, bf16, f16", *call, "--set", "dtype=i8")
        self.assert_fails(2, "there is no backend 'gpu'; there are auto, ", *call, "--backend",
                          "gpu")
        self.assert_fails(2, "there is no operator 'conv'; there are attention", "run-op", "conv",
                          "--input", path, "--output", out)
        self.assertFalse(out.exists())

    def test_json_names_the_tensors(self):
        write_safetensors(self.folder / "in.safetensors", Case(3, 3, 1, 1, 8).tensors())
        result = self.run_json("run-op", "attention", "--input", self.folder / "in.safetensors",
                               "--output", self.folder / "out.safetensors")
        self.assertEqual(result["tensors"]["lse"], {"dtype": "f32", "shape": "[1, 1, 3]"})


if __name__ == "__main__":
    unittest.main()
