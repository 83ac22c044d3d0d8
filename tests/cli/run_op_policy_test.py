import unittest

from support import BACKENDS, ToolTest, read_safetensors, write_safetensors

# The worked example of the selection (docs/paper_map.md): 2 heads, 26 tokens, head_dim 4, blocks
# of 4; text in blocks 0 and 1, or 5 and 6 where it is last. The tool needs a head_dim that every
# backend takes, so the four features are followed by zeros and the scale by 4^-0.5 is kept by
# doubling q: 16^-0.5 * 2 = 4^-0.5.
H, N, D, PADDED = 2, 26, 4, 16
MASKS = {
    "A": ("1111100 1110111", "1111111 1111111 1111111 1111111 1111111 0000000 0000000 "
          "1111111 1111111 1111111 0000000 1111011 1110111 1101101"),
    "B": ("1110111 1110111", "1111111 1111111 1111111 0000000 1111111 1110111 1111101 "
          "1111111 1111111 1111111 0000000 1111011 1110111 1101101"),
    "C": ("1010111 1101011", "1101111 0000000 0111111 0000000 0111111 1111111 1111111 "
          "1111011 1111011 0000000 1011111 0000000 1111111 1111111"),
    "D": ("1111110 1110111", "1111111 1111111 1111011 1111101 1111011 1111111 0000000 "
          "1111111 1111111 1111010 0000000 1110011 1110010 1101101"),
    "E": ("1111100 1110111", "1111111 1111111 1110011 1111101 1111011 0000000 0000000 "
          "1111111 1111111 1111010 0000000 1110011 1110010 1101101"),
}
SETTINGS = {
    "A": ("text_tokens=8", "text_position=first", "tau_q=0.5", "tau_kv=0.1"),
    "B": ("text_tokens=8", "text_position=first", "tau_q=0.5", "tau_kv=0.1", "scope=layer"),
    "C": ("text_tokens=6", "text_position=last", "tau_q=0.5", "tau_kv=0.1"),
    "D": ("text_tokens=8", "text_position=first", "tau_q=0.5", "tau_kv=0.25",
          "sim_threshold=0.978"),
    "E": ("text_tokens=8", "text_position=first", "tau_q=0.5", "tau_kv=0.25"),
}


def operands():
    q, k = [], []
    for t in range(N):
        b = t // 4
        for h in range(H):
            q += [2 * (((3 * b * b + 5 * h + 7 * d * b + 2 * d + 4 * h * d * b) % 13 - 6) / 4
                       + ((t + d) % 3 - 1) / 8) for d in range(D)] + [0.0] * (PADDED - D)
            k += [((5 * b * b + 2 * h + 3 * d * b + 4 * d + 6 * h * b) % 11 - 5) / 4
                  + ((t + 2 * d) % 3 - 1) / 8 for d in range(D)] + [0.0] * (PADDED - D)
    shape = [1, N, H, PADDED]
    return {"q": ("F32", shape, q), "k": ("F32", shape, k)}


def bits(text):
    return [int(c) for c in text.replace(" ", "")]


class RunPolicy(ToolTest):
    def policy(self, backend, *settings):
        write_safetensors(self.folder / "in.safetensors", operands())
        self.run_ok("run-op", "policy", "--input", self.folder / "in.safetensors", "--output",
                    self.folder / "out.safetensors", "--backend", backend, "--set",
                    ",".join(("block_q=4", "block_kv=4", *settings)))
        return read_safetensors(self.folder / "out.safetensors")

    def test_the_worked_example(self):
        for backend in BACKENDS:
            for case, (cache, skip) in MASKS.items():
                with self.subTest(backend=backend, case=case):
                    result = self.policy(backend, *SETTINGS[case])
                    self.assertEqual(result["cache"][:2], ("U8", [1, 2, 7]))
                    self.assertEqual(result["skip"][:2], ("U8", [1, 2, 7, 7]))
                    self.assertEqual(result["cache"][2], bits(cache))
                    self.assertEqual(result["skip"][2], bits(skip))

    def test_the_scores_of_the_worked_example(self):
        expected = {"c_score": [[.1389, .2748, .2306, .1613, .1944],
                                [.2706, .1145, .0826, .1419, .3905]],
                    "g_score": [[.1991, .2121, .2018, .1962, .1909],
                                [.1789, .1854, .2092, .2156, .2110]]}
        for backend in BACKENDS:
            result = self.policy(backend, *SETTINGS["A"])
            for name, rows in expected.items():
                for head, row in enumerate(rows):
                    scores = result[name][2][head * 7:head * 7 + 7]
                    self.assertEqual(scores[:2], [0, 0])  # text blocks
                    total = sum(scores)
                    self.assert_close([s / total for s in scores[2:]], row, 6e-5)

    def test_nothing_is_selected_without_thresholds_and_nothing_cached_without_text(self):
        for backend in BACKENDS:
            result = self.policy(backend, "tau_q=0", "tau_kv=0", "text_tokens=8",
                                 "text_position=first")
            self.assertEqual(set(result["cache"][2] + result["skip"][2]), {1})
            self.assertEqual(set(self.policy(backend, "tau_q=0.9", "tau_kv=0.2")["cache"][2]), {1})

    def test_text_columns_may_be_dropped_on_demand(self):
        kept = self.policy("reference", *SETTINGS["E"])["skip"][2]
        free = self.policy("reference", *SETTINGS["E"], "keep_text_kv=0")["skip"][2]
        self.assertNotEqual(kept, free)

    def test_bad_settings_are_named(self):
        write_safetensors(self.folder / "in.safetensors", operands())
        call = ["run-op", "policy", "--input", self.folder / "in.safetensors", "--output",
                self.folder / "out.safetensors", "--set"]
        self.assert_fails(2, "scope=block is not head or layer", *call, "scope=block")
        self.assert_fails(2, "text_position=middle is not first, last or none", *call,
                          "text_position=middle")
        self.assert_fails(2, "takes name=value, not 'tau_q'", *call, "tau_q")
        self.assert_fails(1, "text", *call, "text_tokens=8")


if __name__ == "__main__":
    unittest.main()
