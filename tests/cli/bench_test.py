import unittest

from support import ToolTest

FIELDS = {"op", "seq", "heads", "head_dim", "dtype", "kind", "pattern", "sparsity", "ms_median",
          "ms_p10", "ms_p90", "tflops_done", "dense_ms", "speedup", "ideal", "efficiency",
          "max_rel_err"}
QUICK = ("--seconds", "0.01", "--runs", "3", "--heads", "2", "--head-dim", "32", "--block", "32")


class Bench(ToolTest):
    def bench(self, op, *arguments):
        return self.run_json("bench", op, *QUICK, *arguments)

    def test_every_operator_gives_rows(self):
        for op in ("attention", "gemm-q", "gemm-o", "policy", "plan", "gemm-plan", "step"):
            with self.subTest(op):
                result = self.bench(op, "--seq", "200,131", "--sparsity", "0,0.5", "--text", "40")
                for key in ("device", "backend", "commit"):
                    self.assertIn(key, result)
                self.assertEqual([(r["seq"], r["sparsity"]) for r in result["rows"]],
                                 [(200, 0), (200, 0.5), (131, 0), (131, 0.5)])
                for row in result["rows"]:
                    self.assertEqual(row["kind"], "cache" if op[:4] == "gemm" else "skip")
                    self.assertLessEqual(FIELDS, set(row))
                    plans = op in ("plan", "gemm-plan")
                    if result["backend"] == "cpu":
                        self.assertGreater(row["peak_gflops"], 1)
                        self.assertEqual(row["of_peak"] > 0, not plans)
                    self.assertLessEqual(row["ms_p10"], row["ms_median"])
                    self.assertLessEqual(row["ms_median"], row["ms_p90"])
                    self.assertAlmostEqual(row["speedup"], row["dense_ms"] / row["ms_median"])
                    self.assertLess(row["max_rel_err"], 1e-4)
                    if op != "policy" and not plans:
                        self.assertAlmostEqual(row["efficiency"], row["speedup"] / row["ideal"])

    def test_ideal_is_of_the_realised_work(self):
        # 8 blocks of 32, clustered: half of the key blocks of every row, exactly.
        skip = ("--seq", "256", "--sparsity", "0.5", "--pattern", "clustered")
        self.assertAlmostEqual(self.bench("attention", *skip)["rows"][0]["ideal"], 2)
        # One update and five dispatches with half of the heads' rows: 6 / (1 + 5 / 2).
        row = self.bench("gemm-o", *skip, "--kind", "cache", "--interval", "6")["rows"][0]
        self.assertAlmostEqual(row["ideal"], 6 / 3.5)
        # Skewed caching keeps one head of two.
        row = self.bench("gemm-q", "--seq", "256", "--sparsity", "0.5", "--pattern", "skewed",
                         "--kind", "cache")["rows"][0]
        self.assertGreater(row["ideal"], 1.7)

    def test_sixteen_bits(self):
        for dtype in ("bf16", "f16"):
            row = self.bench("attention", "--seq", "100", "--sparsity", "0.5", "--dtype",
                             dtype)["rows"][0]
            self.assertEqual(row["dtype"], dtype)
            self.assertLess(row["max_rel_err"], 2e-2)

    def test_processor_time_is_measured_too(self):
        result = self.bench("attention", "--seq", "300", "--sparsity", "0", "--clock", "cpu")
        self.assertEqual(result["clock"], "cpu")
        self.assertGreater(result["rows"][0]["ms_median"], 0)
        self.assert_fails(2, "--clock", "bench", "attention", "--clock", "sun")

    def test_text_is_a_table(self):
        lines = self.run_ok("bench", "attention", "--seq", "100", "--sparsity", "0.5",
                            *QUICK).stdout.splitlines()
        self.assertTrue(lines[1].startswith("op "))
        self.assertTrue(lines[2].startswith("attention "))

    def test_bad_usage_is_one_sentence(self):
        self.assert_fails(2, "there is no operator 'conv'; there are attention, gemm-q", "bench",
                          "conv")
        self.assert_fails(2, "--kind 'all' is not one of skip, cache, mix", "bench", "attention",
                          "--kind", "all")
        self.assert_fails(2, "--sparsity must be at least 0 and less than 1", "bench", "attention",
                          "--sparsity", "1")
        self.assert_fails(2, "--seq 8 must be positive and more than --text 8", "bench",
                          "attention", "--seq", "8", "--text", "8")
        self.assert_fails(2, "--heads", "bench", "attention", "--heads", "0")


if __name__ == "__main__":
    unittest.main()
