#!/usr/bin/env python3
"""Sizes that keep the code readable; an exception needs a line below saying why.

File length by kind; function length, number of parameters and nesting of control blocks by a brace
scan of the text without comments and strings; 100 columns everywhere.
"""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
COLUMNS, PARAMETERS, NESTING = 100, 7, 3
FILE_LINES = [("include/", 200), ("tests/", 400), ("scripts/", 200), ("", 400)]  # first match
KERNEL_LINES, FUNCTION_LINES, DEVICE_FUNCTION_LINES = 500, 60, 120

# (file, function or "file"): why it may be larger.
EXCEPTIONS = {
    ("src/backend/reference/gemm_o.cpp", "gemm_o_dispatch"): "a plain loop nest, meant to be read",
    ("src/backend/reference/gemm_q.cpp", "gemm_q"): "a plain loop nest, meant to be read",
    ("src/symbols/symbols.cpp", "to_masks"): "a loop over the four axes of the mask",
}
# Functions that implement a contract of the public headers with more parameters.
WIDE_CONTRACTS = {"attention", "gemm_q"}

STRIP = re.compile(r'//[^\n]*|/\*.*?\*/|R"(\w*)\(.*?\)\1"|"(?:\\.|[^"\\\n])*"|'
                   r"'(?:\\.|[^'\\\n])'|^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", re.S | re.M)
SCOPE = re.compile(r"\b(namespace|class|struct|enum|union|extern)\b(?!.*\)\s*(const)?\s*$)", re.S)
FUNCTION_END = re.compile(r"(\)|\b(const|noexcept|override|final|mutable|try)|\}|->[\w:<>&*,\s]+)$")
CONTROL = re.compile(r"^(\}\s*)?(if|for|while|switch|do|else|try|catch)\b")
NOISE = re.compile(r"\[\[.*?\]\]|\b(alignas|__launch_bounds__|__attribute__|requires)\s*\([^()]*\)")


def blank(match):
    return re.sub(r"[^\n]", " ", match.group())


def name_and_parameters(head):
    """The name before the first parenthesis of a function head, and its parameter count."""
    head = NOISE.sub("", head).replace("operator()", "operator_call")
    start = head.index("(")
    name = re.search(r"([\w:~]+|operator\W+)\s*$", head[:start])
    depth = angles = count = 0
    for character in head[start:]:
        depth += {"(": 1, "{": 1, "[": 1, ")": -1, "}": -1, "]": -1}.get(character, 0)
        angles += {"<": 1, ">": -1}.get(character, 0)
        if character == "," and depth == 1 and angles == 0:
            count += 1
        if depth == 0:
            break
    empty = re.match(r"\(\s*\)", head[start:])
    return (name.group(1).strip() if name else "?"), 0 if empty else count + 1


def functions(text):
    """Yields (line, name, parameters, lines, nesting) of every function defined in `text`."""
    text = STRIP.sub(blank, text)
    stack, head_start, line = [], 0, 1
    for position, character in enumerate(text):
        if character == "\n":
            line += 1
        elif character == "{":
            head = text[head_start:position].strip()
            inside = any(kind == "function" for kind, *_ in stack)
            if inside:
                kind = "control" if CONTROL.match(head) else "block"
            elif SCOPE.search(head) and not FUNCTION_END.search(head):
                kind = "scope"
            elif "(" in head and FUNCTION_END.search(head):
                kind = "function"
            else:
                kind = "initialiser" if stack and head else "scope"
            stack.append([kind, line, head, head_start, 0])
            controls = sum(entry[0] == "control" for entry in stack)
            for entry in stack:
                entry[4] = max(entry[4], controls)
            head_start = position + 1
        elif character == "}":
            kind, first, head, start, nesting = stack.pop() if stack else ("scope", 0, "", 0, 0)
            if kind == "function":
                yield (first, *name_and_parameters(head), line - first + 1, nesting)
            # A braced member initialiser belongs to the constructor's head that goes on behind it.
            head_start = start if kind == "initialiser" else position + 1
        elif character == ";" and text.count("(", head_start, position) == text.count(
                ")", head_start, position):  # not one of for (;;)
            head_start = position + 1


def check_file(name, text):
    lines = text.split("\n")
    kernel = name.endswith((".cuh", ".cu"))
    limit = KERNEL_LINES if kernel else next(n for top, n in FILE_LINES if name.startswith(top))
    if len(lines) - 1 > limit and (name, "file") not in EXCEPTIONS:
        yield f"{name}: {len(lines) - 1} lines, limit {limit}"
    for number, line in enumerate(lines, 1):
        if len(line) > COLUMNS:
            yield f"{name}:{number}: {len(line)} columns, limit {COLUMNS}"
    if name.endswith(".py"):
        return
    function_limit = DEVICE_FUNCTION_LINES if kernel else FUNCTION_LINES
    for line, function, parameters, length, nesting in functions(text):
        base = function.split("::")[-1]
        if (name, base) in EXCEPTIONS:
            continue
        if length > function_limit:
            yield f"{name}:{line}: {function} has {length} lines, limit {function_limit}"
        if parameters > PARAMETERS and base not in WIDE_CONTRACTS:
            yield f"{name}:{line}: {function} has {parameters} parameters, limit {PARAMETERS}"
        if nesting > NESTING and not name.startswith("tests/"):  # oracles are plain loop nests
            yield f"{name}:{line}: {function} nests {nesting} deep, limit {NESTING}"


def main():
    bad = []
    for top in ("include", "src", "apps", "bench", "examples", "python", "scripts", "tests"):
        for path in sorted((ROOT / top).rglob("*")):
            if path.suffix in (".h", ".cpp", ".cu", ".cuh", ".py"):
                bad += check_file(path.relative_to(ROOT).as_posix(), path.read_text())
    print("\n".join(bad) or "sizes: ok")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
