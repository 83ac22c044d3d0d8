"""What the operators do with arrays: DLPack, devices, errors, memory they may not touch."""

import ctypes
import mmap
import os
import signal
import threading
import time

import numpy as np
import pytest

import flashomni as fo
from support import HAS_ML_DTYPES, attention_tolerance, expect_close, needs_torch


def qkv(rng, dtype=np.float32):
    return rng.standard_normal((3, 1, 100, 2, 64)).astype(dtype)


class Wrapped:
    """An array of some other framework: DLPack and nothing else."""

    def __init__(self, array):
        self._array = array

    def __dlpack__(self, **arguments):
        return self._array.__dlpack__(**arguments)

    def __dlpack_device__(self):
        return self._array.__dlpack_device__()


def test_any_dlpack_array_gives_numpy(rng):
    q, k, v = qkv(rng)
    out = fo.attention(Wrapped(q), Wrapped(k), Wrapped(v))
    assert isinstance(out, np.ndarray)
    np.testing.assert_array_equal(out, fo.attention(q, k, v))


def test_no_copy_is_made(rng):
    """100 MB of operands and no memory to speak of for a row that is not computed."""
    import resource

    q = np.zeros((1, 4096, 24, 256), np.float32)
    symbols = fo.Symbols.from_masks(np.zeros((1, 24, 32), np.uint8))
    fo.attention(q[:, :1], q[:, :1], q[:, :1])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    fo.attention(q, q, q, symbols, out=np.empty_like(q))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20 * 1024


def test_read_only_inputs(rng):
    q, k, v = qkv(rng)
    expected = fo.attention(q, k, v)
    for array in (q, k, v):
        array.flags.writeable = False
    np.testing.assert_array_equal(fo.attention(q, k, v), expected)
    with pytest.raises(TypeError, match="attention: out is ndarray, need a writable DLPack"):
        fo.attention(q, k, v, out=q)


def test_mixed_frameworks_follow_q(rng):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    q, k, v = qkv(rng)
    expected = fo.attention(q, k, v)
    out = fo.attention(torch.from_numpy(q), k, v)
    assert isinstance(out, torch.Tensor)
    np.testing.assert_array_equal(out.numpy(), expected)
    out = fo.attention(q, torch.from_numpy(k), torch.from_numpy(v))
    assert isinstance(out, np.ndarray)
    np.testing.assert_array_equal(out, expected)


def test_bfloat16_of_numpy_needs_ml_dtypes(rng, monkeypatch):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    q, k, v = (torch.from_numpy(x).bfloat16() for x in qkv(rng))
    monkeypatch.setitem(__import__("sys").modules, "ml_dtypes", None)
    with pytest.raises(NotImplementedError, match="install ml_dtypes, or pass torch tensors"):
        fo.attention(Wrapped(q), k, v)


def test_uint16_is_not_taken_for_bfloat16(rng):
    q, k, v = qkv(rng)
    with pytest.raises(ValueError, match="attention: q has dtype uint16, allowed are float32"):
        fo.attention(q.astype(np.uint16), k, v)


MESSAGES = [
    ("attention: q has dtype float64, allowed are float32", lambda q, k, v: (q.astype("f8"), k, v)),
    ("attention: q has dtype complex64", lambda q, k, v: (q.astype("c8"), k, v)),
    ("attention: q is i32, expected f32, bf16 or f16", lambda q, k, v: (q.astype("i4"), k, v)),
    ("attention: k is f16, expected f32", lambda q, k, v: (q, k.astype("f2"), v)),
    ("attention: k has 3 axes, need 4", lambda q, k, v: (q, k[0], v)),
    ("attention: q has 5 axes, at most 4 are allowed", lambda q, k, v: (q[None], k, v)),
    (r"attention: v is \[1, 99, 2, 64\], expected \[1, 100", lambda q, k, v: (q, k, v[:, 1:])),
    ("attention: k has 3 heads, expected a divisor", lambda q, k, v: (q, k[:, :, [0, 1, 0]], v)),
    (
        "attention: q has stride 100 in its last axis, expected 1",
        lambda q, k, v: (q.reshape(1, 2, 64, 100).transpose(0, 3, 1, 2), k, v),
    ),
]


@pytest.mark.parametrize("message, change", MESSAGES, ids=[message for message, _ in MESSAGES])
def test_value_errors(rng, message, change):
    with pytest.raises(ValueError, match=message):
        fo.attention(*change(*qkv(rng)))


def test_other_errors(rng):
    q, k, v = qkv(rng)
    with pytest.raises(TypeError, match="attention: q is list, need an array that speaks DLPack"):
        fo.attention(q.tolist(), k, v)
    with pytest.raises(ValueError, match="attention: out overlaps q"):
        fo.attention(q, k, v, out=q)
    with pytest.raises(ValueError, match="attention: out is f16, expected f32"):
        fo.attention(q, k, v, out=np.empty_like(q, np.float16))
    symbols = fo.Symbols.from_masks(np.ones((1, 2, 3), np.uint8), block_q=64)
    with pytest.raises(ValueError, match="q has 100 tokens, that is 2 blocks of 64, but symbols"):
        fo.attention(q, k, v, symbols)
    symbols = fo.Symbols.from_masks(skip=np.ones((1, 2, 1, 2), np.uint8))
    with pytest.raises(ValueError, match="k has 100 tokens, that is 1 blocks of 128, but symbols"):
        fo.attention(q, k, v, symbols)
    with pytest.raises(ValueError, match="unknown backend 'tpu'"):
        fo.Backend("tpu")
    with pytest.raises(MemoryError):
        fo.Weight(np.broadcast_to(np.float32(0), (1 << 24, 1 << 24)))


class OnCuda(Wrapped):
    """Lies about its device: nothing may look at the data."""

    def __dlpack__(self, **arguments):
        capsule = self._array.__dlpack__()
        get = ctypes.pythonapi.PyCapsule_GetPointer
        get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        # struct DLTensor { void* data; int32 device_type; int32 device_id; ... }
        device = ctypes.cast(get(capsule, b"dltensor") + 8, ctypes.POINTER(ctypes.c_int32))
        device[0], device[1] = 2, 0
        return capsule

    def __dlpack_device__(self):
        return 2, 0


def test_cuda_arrays_without_a_cuda_backend(rng):
    if any(info.name == "cuda" and info.available for info in fo.backends()):
        pytest.skip("there is a CUDA backend")
    q, k, v = qkv(rng)
    with pytest.raises(NotImplementedError, match="attention: the tensors lie on cuda:0, but"):
        fo.attention(OnCuda(q), k, v)
    with pytest.raises(ValueError, match="attention: k is on cuda:0, expected cpu"):
        fo.attention(q, OnCuda(k), v)
    with pytest.raises(ValueError, match="policy: k is on cuda:0, expected cpu"):
        fo.policy(q, OnCuda(k))
    with pytest.raises(ValueError, match="w is on cuda:0, expected cpu"):
        fo.gemm_q(q[0], OnCuda(k[0, 0]))


class GuardedPage:
    """Memory whose end is the end of what the process may touch."""

    def __init__(self, num_bytes):
        page = mmap.PAGESIZE
        self.size = -(-num_bytes // page) * page
        self.memory = mmap.mmap(-1, self.size + page)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        protect = ctypes.CDLL(None, use_errno=True).mprotect
        protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        assert protect(start + self.size, page, 0) == 0  # PROT_NONE

    def place(self, array):
        placed = np.frombuffer(self.memory, np.uint8)[self.size - array.nbytes : self.size]
        placed = placed.view(array.dtype).reshape(array.shape)
        placed[...] = array
        return placed


DTYPES = [np.float32, np.float16] + (["bfloat16"] if HAS_ML_DTYPES else [])


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_is_read_past_the_end_of_an_array(backend, rng, dtype):
    if dtype == "bfloat16":
        import ml_dtypes

        dtype = ml_dtypes.bfloat16
    for head_dim, num_tokens in ((64, 100), (24, 129), (8, 1)):
        shape = (1, num_tokens, 3, head_dim)
        q, k, v = (rng.standard_normal(shape).astype(dtype) for _ in range(3))
        guarded = [GuardedPage(q.nbytes).place(x) for x in (q, k, v, np.zeros_like(q))]
        out = fo.attention(*guarded[:3], out=guarded[3], backend=backend)
        np.testing.assert_array_equal(out, fo.attention(q, k, v, backend=backend))
        x, w = q.reshape(1, num_tokens, -1), rng.standard_normal((24, 3 * head_dim)).astype(dtype)
        expected = fo.gemm_q(x, w, num_heads=3, backend=backend)
        guarded = [GuardedPage(array.nbytes).place(array) for array in (x, w, expected)]
        guarded[2][...] = 0
        fo.gemm_q(*guarded[:2], num_heads=3, out=guarded[2], backend=backend)
        np.testing.assert_array_equal(guarded[2], expected)


def test_negative_and_zero_strides(backend, rng):
    q, k, v = qkv(rng)
    reverse, repeated = k[:, ::-1], np.broadcast_to(v[:, :, :1], v.shape)
    out = fo.attention(q, reverse, repeated, backend=backend)
    copies = np.ascontiguousarray(reverse), np.ascontiguousarray(repeated)
    expected = fo.attention(q, *copies, backend=backend)
    expect_close(out, expected, attention_tolerance(q, *copies, "float32"))


def test_the_gil_is_released(rng):
    """While one thread computes, this one goes on."""
    q = rng.standard_normal((1, 1500, 4, 64), dtype=np.float32)
    reference = fo.Backend("reference", num_threads=1)
    done = threading.Event()

    def compute():
        fo.attention(q, q, q, backend=reference)
        done.set()

    start = time.perf_counter()
    thread = threading.Thread(target=compute)
    thread.start()
    ticks = 0
    while not done.is_set():
        time.sleep(0.001)
        ticks += 1
    thread.join()
    assert time.perf_counter() - start > 0.05, "too fast to tell"
    assert ticks >= 10


def test_threads_share_backends_and_symbols(backend, rng):
    q, k, v = rng.standard_normal((3, 1, 500, 4, 64), dtype=np.float32)
    mask = rng.integers(0, 2, (1, 4, 8), np.uint8)
    symbols = fo.Symbols.from_masks(mask, block_q=64, block_kv=64)
    inputs = [(q, k, v), (v, q, k), (k, v, q), (q, v, k)]
    expected = [fo.attention(*x, symbols, backend=backend) for x in inputs]
    wrong = []

    def compute(turn):
        for _ in range(10):
            out = fo.attention(*inputs[turn], symbols, backend=backend)
            if not np.array_equal(out, expected[turn]):
                wrong.append(turn)

    threads = [threading.Thread(target=compute, args=(turn,)) for turn in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_forked_children_compute_with_backends_of_their_own(rng):
    q, k, v = qkv(rng)
    expected = fo.attention(q, k, v)
    mine = fo.Backend("auto")
    child = os.fork()
    if child == 0:
        signal.alarm(30)  # a child that waits for threads it does not have ends here
        try:
            good = np.array_equal(fo.attention(q, k, v), expected)
            try:
                fo.attention(q, k, v, backend=mine)
                good = False
            except NotImplementedError as error:
                good = good and "made before fork()" in str(error)
            del mine  # must not wait for threads that are not there
            os._exit(0 if good else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@needs_torch
def test_torch_tensors_on_other_devices_are_refused():
    import torch

    meta = torch.empty(1, 100, 2, 64, device="meta")
    with pytest.raises((TypeError, NotImplementedError), match="attention: q"):
        fo.attention(meta, meta, meta)
