import json
import re
import unittest

from support import ToolTest

SMALL = ("-W", "64", "-H", "64", "--steps", "8", "--cfg", "1", "--threads", "1", "--count", "2")


class Tune(ToolTest):
    def tune(self, *arguments):
        return ("tune", *SMALL, "--folder", self.folder / "runs", "-o", self.folder / "mine.json",
                *arguments)

    def assert_is_judged(self, row):
        proxy = row["proxy"]
        self.assertGreater(proxy["loss"], 0)
        self.assertAlmostEqual(proxy["macs_ratio"], row["macs_ratio"], delta=0.03)
        for share in (proxy["recall"], proxy["forecast_error"]):
            if share is not None:  # of settings that skip nothing, or cache nothing
                self.assertGreater(share, 0)
                self.assertLessEqual(share, 1.0001)

    def test_the_preset_meets_the_target_and_keeps_its_evidence(self):
        preset = self.run_json(*self.tune("--target-psnr", "33"))
        self.assertEqual(json.loads((self.folder / "mine.json").read_text()), preset)
        evidence = preset["evidence"]
        self.assertGreaterEqual(evidence["psnr_db"]["mean"], 33)
        self.assertEqual(evidence["target"], "PSNR of at least 33 dB")
        fast_enough = [row for row in evidence["tried_in_full"] if row["psnr_db"] >= 33]
        self.assertEqual(evidence["speedup"]["mean"], max(row["speedup"] for row in fast_enough))
        self.assertEqual(evidence["captions"]["of"], 2)
        self.assertEqual(evidence["clock"], "wall")

        # The proxy that chose what to run in full stands beside what came of it.
        self.assertEqual(evidence["proxy"]["layers"], evidence["proxy"]["of_layers"])
        self.assertEqual(len(evidence["tried_in_full"]) >= 3,
                         evidence["proxy"]["rank_correlation"] is not None)
        for row in evidence["tried_in_full"]:
            self.assert_is_judged(row)

        # The file is a preset like any other, and an evaluation of it says the same.
        summary = self.run_json("eval", *SMALL, "--setting", f"mine={self.folder / 'mine.json'}",
                                "-o", self.folder / "check")["settings"][0]
        self.assertEqual(summary["psnr_db"], evidence["psnr_db"])
        self.assertEqual(summary["macs_ratio"], evidence["macs_ratio"])

        # Finished runs are not repeated, and a lower target gives no less speed, but for what the
        # seconds of a busy machine scatter: the search may end before it comes to this setting.
        done = self.run_ok(*self.tune("--target-psnr", "33"))
        self.assertNotIn("Evaluating", done.stderr)
        self.assertRegex(done.stdout, r"Wrote .*mine.json: W \d, N \d, \d+\.\d dB")
        easy = self.run_json(*self.tune("--target-psnr", "20"))["evidence"]
        self.assertGreaterEqual(easy["psnr_db"]["mean"], 20)
        self.assertEqual(easy["speedup"]["mean"], max(row["speedup"] for row in
                                                      easy["tried_in_full"]
                                                      if row["psnr_db"] >= 20))
        self.assertGreaterEqual(easy["speedup"]["mean"], 0.7 * evidence["speedup"]["mean"])

    def test_a_speed_is_a_target_too(self):
        evidence = self.run_json(*self.tune("--target-speedup", "0.5", "--clock",
                                            "cpu"))["evidence"]
        self.assertEqual(evidence["clock"], "cpu")
        self.assertGreaterEqual(evidence["speedup"]["mean"], 0.5)
        self.assertEqual(evidence["psnr_db"]["mean"],
                         max(row["psnr_db"] for row in evidence["tried_in_full"]))

    def test_the_proxy_is_the_same_again_and_orders_schedules(self):
        def judged(seed_folder):
            done = self.run_ok("tune", *SMALL, "-v", "--target-speedup", "0.1", "--budget", "10m",
                               "--folder", self.folder / seed_folder, "-o",
                               self.folder / "mine.json")
            self.assertIn("Watching a dense run 8/8", done.stderr)
            return dict(re.findall(r"^  (\S+ W\d+ N\d+): loss (\S+) ", done.stderr, re.M))
        losses = judged("once")
        self.assertEqual(losses, judged("again"))
        for family in ("layers", "layers+keys", "blocks"):
            careful, bold = (float(losses[f"{family} {schedule}"])
                             for schedule in ("W5 N2", "W3 N4"))
            self.assertLess(careful, bold)

    def test_what_cannot_be_had_is_one_sentence(self):
        self.assert_fails(2, "either --target-psnr or --target-speedup", *self.tune())
        self.assert_fails(2, "either --target-psnr or --target-speedup",
                          *self.tune("--target-psnr", "30", "--target-speedup", "2"))
        self.assert_fails(2, "'soon' is not a time", *self.tune("--target-psnr", "30", "--budget",
                                                                "soon"))
        self.assert_fails(2, "--target-speedup: -2 is not greater than 0",
                          *self.tune("--target-speedup", "-2"))
        self.assert_fails(2, "--out: there is no folder /none",
                          *self.tune("--target-psnr", "30", "-o", "/none/mine.json"))
        text = self.run_fails(1, *self.tune("--target-psnr", "30", "--budget", "0.001s"))
        self.assertIn("more than half the budget", text)
        text = self.run_fails(1, *self.tune("--target-psnr", "99"))
        self.assertIn("nothing tried has a PSNR of at least 99 dB; the grid is used up", text)
        self.assertFalse((self.folder / "mine.json").exists())


class Verbose(ToolTest):
    def test_every_subcommand_explains_when_asked(self):
        for name in ("generate", "compare", "eval", "judge", "predict", "tune", "inspect", "bench",
                     "run-op", "selftest", "info"):
            with self.subTest(name):
                self.assertIn("-v,--verbose", self.run_ok(name, "--help").stdout)
        self.assertIn("dense: ", self.run_ok("info", "-v", "--json").stderr)
        self.assertIn("against the reference",
                      self.run_ok("selftest", "--seconds", "1", "-v", "--json").stderr)


if __name__ == "__main__":
    unittest.main()
