"""The stub file of the extension module says what the module has."""

import ast
import pathlib

import pytest

import flashomni
import flashomni._core


def test_stub_is_what_stubgen_writes():
    stubgen = pytest.importorskip("nanobind.stubgen", reason="nanobind is not installed")
    generator = stubgen.StubGen(flashomni._core)
    generator.put(flashomni._core)
    stub = pathlib.Path(flashomni.__file__).with_name("_core.pyi")
    regenerate = f"python -m nanobind.stubgen -m flashomni._core -o {stub.name}"
    # As syntax trees, so that the layout of the file does not matter.
    assert ast.dump(ast.parse(stub.read_text())) == ast.dump(ast.parse(generator.get())), regenerate


def test_everything_public_is_documented_and_typed():
    assert pathlib.Path(flashomni.__file__).with_name("py.typed").exists()
    for name in flashomni.__all__:
        thing = getattr(flashomni, name)
        assert name == "__version__" or thing.__doc__, name
