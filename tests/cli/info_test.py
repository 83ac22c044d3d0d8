import subprocess
import unittest

from support import ROOT, TOOL, ToolTest, run


class Info(ToolTest):
    def test_json_says_what_there_is(self):
        facts = self.run_json("info")
        for key in ("version", "commit", "system", "cpu", "cpu_features", "gpus", "backends",
                    "cpu_kernels", "policies", "compiler", "libraries"):
            self.assertIn(key, facts)
        self.assertIn("reference", [b["name"] for b in facts["backends"] if b["available"]])

    def test_text_is_one_block_to_paste(self):
        text = self.run_ok("info").stdout
        self.assertTrue(text.startswith("flashomni "))
        self.assertNotIn("\n\n", text)


class SelfTest(ToolTest):
    def test_every_backend_and_kernel_set_passes(self):
        facts = self.run_json("info")
        result = self.run_json("selftest", "--seconds", "1")
        self.assertTrue(result["ok"])
        checks = result["checks"]
        self.assertTrue(all(check["ok"] and check["cases"] > 0 for check in checks), checks)
        self.assertEqual({c["kernels"] for c in checks if c["backend"] == "cpu"},
                         set(facts["cpu_kernels"]))
        self.assertEqual({c["op"] for c in checks},
                         {"attention", "gemm-q", "gemm-o", "policy", "layer"})
        self.assertEqual({c["dtype"] for c in checks}, {"f32", "bf16", "f16"})


class MainProgram(ToolTest):
    def test_bad_usage_is_one_sentence_and_exit_code_2(self):
        self.assert_fails(2, "there is no subcommand 'paint'; there are", "paint")
        self.assert_fails(2, "A subcommand is required")
        self.assert_fails(2, "--nonsense", "info", "--nonsense")

    def test_help_lists_every_subcommand(self):
        text = self.run_ok("--help").stdout
        for name in ("generate", "compare", "bench", "run-op", "selftest", "info"):
            self.assertIn(name, text)
            self.run_ok(name, "--help")

    def test_a_result_that_cannot_be_written_is_a_failure(self):
        with open("/dev/full", "w") as full:
            done = subprocess.run([TOOL, "info"], stdout=full, stderr=subprocess.PIPE, cwd=ROOT)
        self.assertEqual(done.returncode, 1)
        self.assertEqual(run("info").returncode, 0)


if __name__ == "__main__":
    unittest.main()
