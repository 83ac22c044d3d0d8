import unittest

from support import BACKENDS, Random, ToolTest, read_safetensors, write_safetensors

CANARY = -7.0


class Projections(ToolTest):
    """B = 2 items of 11 rows after 3 text tokens, blocks of 4: row blocks 1, 2, 3 of 4."""
    B, N, H, D, C, BLOCK, OFFSET, NQ = 2, 11, 3, 8, 16, 4, 3, 4
    SETTINGS = ("heads=3", "block_q=4", "text_offset=3")

    def op(self, backend, op, tensors, *settings):
        write_safetensors(self.folder / "in.safetensors", tensors)
        self.run_ok("run-op", op, "--input", self.folder / "in.safetensors", "--output",
                    self.folder / "out.safetensors", "--backend", backend, "--set",
                    ",".join((*self.SETTINGS, *settings)))
        return read_safetensors(self.folder / "out.safetensors")

    def live(self, cache, b, t, h):
        return cache[(b * self.H + h) * self.NQ + 1 + t // self.BLOCK]

    def part(self, x, w, b, t, column, first, last):
        """sum over features first..last of x[b, t] w[column]."""
        width = len(x) // (self.B * self.N)
        row = x[(b * self.N + t) * width:][:width]
        return sum(row[i] * w[column * self.features + i] for i in range(first, last))

    def test_gemm_q(self):
        random = Random(1)
        self.features = self.C
        x, w = random.floats(self.B * self.N * self.C), random.floats(self.H * self.D * self.C)
        bias, cache = random.floats(self.H * self.D), random.mask(self.B * self.H * self.NQ)
        lengths = [11, 6]
        expected = []
        for b in range(self.B):
            for t in range(self.N):
                for column in range(self.H * self.D):
                    computed = t < lengths[b] and self.live(cache, b, t, column // self.D)
                    expected.append(bias[column] + self.part(x, w, b, t, column, 0, self.C)
                                    if computed else CANARY)
        tensors = {"x": ("F32", [2, 11, 16], x), "w": ("F32", [24, 16], w),
                   "bias": ("F32", [24], bias), "cache": ("U8", [2, 3, 4], cache),
                   "seq_len": ("I32", [2], lengths)}
        for backend in BACKENDS:
            with self.subTest(backend):
                result = self.op(backend, "gemm-q", tensors)["out"]
                self.assertEqual(result[:2], ("F32", [2, 11, 24]))
                self.assert_close(result[2], expected, 4e-6)
                half = self.op(backend, "gemm-q", tensors, "dtype=bf16")["out"]
                self.assertEqual(half[0], "BF16")
                self.assert_close(half[2], expected, 8 * 2**-8)  # below 8: one rounding

    def make_o(self, seed, mlp):
        random = Random(seed)
        features = self.H * self.D + mlp
        self.features = features
        tensors = {"o": ("F32", [self.B, self.N, self.H * self.D],
                         random.floats(self.B * self.N * self.H * self.D)),
                   "w": ("F32", [self.C, features], random.floats(self.C * features)),
                   "cache": ("U8", [self.B, self.H, self.NQ],
                             random.mask(self.B * self.H * self.NQ))}
        if mlp:
            tensors["mlp"] = ("F32", [self.B, self.N, mlp], random.floats(self.B * self.N * mlp))
        return tensors, random

    def sums(self, tensors, bias=None):
        """(sum over cached heads + bias, sum over live heads and the MLP part) per element."""
        o, w, cache = (tensors[name][2] for name in ("o", "w", "cache"))
        cached, live = [], []
        for b in range(self.B):
            for t in range(self.N):
                for column in range(self.C):
                    parts = {0: bias[column] if bias else 0.0, 1: 0.0}
                    for h in range(self.H):
                        parts[self.live(cache, b, t, h)] += self.part(
                            o, w, b, t, column, h * self.D, (h + 1) * self.D)
                    if "mlp" in tensors:
                        width = tensors["mlp"][1][2]
                        row = tensors["mlp"][2][(b * self.N + t) * width:][:width]
                        first = column * self.features + self.H * self.D
                        parts[1] += sum(a * w[first + i] for i, a in enumerate(row))
                    cached.append(parts[0])
                    live.append(parts[1])
        return cached, live

    def test_update_then_dispatch_is_the_dense_projection(self):
        for mlp in (0, 8):
            tensors, random = self.make_o(2, mlp)
            bias = random.floats(self.C)
            cached, live = self.sums(tensors, bias)
            dense = [a + b for a, b in zip(cached, live)]
            for backend in BACKENDS:
                with self.subTest(backend=backend, mlp=mlp):
                    update = self.op(backend, "gemm-o-update",
                                     tensors | {"bias": ("F32", [self.C], bias)})
                    self.assertEqual(set(update), {"out", "bias_cache"})
                    self.assert_close(update["bias_cache"][2], cached, 1e-5)
                    self.assert_close(update["out"][2], dense, 1e-5)
                    dispatch = self.op(backend, "gemm-o-dispatch",
                                       tensors | {"bias_cache": update["bias_cache"]})
                    self.assert_close(dispatch["out"][2], dense, 1e-5)

    def test_cached_heads_of_o_are_not_read_by_dispatch(self):
        tensors, random = self.make_o(3, 0)
        cache = tensors["cache"][2]
        bias_cache = random.floats(self.B * self.N * self.C)
        _, live = self.sums(tensors)
        poisoned = list(tensors["o"][2])
        for b in range(self.B):
            for t in range(self.N):
                for i in range(self.H * self.D):
                    if not self.live(cache, b, t, i // self.D):
                        poisoned[(b * self.N + t) * self.H * self.D + i] = float("nan")
        tensors["o"] = (*tensors["o"][:2], poisoned)
        tensors["bias_cache"] = ("F32", [self.B, self.N, self.C], bias_cache)
        for backend in BACKENDS:
            with self.subTest(backend):
                out = self.op(backend, "gemm-o-dispatch", tensors)["out"][2]
                self.assert_close(out, [a + b for a, b in zip(bias_cache, live)], 1e-5)

    def test_differences_only_where_the_symbols_stayed(self):
        tensors, random = self.make_o(4, 0)
        cached, live = self.sums(tensors)
        cache = tensors["cache"][2]
        previous = list(cache)
        previous[1] = 1 - previous[1]  # item 0, head 0, row block 1 (rows 0..3) changes
        old = random.floats(self.B * self.N * self.C)
        old_1 = random.floats(self.B * self.N * self.C)
        order = [1, 0, 1, 0] * self.B  # row blocks 1 and 3 had no first difference before
        tensors |= {"prev_cache": ("U8", [2, 3, 4], previous),
                    "prev_bias_cache": ("F32", [2, 11, 16], old),
                    "prev_bias_cache_1": ("F32", [2, 11, 16], old_1),
                    "prev_order": ("U8", [2, 4], order)}
        steps = 4
        first = [(a - b) / steps for a, b in zip(cached, old)]
        second = [(a - b) / steps for a, b in zip(first, old_1)]
        expected_order = [[None, 0, 2, 1], [None, 1, 2, 1]]
        for index in range(len(first)):
            b, t = index // (self.N * self.C), index // self.C % self.N
            valid = expected_order[b][1 + t // self.BLOCK]
            first[index] *= valid >= 1
            second[index] *= valid >= 2
        for backend in BACKENDS:
            with self.subTest(backend):
                result = self.op(backend, "gemm-o-update", tensors, "order=2",
                                 f"steps_since_update={steps}")
                found = result["order"]
                self.assertEqual(found[:2], ("U8", [2, 4]))
                for b in range(2):
                    self.assertEqual(found[2][b * 4 + 1:b * 4 + 4], expected_order[b][1:])
                self.assert_close(result["bias_cache"][2], cached, 1e-5)
                self.assert_close(result["bias_cache_1"][2], first, 1e-5)
                self.assert_close(result["bias_cache_2"][2], second, 1e-5)
                k = 3
                terms = {name: result[name]
                         for name in ("bias_cache", "bias_cache_1", "bias_cache_2", "order")}
                out = self.op(backend, "gemm-o-dispatch",
                              {name: tensors[name] for name in ("o", "w", "cache")} | terms,
                              f"steps_since_update={k}")["out"][2]
                forecast = [a + k * b + k * k / 2 * c + d
                            for a, b, c, d in zip(cached, first, second, live)]
                self.assert_close(out, forecast, 4e-5)

    def test_rows_past_the_length_keep_the_canary(self):
        tensors, random = self.make_o(5, 0)
        tensors["seq_len"] = ("I32", [2], [11, 5])
        for backend in BACKENDS:
            with self.subTest(backend):
                out = self.op(backend, "gemm-o-update", tensors)["out"][2]
                past = out[(self.N + 5) * self.C:]
                self.assertEqual(past, [CANARY] * len(past))
                self.assertNotIn(CANARY, out[:(self.N + 5) * self.C])

    def test_bad_input_is_named(self):
        tensors, _ = self.make_o(6, 0)
        path, out = self.folder / "in.safetensors", self.folder / "out.safetensors"
        write_safetensors(path, tensors)
        call = ["run-op", "gemm-o-update", "--input", path, "--output", out]
        self.assert_fails(2, "run-op gemm-o-update needs --set heads=", *call)
        self.assert_fails(2, "o has 24 features, which --set heads=5 does not divide", *call,
                          "--set", "heads=5")
        self.assert_fails(2, "order must be 0, 1 or 2", *call, "--set", "heads=3,order=3",
                          "--set", "block_q=4,text_offset=3")
        call[1] = "gemm-o-dispatch"
        settings = ["--set", ",".join(self.SETTINGS)]
        self.assert_fails(1, "has no tensor 'bias_cache'", *call, *settings)
        terms = ("F32", [2, 11, 16], [0.0] * 352)
        write_safetensors(path, tensors | {"bias_cache": terms, "order": ("U8", [2, 4], [1] * 8)})
        self.assert_fails(1, "order has the value 1, there are terms up to order 0", *call,
                          *settings)


if __name__ == "__main__":
    unittest.main()
