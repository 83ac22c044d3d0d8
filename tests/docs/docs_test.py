"""What the documentation names exists, its numbers are those measured, its code compiles."""
import os
import pathlib
import re
import shlex
import subprocess
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
PATH = re.compile(r"`((?:src|include|docs|bench|scripts|tests|examples|presets|models|apps|python)/"
                  r"[\w./-]*\w/?)`")


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.S)


class Documentation(unittest.TestCase):
    def test_the_six_files_of_a_dispatch_hold_the_named_symbols(self):
        rows = re.findall(r"^\| \d \| `([^`]+)` \|[^|]*\| `([^`]+)` \|",
                          (ROOT / "docs/architecture.md").read_text(), re.M)
        self.assertEqual(len(rows), 6)
        for path, symbol in rows:
            self.assertIn(symbol, (ROOT / path).read_text(), path)

    def test_paths_exist(self):
        for page in PAGES:
            for path in PATH.findall(page.read_text()):
                if "NAME" in path:  # stands for any
                    continue
                self.assertTrue((ROOT / path).exists(), f"{page.name} names {path}")

    def test_links_lead_somewhere(self):
        for page in PAGES:
            for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
                self.assertTrue((page.parent / target).exists(), f"{page.name} links to {target}")

    def test_pages_are_ascii(self):
        for page in PAGES:
            self.assertTrue(page.read_text().isascii(), page.name)

    def test_readme_is_short(self):
        self.assertLessEqual(len((ROOT / "README.md").read_text().splitlines()), 120)

    def test_benchmark_tables_are_what_was_measured(self):
        done = subprocess.run([ROOT / "bench/report.py", "render", "--check"], cwd=ROOT,
                              capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)

    def test_cpp_blocks_of_the_readme_compile(self):
        programs = blocks(ROOT / "README.md", "cpp")
        self.assertTrue(programs)
        for program in programs:
            with tempfile.TemporaryDirectory() as folder:
                source = pathlib.Path(folder) / "example.cpp"
                source.write_text(program)
                done = subprocess.run(
                    [os.environ.get("CXX", "c++"), "-std=c++20", "-fsyntax-only", "-Wall",
                     "-I", ROOT / "include", source], capture_output=True, text=True)
                self.assertEqual(done.returncode, 0, done.stderr)

    def test_commands_of_the_pages_are_understood(self):
        """Every `./flashomni` line gets as far as choosing a backend: an option that is gone or
        misspelt ends before."""
        tool = os.environ.get("FLASHOMNI_TOOL")
        if not tool:
            self.skipTest("the tool is not built")
        lines = [line for page in PAGES
                 for line in re.findall(r"^    (\./flashomni .*)", page.read_text(), re.M)]
        self.assertTrue(lines)
        for line in lines:
            arguments = shlex.split(line, comments=True)[1:]
            done = subprocess.run([tool, *arguments, "--backend", "none"], cwd=ROOT,
                                  capture_output=True, text=True)
            self.assertIn("there is no backend 'none'", done.stderr, line)


if __name__ == "__main__":
    unittest.main()
