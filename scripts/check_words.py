#!/usr/bin/env python3
"""Words and constructs that this project does not use. Prints file:line of each.

The rules are in CONTRIBUTING.md; an exception needs a line in EXCEPTIONS saying why.
"""
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
CODE = (".h", ".cpp", ".cu", ".cuh", ".py", ".sh", ".cmake")
TEXT = CODE + (".md", ".txt", ".json", ".yml")

# (pattern, which files, what to do instead)
RULES = [
    (r"\b(TODO|FIXME|XXX)\b(?!\(#\d+\))", CODE, "TODO(#issue), or do it now"),
    (r"\b(sparse_info|sparse_(q_)?size|qo_len|d_qk|sm_scale|skip_len|is_full|is_for_cache)\b", CODE,
     "the glossary's word (docs/architecture.md)"),
    (r"catch\s*\(\s*\.\.\.\s*\)", CODE, "catch what can be handled"),
    (r"\bcudaDeviceSynchronize\b", CODE, "Backend::synchronize"),
    (r"//\s*end (for|if|while|of|namespace of)\b", CODE, "shorter blocks"),
    (r"^\s*//\s*[-=*#]{4,}", CODE, "no banners"),
    (r"(?i)\b(state[- ]of[- ]the[- ]art|blazing(ly)?|cutting[- ]edge|world[- ]class)\b", TEXT,
     "numbers"),
    (r"[^\x00-\x7f]", TEXT, "ASCII"),
]
# The library prints nothing, ends nothing and reads no environment.
LIBRARY_RULES = [
    (r"std::(cout|cerr|clog)\b|\b(printf|puts|fputs)\s*\(|\bfprintf\s*\(", "throw an Error"),
    (r"\b(exit|abort|_Exit|quick_exit)\s*\(", "throw an Error"),
    (r"\bgetenv\s*\(", "an option"),
]
# (file, part of the pattern): why it may.
EXCEPTIONS = {
    ("scripts/check_words.py", ""): "names the words",
}


def excepted(name, pattern):
    return any(name.startswith(path) and part in pattern for path, part in EXCEPTIONS)


def main():
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True,
                           check=True).stdout.split("\n")
    bad = []
    for name in names:
        path = ROOT / name
        if not name.endswith(TEXT) or name.startswith("models/") or not path.is_file():
            continue
        rules = [(p, instead) for p, files, instead in RULES if name.endswith(files)]
        if name.startswith("src/"):
            rules += LIBRARY_RULES
        rules = [(re.compile(p), instead) for p, instead in rules if not excepted(name, p)]
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
            for pattern, instead in rules:
                if match := pattern.search(line):
                    bad.append(f"{name}:{number}: '{match.group().strip()}': use {instead}")
    print("\n".join(bad) or "words: ok")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
