"""What the tests of the command-line tool share: run it, and read and write safetensors.

Plain Python on purpose: the files and the expected values come from code that shares nothing with
the library.
"""
import json
import math
import os
import pathlib
import struct
import subprocess
import tempfile
import unittest

TOOL = os.environ.get("FLASHOMNI_TOOL", "./flashomni")
ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


def run(*arguments, **options):
    return subprocess.run([TOOL, *map(str, arguments)], capture_output=True, text=True, cwd=ROOT,
                          timeout=options.get("timeout", 120), stdin=subprocess.DEVNULL)


# Every backend that this machine can run.
BACKENDS = [backend["name"] for backend in json.loads(run("info", "--json").stdout)["backends"]
            if backend["available"]]


def bf16(value):
    bits = struct.unpack("<I", struct.pack("<f", value))[0]
    return struct.pack("<H", (bits + 0x7FFF + (bits >> 16 & 1)) >> 16)


PACK = {"F32": lambda v: struct.pack("<f", v), "BF16": bf16,
        "F16": lambda v: struct.pack("<e", v), "U8": lambda v: struct.pack("<B", v),
        "I32": lambda v: struct.pack("<i", v)}
UNPACK = {"F32": ("<f", 4), "F16": ("<e", 2), "U8": ("<B", 1), "I32": ("<i", 4), "BF16": (None, 2)}


def write_safetensors(path, tensors):
    """`tensors`: name -> (dtype, shape, flat values)."""
    header, body = {}, b""
    for name, (dtype, shape, values) in tensors.items():
        assert math.prod(shape) == len(values), name
        data = b"".join(PACK[dtype](value) for value in values)
        header[name] = {"dtype": dtype, "shape": shape,
                        "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(header).encode()
    pathlib.Path(path).write_bytes(struct.pack("<Q", len(text)) + text + body)


def read_safetensors(path):
    """name -> (dtype, shape, flat values)."""
    raw = pathlib.Path(path).read_bytes()
    length = struct.unpack_from("<Q", raw)[0]
    header = json.loads(raw[8:8 + length])
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        first, last = entry["data_offsets"]
        data = raw[8 + length + first:8 + length + last]
        form, size = UNPACK[entry["dtype"]]
        if form is None:
            values = [struct.unpack("<f", b"\0\0" + data[i:i + 2])[0]
                      for i in range(0, len(data), 2)]
        else:
            values = [v[0] for v in struct.iter_unpack(form, data)]
        tensors[name] = (entry["dtype"], entry["shape"], values)
    return tensors


class Random:
    """A small generator of our own: the same numbers on every Python."""

    def __init__(self, seed):
        self.state = seed

    def bits(self):
        self.state = (self.state * 6364136223846793005 + 1442695040888963407) % 2**64
        return self.state >> 33

    def floats(self, count):
        # Multiples of 1/64 in [-1, 1): exact in every dtype.
        return [(self.bits() % 128 - 64) / 64 for _ in range(count)]

    def mask(self, count):
        return [self.bits() % 2 for _ in range(count)]


class ToolTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def run_ok(self, *arguments, **options):
        done = run(*arguments, **options)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done

    def run_json(self, *arguments, **options):
        return json.loads(self.run_ok(*arguments, "--json", **options).stdout)

    def run_fails(self, code, *arguments):
        """The tool ends with `code`, nothing on stdout and one sentence at the end of stderr."""
        done = run(*arguments)
        self.assertEqual(done.returncode, code, done.stderr)
        self.assertEqual(done.stdout, "")
        self.assertTrue(done.stderr.splitlines()[-1].startswith("flashomni: "), done.stderr)
        return done.stderr

    def assert_fails(self, code, sentence, *arguments):
        """The same, and the sentence, which holds `sentence`, is all there is on stderr."""
        text = self.run_fails(code, *arguments)
        self.assertIn(sentence, text)
        self.assertEqual(len(text.splitlines()), 1, text)

    def assert_close(self, actual, expected, tolerance):
        self.assertEqual(len(actual), len(expected))
        for i, (a, e) in enumerate(zip(actual, expected)):
            if math.isnan(e) or math.isinf(e):
                self.assertTrue(math.isnan(a) if math.isnan(e) else a == e, f"[{i}] {a}, not {e}")
            else:
                self.assertLessEqual(abs(a - e), tolerance, f"[{i}] {a}, not {e}")
