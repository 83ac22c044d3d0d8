import json
import math
import os
import pathlib
import subprocess
import unittest

import png
from support import ROOT, TOOL, ToolTest

PROMPT = "a snail in the bottom left on a white background in classic style"
SMALL = ("-W", "64", "-H", "64", "--steps", "8", "-s", "3", "--cfg", "1")  # 256 image tokens
# Whatever the presets say, the 8 steps are dense, dense, dense, update, dispatch, dispatch, update,
# dense (the last is always full).
SCHEDULE = ("--sparsity-policy", "flashomni", "--warmup", "4", "--interval", "3",
            "--layer-cache", "0")
STEPS = {"dense_steps": 4, "update_steps": 2, "dispatch_steps": 2}


class Generate(ToolTest):
    def generate(self, *arguments):
        return self.run_json("generate", "-p", PROMPT, *SMALL, "-o", self.folder / "a.png",
                             *arguments)

    def pixels(self, name="a.png"):
        return png.read(self.folder / name)

    def test_json_and_picture(self):
        result = self.generate(*SCHEDULE)
        for key in ("seconds_total", "seconds_denoise", "backend"):
            self.assertIn(key, result)
        self.assertEqual([result[k] for k in ("seed", "width", "height", "steps", "out")],
                         [3, 64, 64, 8, str(self.folder / "a.png")])
        sparsity = result["sparsity"]
        self.assertEqual((sparsity["policy"], sparsity["preset"]), ("flashomni", "balanced"))
        self.assertEqual({key: sparsity[key] for key in STEPS}, STEPS)
        for key in ("cached_fraction", "skipped_fraction", "attention_sparsity"):
            self.assertGreater(sparsity[key], 0)
            self.assertLess(sparsity[key], 1)
        self.assertLess(sparsity["macs_done"], sparsity["macs_total"])
        self.assertEqual((sparsity["fallbacks"], sparsity["layers_cached"]), ([], 0))
        self.assertEqual(self.pixels()[:2], (64, 64))
        self.assertEqual(len(set(self.pixels()[2])), 64)  # no two rows alike: not a flat picture

    def test_the_picture_holds_its_parameters(self):
        self.generate()
        text = png.text(self.folder / "a.png", "parameters")
        self.assertTrue(text.startswith(PROMPT + "\nSteps: 8"))
        for part in ("Seed: 3", "Size: 64x64", "Model: flux-mini", "Preset: balanced",
                     "Sparsity policy: spargeattn+taylorseer"):
            self.assertIn(part, text)

    def test_one_seed_is_one_picture(self):
        self.generate()
        first = (self.folder / "a.png").read_bytes()
        self.generate()
        self.assertEqual((self.folder / "a.png").read_bytes(), first)
        self.generate("-s", "4")
        self.assertNotEqual((self.folder / "a.png").read_bytes(), first)

    def test_thresholds_of_zero_draw_the_dense_picture(self):
        dense = self.generate("--preset", "off")["sparsity"]
        self.assertEqual((dense["policy"], dense["dense_steps"]), ("dense", 8))
        self.assertEqual(dense["macs_done"], dense["macs_total"])
        picture = self.pixels()
        nothing = self.generate("--sparsity-policy", "flashomni", "--tau-q", "0", "--tau-kv", "0",
                                "--order", "0")["sparsity"]
        self.assertEqual(nothing["attention_sparsity"], 0)
        self.assertEqual(self.pixels(), picture)

    def test_single_flags_override_the_preset(self):
        result = self.generate("--interval", "2", "--warmup", "2")["sparsity"]
        self.assertEqual((result["update_steps"], result["dispatch_steps"]), (3, 3))
        cached = self.generate("--sparsity-policy", "layer-cache")["sparsity"]
        self.assertEqual(cached["policy"], "layer-cache")
        self.assertEqual(cached["cached_fraction"], 1)

    def test_a_preset_may_be_a_file(self):
        path = self.folder / "mine.json"
        path.write_text(json.dumps({"description": "x", "sparsity-policy": "flashomni",
                                    "tau-q": "0.6", "warmup": 6, "block": 32}))
        result = self.generate("--preset", path)["sparsity"]
        self.assertEqual((result["dispatch_steps"], result["preset"]), (1, str(path)))
        path.write_text('{"tau": 1}')
        self.assert_fails(2, "has an unknown option 'tau'", "generate", "-p", "x", "--preset", path)
        path.write_text('{"tau')
        self.assert_fails(2, "is not a JSON object", "generate", "-p", "x", "--preset", path)

    def test_text_output_is_sentences(self):
        done = self.run_ok("generate", "-p", PROMPT, *SMALL, *SCHEDULE, "-o",
                           self.folder / "a.png", "-v")
        self.assertIn(f"Wrote {self.folder / 'a.png'}: {PROMPT}", done.stdout)
        self.assertIn("Preset balanced, policy flashomni", done.stdout)
        self.assertIn("4 steps were dense, 2 update, 2 dispatch", done.stdout)
        self.assertRegex(done.stdout, r"attention +\d+\.\d+ +\d+\.\d%")
        self.assertRegex(done.stdout, r"Attention and matrix products take \d+ % of")
        self.assertRegex(done.stderr, r"Drawing 5/8  .* each  .* left  dispatch")

    def test_a_terminal_shows_a_bar(self):
        master, slave = os.openpty()
        command = [TOOL, "generate", "-p", PROMPT, "--steps", "96", "-W", "192", "-H", "192",
                   "-o", str(self.folder / "a.png"), "--threads", "1"]
        process = subprocess.Popen(command, stderr=slave, stdout=subprocess.DEVNULL, cwd=ROOT)
        os.close(slave)
        seen = ""
        while "left  dense" not in seen:
            seen += os.read(master, 4096).decode()
        process.terminate()
        process.wait()
        os.close(master)
        self.assertRegex(seen, r"\r\x1b\[KDrawing \[\.{24}\] 1/96  .* left  dense")

    def test_bad_usage_is_one_sentence(self):
        out = ("-o", self.folder / "a.png")
        self.assert_fails(2, "--prompt is required", "generate")
        self.assert_fails(2, "there is no preset 'best'; there are off, balanced, fast",
                          "generate", "-p", "x", "--preset", "best")
        self.assert_fails(2, "has no model_index.json", "generate", "-p", "x", "-m", "/nowhere")
        self.assert_fails(2, "there is no folder /nowhere", "generate", "-p", "x", "-o",
                          "/nowhere/a.png")
        self.assert_fails(2, "'i8' is not one of", "generate", "-p", "x", "--dtype", "i8")
        self.assert_fails(2, "--interval: 'two' is not an integer", "generate", "-p", "x",
                          "--interval", "two")
        for arguments, sentence in (
                (("-W", "130"), "130"), (("--steps", "0"), "steps"), (("--tau-q", "2"), "tau-q"),
                (("--sparsity-policy", "magic"), "magic"), (("--warmup", "0"), "warmup"),
                (("--preset", "off", "--tau-q", "0.5"), "tau-q")):
            with self.subTest(arguments):
                done = self.run_fails(2, "generate", "-p", "x", *out, *arguments)
                self.assertIn(sentence, done.splitlines()[-1])
        self.assertEqual(list(self.folder.iterdir()), [])

    def test_unknown_words_are_noted(self):
        result = self.generate("-p", "a snale")
        self.assertIn("snale", " ".join(result["warnings"]))


class Compare(ToolTest):
    def test_the_sheet_and_the_numbers_agree(self):
        sheet = self.folder / "c.png"
        result = self.run_json("compare", "-p", PROMPT, *SMALL, *SCHEDULE, "-o", sheet)
        for key in ("psnr_db", "ssim", "max_abs_diff", "speedup_denoise", "macs_ratio", "why"):
            self.assertIn(key, result)
        dense, sparse = result["dense"], result["sparse"]
        self.assertEqual(dense["sparsity"]["dense_steps"], 8)
        self.assertEqual({key: sparse["sparsity"][key] for key in STEPS}, STEPS)
        self.assertAlmostEqual(result["macs_ratio"], sparse["sparsity"]["macs_done"]
                               / dense["sparsity"]["macs_done"], places=9)
        self.assertAlmostEqual(result["speedup_denoise"],
                               dense["seconds_denoise"] / sparse["seconds_denoise"], places=9)
        self.assertIn("bounds the speed-up at", " ".join(result["why"]))

        width, height, rows = png.read(sheet)
        self.assertEqual((width, height), (3 * 64 + 2 * 4, 64 + 16))
        panels = [b"".join(row[3 * left:3 * (left + 64)] for row in rows[16:])
                  for left in (0, 68, 136)]
        differences = [abs(a - b) for a, b in zip(panels[0], panels[1])]
        self.assertEqual(max(differences), result["max_abs_diff"])
        self.assertEqual(panels[2], bytes(min(4 * d, 255) for d in differences))
        error = sum(d * d for d in differences) / len(differences)
        self.assertAlmostEqual(result["psnr_db"], 10 * math.log10(255**2 / error), places=6)
        self.assertNotEqual(set(rows[8]), {255})  # captions

        self.run_ok("generate", "-p", PROMPT, *SMALL, "--preset", "off", "-o", sheet)
        self.assertEqual(b"".join(png.read(sheet)[2]), panels[0])

    def test_text_output_explains(self):
        done = self.run_ok("compare", "-p", PROMPT, *SMALL, "-o", self.folder / "c.png")
        for part in ("times as fast", "dB apart", "The dense run took", "bounds the speed-up"):
            self.assertIn(part, done.stdout)
        self.assertEqual([p.name for p in pathlib.Path(self.folder).iterdir()], ["c.png"])


if __name__ == "__main__":
    unittest.main()
