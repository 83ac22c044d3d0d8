import json
import math
import os
import statistics
import unittest
import unittest.mock
import xml.etree.ElementTree

import png
from support import ToolTest

SMALL = ("-W", "64", "-H", "64", "--steps", "6", "--cfg", "1", "--threads", "1")
SETTINGS = ("--setting", "near=flashomni,warmup=2,interval=2,tau-q=0.5,tau-kv=0.02,block=64",
            "--setting", "far=layer-cache,warmup=1,interval=5")
T_975 = {1: 12.706204736432095, 2: 4.302652729911275, 3: 3.182446305284263}  # printed tables


def psnr(a, b):
    error = statistics.mean((x - y)**2 for x, y in zip(b"".join(a), b"".join(b)))
    return min(100, 10 * math.log10(255**2 / error)) if error else 100


class Eval(ToolTest):
    def setUp(self):
        super().setUp()
        self.out = self.folder / "e"
        self.prompts = self.folder / "prompts.txt"
        self.prompts.write_text("# some\na snail\ntwo red apples\na bus in the snow\n")

    def evaluate(self, *arguments):
        return self.run_json("eval", "--prompts", self.prompts, *SMALL, *SETTINGS, "-o", self.out,
                             *arguments)

    def runs(self):
        return [json.loads(line) for line in (self.out / "runs.jsonl").read_text().splitlines()]

    def rows(self, run):
        return png.read(self.out / "pictures" / run["picture"])[2]

    def assert_estimate(self, estimate, values):
        self.assertEqual(estimate["count"], len(values))
        mean = statistics.mean(values)
        margin = T_975[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))
        for key, value in (("mean", mean), ("low", mean - margin), ("high", mean + margin),
                           ("min", min(values))):
            self.assertAlmostEqual(estimate[key], value, delta=1e-9 * max(1, abs(value)), msg=key)

    def test_the_summary_is_what_the_pictures_and_runs_say(self):
        summary = self.evaluate()
        runs = self.runs()
        self.assertEqual(len(runs), 9)
        dense = {run["prompt"]: run for run in runs if run["setting"] == "dense"}
        self.assertEqual([run["seed"] for run in dense.values()], [0, 1, 2])
        for setting in summary["settings"]:
            mine = [run for run in runs if run["setting"] == setting["options"]]
            self.assertEqual(setting["pairs"], 3)
            for run in mine:
                self.assertAlmostEqual(
                    run["psnr_db"], psnr(self.rows(dense[run["prompt"]]), self.rows(run)), places=6)
            self.assert_estimate(setting["psnr_db"], [run["psnr_db"] for run in mine])
            self.assert_estimate(setting["ssim"], [run["ssim"] for run in mine])
            self.assert_estimate(setting["macs_ratio"], [
                run["macs_done"] / dense[run["prompt"]]["macs_done"] for run in mine])
            self.assert_estimate(setting["speedup"], [
                dense[run["prompt"]]["seconds"] / run["seconds"] for run in mine])
            worst = [case["psnr_db"] for case in setting["worst"]]
            self.assertEqual(worst, sorted(run["psnr_db"] for run in mine))
        near, far = summary["settings"]
        self.assertGreater(near["psnr_db"]["mean"], far["psnr_db"]["mean"])
        self.assertLess(far["macs_ratio"]["mean"], near["macs_ratio"]["mean"])
        self.assertEqual(json.loads((self.out / "summary.json").read_text()), summary)
        self.assert_the_pages_agree(summary)

    def assert_the_pages_agree(self, summary):
        page = (self.out / "report.md").read_text()
        for setting in summary["settings"]:
            self.assertIn(f"| {setting['name']} | ", page)
            self.assertIn(f"| {setting['psnr_db']['min']:.1f} | ", page)
        for name in ("psnr-over-work.svg", "psnr-over-seconds.svg"):
            root = xml.etree.ElementTree.parse(self.out / name).getroot()
            titles = [title.text for title in root.iter("{http://www.w3.org/2000/svg}title")]
            self.assertEqual([title.split(":")[0] for title in titles], ["near", "far"])
        # Two rows of three pairs, each panel 64 pixels wide under a strip of 16 with its caption.
        self.assertEqual(png.read(self.out / "worst.png")[:2], (6 * 64 + 5 * 4, 2 * 80 + 4))

    def test_ssim_is_that_of_scikit_image(self):
        try:
            import numpy
            from skimage.metrics import structural_similarity
        except ImportError as missing:
            self.skipTest(str(missing))
        self.evaluate("--count", "2")
        dense = {run["prompt"]: run for run in self.runs() if run["setting"] == "dense"}
        for run in self.runs():
            pictures = [numpy.frombuffer(b"".join(self.rows(r)), numpy.uint8).reshape(64, 64, 3)
                        for r in (dense[run["prompt"]], run)]
            self.assertAlmostEqual(run["ssim"], structural_similarity(*pictures, channel_axis=2),
                                   places=6)

    def test_finished_runs_are_not_repeated(self):
        first = self.evaluate("--count", "2")
        self.assertEqual(len(self.runs()), 6)
        path = self.out / "runs.jsonl"
        kept = path.read_text()
        self.assertEqual(self.evaluate("--count", "2"), first)
        self.assertEqual(path.read_text(), kept)

        # A line that a crash cut off is drawn again, the other five are not.
        path.write_text(kept[:-40])
        again = self.evaluate("--count", "2")
        self.assertEqual(again["settings"][1]["psnr_db"], first["settings"][1]["psnr_db"])
        lines = path.read_text().splitlines()
        self.assertEqual(len(lines), 7)
        self.assertEqual("\n".join(lines[:5]), "\n".join(kept.splitlines()[:5]))

        # The third prompt alone keeps its seed, and the first two stay.
        third = self.evaluate("--first", "2", "--count", "9")
        self.assertEqual([case["seed"] for case in third["settings"][0]["worst"]], [2])
        self.assertIsNone(third["settings"][0]["psnr_db"]["low"])  # of one value

        done = self.run_fails(2, "eval", "--prompts", self.prompts, *SMALL, "--steps", "7", "-o",
                              self.out)
        self.assertIn("was begun with another steps", done.splitlines()[-1])

    def test_counts_are_checked(self):
        for option in ("--count", "--seeds"):
            self.assert_fails(2, f"{option}: 0 is not greater than 0", "eval", option, "0")
        self.assert_fails(2, "--first: -1 is less than 0", "eval", "--first", "-1")
        self.assert_fails(2, "--settings: there is no file /none", "eval", "--settings", "/none")

    def test_settings_come_from_a_file_too(self):
        path = self.folder / "settings.json"
        path.write_text(json.dumps({"description": "two", "everything": "off",
                                    "half": "fast,warmup=2,interval=3"}))
        summary = self.run_json("eval", "--prompts", self.prompts, *SMALL, "--count", "1",
                                "--settings", path, "-o", self.out, "--seeds", "2")
        everything, half = summary["settings"]
        self.assertEqual(everything["psnr_db"]["mean"], 100)
        self.assertEqual(everything["options"], "dense")
        self.assertEqual([half["name"], half["policy"], half["pairs"]],
                         ["half", "spargeattn+taylorseer", 2])
        self.assertIn("warmup 2, interval 3", half["options"])
        self.assertEqual(sorted(run["seed"] for run in self.runs()), [0, 0, 1000, 1000])

    def test_captions_and_lpips_are_kept_once_measured(self):
        arguments = ("eval", *SMALL, *SETTINGS[:2], "--count", "2", "-o", self.out)
        captions = self.run_json(*arguments)["settings"][0]["captions"]
        self.assertEqual(captions["of"], 2)
        kept = [json.loads(line) for line in (self.out / "captions.jsonl").read_text().splitlines()]
        self.assertEqual(len(kept), 4)
        runs = {run["picture"]: run for run in self.runs()}
        right = {name: sum(note["captions"] for note in kept
                           if (runs[note["picture"]]["setting"] == "dense") == (name == "dense"))
                 for name in ("dense", "sparse")}
        self.assertEqual(captions["dense_right"], right["dense"])
        self.assertEqual(captions["sparse_right"], right["sparse"])
        # Wilson's interval, by its defining equation: |p - share| = z sqrt(p (1 - p) / n).
        share = captions["sparse_share"]
        for bound in (share["low"], share["high"]):
            self.assertAlmostEqual(abs(bound - share["mean"]),
                                   1.959963984540054 * math.sqrt(bound * (1 - bound) / 2), places=9)

        names = [name for name, run in runs.items() if run["setting"] != "dense"]
        (self.out / "lpips.jsonl").write_text("".join(
            json.dumps({"picture": name, "lpips": value}) + "\n"
            for name, value in zip(names, (0.25, 0.5))))
        (self.out / "captions.jsonl").write_text("".join(
            json.dumps({"picture": name, "captions": True}) + "\n" for name in runs))
        setting = self.run_json(*arguments)["settings"][0]
        self.assert_estimate(setting["lpips"], [0.25, 0.5])
        self.assertEqual(setting["captions"]["sparse_right"], 2)

    def test_what_is_not_measured_is_said(self):
        (self.folder / "torch.py").write_text("raise ImportError('no torch here')\n")
        (self.folder / "lpips.py").write_text("import torch\n")
        environment = {**os.environ, "PYTHONPATH": str(self.folder)}
        with unittest.mock.patch.dict(os.environ, environment):
            notes = self.evaluate("--count", "1")["notes"]
        self.assertEqual(notes, [
            "Captions were not judged: nothing is known of what these prompts must show.",
            "LPIPS was not measured: no torch here."])

    def test_bad_usage_is_one_sentence(self):
        for arguments, sentence in (
                (("--setting", "best"), "there is no policy \"best\""),
                (("--setting", "fast,tau=1"), "there is no sparsity option 'tau'"),
                (("--setting", "fast,tau-q"), "'tau-q' is not option=value"),
                (("--setting", "fast", "--setting", "fast"), "the name 'fast' is there twice"),
                (("--prompts", "/nowhere"), "there is no file /nowhere"),
                (("--first", "300"), "holds only 256 prompts"),
                (("--clock", "sun"), "--clock"),
                (("-o", "/dev/null/x"), "cannot be made")):
            with self.subTest(arguments):
                done = self.run_fails(2, "eval", "-o", self.out, *SMALL, *arguments)
                self.assertIn(sentence, done.splitlines()[-1])
        self.assertFalse(self.out.exists())


if __name__ == "__main__":
    unittest.main()
