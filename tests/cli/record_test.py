"""--record and --replay of the real tool; the file is read by code that shares nothing with it."""
import json
import pathlib
import struct
import unittest

import png
from support import ToolTest, read_safetensors

PROMPT = "a snail in the bottom left on a white background in classic style"
SMALL = ("-p", PROMPT, "-W", "64", "-H", "64", "--steps", "8", "-s", "3", "--cfg", "1",
         "--sparsity-policy", "flashomni", "--tau-q", "0.8", "--tau-kv", "0.1", "--warmup", "4",
         "--interval", "3", "--layer-cache", "0", "--block", "64")
DENSE, UPDATE, DISPATCH = range(3)


def metadata(path):
    raw = pathlib.Path(path).read_bytes()
    return json.loads(raw[8:8 + struct.unpack_from("<Q", raw)[0]])["__metadata__"]


class Record(ToolTest):
    def setUp(self):
        super().setUp()
        self.run_file = self.folder / "run.safetensors"
        self.picture = self.folder / "a.png"

    def generate(self, *arguments, command="generate"):
        return self.run_json(command, *arguments, "-o", self.picture)

    def test_the_file_is_what_the_page_says(self):
        result = self.generate(*SMALL, "--record", self.run_file)
        self.assertEqual(result["record"], str(self.run_file))
        head = metadata(self.run_file)
        self.assertEqual((head["format"], head["version"]), ("flashomni-run", "1"))
        run = json.loads(head["run"])
        self.assertEqual(run["request"]["prompt"], PROMPT)
        self.assertEqual(run["settings"]["preset"], "balanced")
        tensors = read_safetensors(self.run_file)
        kinds = [DENSE, DENSE, DENSE, UPDATE, DISPATCH, DISPATCH, UPDATE, DENSE]
        self.assertEqual(tensors["step.kind"][2], kinds)
        self.assertEqual(tensors["layer.action"][:2], ("U8", [8, 1, 12]))
        self.assertEqual(tensors["layer.action"][2], [kind for kind in kinds for _ in range(12)])
        self.assertEqual(tensors["symbols.cache"][1], [24, 5, 1])
        self.assertEqual(tensors["symbols.skip"][1], [24, 4, 5, 1])
        self.check_density(tensors, result)
        bytes_of_picture = bytes(tensors["picture.png"][2])
        stored = self.folder / "stored.png"
        stored.write_bytes(bytes_of_picture)
        self.assertEqual(png.read(stored), png.read(self.picture))

    def check_density(self, tensors, result):
        """Token pairs of the skip words of a dispatch, counted here bit by bit."""
        tokens = [32, 64, 64, 64, 64]  # text, then image
        words = tensors["symbols.skip"][2]
        density = tensors["layer.density"][2]
        for layer in range(12):
            index = tensors["layer.symbols"][2][4 * 12 + layer]
            pairs = 0
            for head in range(4):
                for q in range(5):
                    word = words[(index * 4 + head) * 5 + q]
                    pairs += tokens[q] * sum(tokens[kv] for kv in range(5) if word >> kv & 1)
            self.assertAlmostEqual(density[4 * 12 + layer], pairs / 4 / 288**2, places=6)
        self.assertAlmostEqual(1 - sum(density) / len(density),
                               result["sparsity"]["attention_sparsity"], places=6)

    def test_a_replay_is_the_same_picture_with_any_threads(self):
        self.generate(*SMALL, "--record", self.run_file)
        first = self.picture.read_bytes()
        for threads in ("1", "2"):
            again = self.generate("--replay", self.run_file, "--threads", threads)
            self.assertEqual(again["replay"]["differences"], [])
            self.assertEqual(self.picture.read_bytes(), first)
        text = self.run_ok("generate", "--replay", self.run_file, "-o", self.picture).stdout
        self.assertIn("the same decisions and the same picture, bit for bit", text)
        other = self.generate("--replay", self.run_file, "-p", "a bat", "-s", "4")
        differences = other["replay"]["differences"]
        self.assertEqual(len(differences), 3)
        self.assertEqual(differences[0], f'the prompt is "a bat", recorded was "{PROMPT}"')
        self.assertEqual(differences[1], "the seed is 4, recorded was 3")
        self.assertRegex(differences[2], r"the picture is another: [\d.]+ dB from the recorded")

    def test_compare_records_the_dense_picture_too(self):
        self.generate(*SMALL, "--record", self.run_file, command="compare")
        tensors = read_safetensors(self.run_file)
        self.assertEqual(tensors["dense.step.seconds"][1], [8])
        stored = self.folder / "stored.png"
        stored.write_bytes(bytes(tensors["dense.picture.png"][2]))
        self.generate(*SMALL[:12], "--preset", "off")
        self.assertEqual(png.read(stored), png.read(self.picture))
        replayed = self.generate("--replay", self.run_file, command="compare")
        self.assertEqual(replayed["replay"]["differences"], [])

    def test_what_does_not_fit_is_one_sentence(self):
        self.generate(*SMALL, "--record", self.run_file)
        out = ("-o", self.picture)
        self.assert_fails(2, "so --tau-q cannot be given with it", "generate", "--replay",
                          self.run_file, "--tau-q", "0.5", *out)
        self.assert_fails(2, "so --preset cannot", "generate", "--replay", self.run_file,
                          "--preset", "fast", *out)
        self.assert_fails(1, "cannot open", "generate", "--replay", self.folder / "none", *out)
        self.assert_fails(1, "the file has", "generate", "--replay", self.picture, *out)
        self.assert_fails(2, "there is no folder /nowhere", "generate", *SMALL, "--record",
                          "/nowhere/run.safetensors", *out)
        for arguments, sentence in ((("--steps", "9"), "steps is 9, recorded was 8"),
                                    (("-W", "32"), "32 x 64 pixels, recorded was 64 x 64"),
                                    (("--cfg", "3"), "cfg 3 takes 2 branches")):
            done = self.run_fails(2, "generate", "--replay", self.run_file, *arguments, *out)
            self.assertIn(sentence, done.splitlines()[-1])


if __name__ == "__main__":
    unittest.main()
