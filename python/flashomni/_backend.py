"""Which backend computes. See docs/decisions/0004-python-default-backends.md."""

from __future__ import annotations

import os
import threading
from typing import NamedTuple

from . import _core


class BackendInfo(NamedTuple):
    name: str
    available: bool
    detail: str


def backends() -> list[BackendInfo]:
    """Every backend of this build: its name, whether it runs here, and on what (or why not)."""
    return [BackendInfo(*info) for info in _core.list_backends()]


class Backend:
    """Computes operators: `Backend("cpu", num_threads=4)`.

    Operators make one when they need it; make your own to choose the kind ("reference", "cpu",
    "cuda", or "auto" for the best there is) or the number of threads (0: one per core), and pass it
    as `backend=`. It may be shared between threads: one computes, the others wait.
    Raises ValueError for an unknown name, NotImplementedError if it cannot run on this machine or
    is used in a process forked after it was made.
    """

    def __init__(self, name: str = "auto", num_threads: int = 0, device_index: int = 0):
        self._core = _core.Backend(name, num_threads, device_index)

    @property
    def name(self) -> str:
        return self._core.name

    @property
    def description(self) -> str:
        return self._core.description

    def _shares_memory_with(self, other: Backend) -> bool:
        """Whether this backend reads what `other` wrote into its memory, in its own order: packed
        weights, symbols."""
        mine, others = self._core, other._core
        return mine.name == others.name and mine.device_index == others.device_index

    def __repr__(self) -> str:
        return f"<flashomni.Backend {self.name}: {self.description}>"


_defaults: dict[tuple[int, bool, int, int], Backend] = {}
_defaults_lock = threading.Lock()


def _make_default(op: str, is_cuda: bool, device_index: int) -> Backend:
    known = {info.name: info for info in backends()}
    if not is_cuda:
        return Backend("cpu" if "cpu" in known and known["cpu"].available else "reference")
    cuda = known.get("cuda")
    if cuda is None or not cuda.available:
        why = cuda.detail if cuda else "this build has no CUDA backend"
        raise NotImplementedError(
            f"{op}: the tensors lie on cuda:{device_index}, but {why}; move them to the CPU"
        )
    return Backend("cuda", device_index=device_index)


def backend_for(op: str, array: _core.Array, stream: int) -> Backend:
    """The default backend of the array's device, process and stream, made on first use."""
    key = (os.getpid(), array.is_cuda, array.device_index, stream)
    with _defaults_lock:
        backend = _defaults.get(key)
        if backend is None:
            backend = _defaults[key] = _make_default(op, array.is_cuda, array.device_index)
        return backend


# A fork may happen while another thread holds the lock.
def _renew_lock() -> None:
    global _defaults_lock
    _defaults_lock = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)
