import unittest

from support import ToolTest

SMALL = ("-W", "64", "-H", "64", "--steps", "8", "--cfg", "1", "--threads", "1")
SCHEDULE = ("--warmup", "3", "--interval", "3")


class Predict(ToolTest):
    def test_the_work_is_that_of_the_run(self):
        joint = ("--sparsity-policy", "flashomni", "--tau-kv", "0.1", "--tau-q")
        for sparsity in ((*joint, "0.8", "--layer-cache", "0.5"),
                         (*joint, "0.9", "--layer-cache", "0"),
                         ("--preset", "off", "--sparsity-policy", "topk+taylorseer", "--keep",
                          "0.4", "--block", "32")):
            with self.subTest(sparsity):
                predicted = self.run_json("predict", *SMALL, *SCHEDULE, *sparsity)
                run = self.run_json("generate", "-p", "a snail", *SMALL, *SCHEDULE, *sparsity, "-o",
                                    self.folder / "a.png")["sparsity"]
                self.assertEqual(predicted["dense"]["macs"], run["macs_total"])
                ratio = run["macs_done"] / run["macs_total"]
                self.assertLess(ratio, 0.95)
                self.assertAlmostEqual(predicted["macs_ratio"], ratio, delta=0.08)
                self.assertEqual(predicted["full_steps"], run["dense_steps"] + run["update_steps"])
                self.assertEqual(predicted["dispatch_steps"], run["dispatch_steps"])
                self.assertEqual(predicted["schedule_bound"], 8 / predicted["full_steps"])
                self.assertGreater(predicted["sparse"]["seconds"], 0)

    def test_the_caches_are_counted(self):
        # 12 layers of 256 image tokens and 256 channels, f32, order + 1 terms a branch.
        one = 12 * 256 * 256 * 4
        for cfg, order, terms in (("1", "1", 2), ("3", "2", 6)):
            predicted = self.run_json("predict", *SMALL, *SCHEDULE, "--cfg", cfg, "--order", order)
            self.assertEqual(predicted["cache_bytes"]["bias"], one * terms)

    def test_dense_leaves_nothing_out(self):
        predicted = self.run_json("predict", *SMALL, "--preset", "off")
        self.assertEqual(predicted["macs_ratio"], 1)
        self.assertAlmostEqual(predicted["speedup"], 1, delta=0.01)
        self.assertEqual(predicted["cache_bytes"]["bias"], 0)
        self.assertIn("nothing will be left out", " ".join(predicted["why"]))

    def test_text_output_is_sentences(self):
        done = self.run_ok("predict", *SMALL, *SCHEDULE, "-v")
        for part in ("times as fast, at", "of the multiply-adds", "The caches take",
                     "5 of 8 steps are full", "Attention takes", "of peak"):
            self.assertIn(part, done.stdout)
        self.assert_fails(2, 'there is no policy "magic"', "predict", "--sparsity-policy", "magic")


if __name__ == "__main__":
    unittest.main()
