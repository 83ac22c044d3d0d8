"""The examples of docs/python.md run as they stand."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs" / "python.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.S)


@pytest.mark.parametrize("code", EXAMPLES, ids=[code.split("\n")[0] for code in EXAMPLES])
def test_example(code, monkeypatch):
    for package in ("torch", "ml_dtypes"):
        if re.search(rf"^import {package}", code, re.M):
            pytest.importorskip(package, reason=f"{package} is not installed")
    monkeypatch.chdir(ROOT)
    exec(compile(code, str(DOCS), "exec"), {})


def test_there_are_examples():
    assert len(EXAMPLES) >= 4
