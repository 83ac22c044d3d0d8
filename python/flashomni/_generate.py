"""Prompt to picture."""

from __future__ import annotations

import json
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from . import _arrays, _core
from ._backend import backends

Progress = Callable[[int, int, str, float], Any]

_PRESETS = pathlib.Path(__file__).parent / "presets"
_ENGINE_OPTIONS = (
    "warmup", "interval", "order", "layer_cache", "ramp", "forecast", "block", "token_order",
)
_MODEL = pathlib.Path("models/flux-mini")


def _find_model(model: str | os.PathLike[str] | None) -> pathlib.Path:
    candidates = [_MODEL, pathlib.Path(sys.prefix, "share/flashomni", _MODEL)]
    if model is not None:
        candidates = [pathlib.Path(model)]
    for candidate in candidates:
        if (candidate / "model_index.json").exists():
            return candidate
    names = " or ".join(str(candidate) for candidate in candidates)
    raise FileNotFoundError(f"Pipeline: there is no model_index.json in {names}")


def _best_backend() -> str:
    return next(info.name for info in backends() if info.available)


def _dtype(name: str, backend: str) -> _core.DType:
    """auto: bfloat16 where it is faster, on a GPU and on a CPU with instructions for it."""
    if name == "auto":
        fast = backend == "cuda" or (backend == "cpu" and "avx512_bf16" in _core.cpu_kernel_sets())
        return _core.DType.bf16 if fast else _core.DType.f32
    if name not in ("float32", "bfloat16"):
        raise ValueError(f"Pipeline: dtype is {name!r}, allowed are auto, float32 and bfloat16")
    return _core.DType.f32 if name == "float32" else _core.DType.bf16


def _read_preset(preset: str | os.PathLike[str] | None) -> dict[str, Any]:
    if preset is None or preset == "off":
        return {}
    path = pathlib.Path(preset)
    if path.suffix != ".json":
        path = _PRESETS / f"{preset}.json"
        names = ["off", *sorted(file.stem for file in _PRESETS.glob("*.json"))]
        if not path.exists():
            raise ValueError(
                f"generate: there is no preset {preset!r}; there are {', '.join(names)}, or give a "
                "FILE.json"
            )
    values = json.loads(path.read_text())
    return {key.replace("-", "_"): value for key, value in values.items()
            if key not in ("description", "evidence")}


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


class _Sparsity:
    """A preset with single options laid over it."""

    def __init__(self, preset: Any, strict: bool, options: dict[str, Any]):
        values = _read_preset(preset)
        self.preset = "off" if preset is None else str(preset)
        named = options.get("sparsity_policy") or values.get("sparsity_policy", "dense")
        self.policy = str(named)
        of_policy = {
            policy: [option.replace("-", "_") for option in names]
            for policy, names in _core.list_policies().items()
        }
        # A preset's options of another policy do not apply; the caller's must fit.
        known = {option for names in of_policy.values() for option in names}
        parts = self.policy.split("+")
        other = known.difference(*(of_policy.get(part, ()) for part in parts))
        values = {key: value for key, value in values.items() if key not in other} | options
        values.pop("sparsity_policy", None)
        self.engine = _engine_options(values, strict)
        # Names that are wrong are the policy's to reject: its message lists those that are right.
        self.policy_options = {
            key.replace("_", "-"): _text(value)
            for key, value in values.items()
            if key not in _ENGINE_OPTIONS and value is not None
        }


def _engine_options(values: dict[str, Any], strict: bool) -> _core.EngineOptions:
    engine = _core.EngineOptions()
    engine.strict = strict
    for name in ("warmup", "interval", "order", "layer_cache", "ramp"):
        if values.get(name) is not None:
            setattr(engine, name, values[name])
    if values.get("block") is not None:
        engine.block_q = engine.block_kv = values["block"]
    forecast = values.get("forecast") or "taylor"
    if forecast not in ("taylor", "newton"):
        raise ValueError(f"generate: forecast is {forecast!r}, allowed are taylor and newton")
    engine.forecast = getattr(_core.ForecastKind, forecast)
    token_order = values.get("token_order") or "raster"
    if token_order not in ("raster", "tile"):
        raise ValueError(f"generate: token_order is {token_order!r}, allowed are raster and tile")
    engine.token_order = getattr(_core.TokenOrder, token_order)
    return engine


class Pipeline:
    """A text-to-image model, loaded once.

    model        folder with model_index.json; None = models/flux-mini, here or in the share folder
                 of the Python installation
    dtype        "auto", "float32" or "bfloat16"
    backend      "auto", or a name of `backends()`
    num_threads  0 = one per core
    It may be shared between threads: one draws, the others wait. Raises OSError if the model or a
    part of it is missing, ValueError or NotImplementedError if it cannot be used.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        dtype: str = "auto",
        backend: str = "auto",
        num_threads: int = 0,
    ):
        self._model = _find_model(model)
        backend = _best_backend() if backend == "auto" else backend
        self._dtype = _dtype(dtype, backend)
        self._core = _core.Pipeline(str(self._model), backend, num_threads, self._dtype)

    def generate(
        self,
        prompt: str,
        *,
        width: int | None = None,
        height: int | None = None,
        steps: int | None = None,
        seed: int = 0,
        cfg: float | None = None,
        guidance: float | None = None,
        preset: str | os.PathLike[str] | None = "balanced",
        strict: bool = False,
        progress: Progress | None = None,
        **options: Any,
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """A picture, uint8 [height, width, 3] in RGB, and a summary of how it came about.

        width, height, steps, cfg, guidance   None = the model's default. cfg is true
                    classifier-free guidance, 1 = off; guidance the value for its embedder
        seed        of the noise: that of torch.randn with a CPU generator of this seed
        preset      a preset's name or file; None or "off" = dense
        strict      raise NotImplementedError instead of running otherwise than asked for
        progress    called after every step with (step, steps, kind, seconds); what it raises ends
                    the generation
        options     single options over those of the preset, spelled with underscores:
                    sparsity_policy, warmup, interval, order, layer_cache, ramp, forecast, block,
                    token_order, and those of the policy, such as tau_q and tau_kv
        The summary has the fields of `flashomni generate --json`. Raises ValueError for a size,
        preset or option that is not allowed.
        """
        sparsity = _Sparsity(preset, strict, options)
        defaults, request = self._core.defaults, _core.GenerateRequest()
        request.prompt, request.seed = prompt, seed
        request.width = defaults.width if width is None else width
        request.height = defaults.height if height is None else height
        request.steps = defaults.steps if steps is None else steps
        request.cfg = defaults.cfg if cfg is None else cfg
        request.guidance = defaults.guidance if guidance is None else guidance
        result = self._core.generate(
            request, sparsity.engine, sparsity.policy, sparsity.policy_options, progress
        )
        picture = np.empty((request.height, request.width, 3), np.uint8)
        result.copy_picture(_arrays.view("generate", "picture", picture, writable=True))
        return picture, self._summary(request, sparsity, result)

    def _summary(
        self, request: _core.GenerateRequest, sparsity: _Sparsity, result: _core.GenerateResult
    ) -> dict[str, Any]:
        stats = result.sparsity
        fallbacks = [{"layer": layer, "reason": reason} for layer, reason in result.fallbacks]
        op_fields = ("op", "seconds", "macs", "calls")
        return {
            "prompt": request.prompt,
            "model": str(self._model),
            "seed": request.seed,
            "width": request.width,
            "height": request.height,
            "steps": request.steps,
            "cfg": request.cfg,
            "guidance": request.guidance,
            "seconds_total": result.seconds_total,
            "seconds_denoise": result.seconds_denoise,
            "backend": self._core.backend,
            "dtype": self._dtype.name,
            "sparsity": {
                "policy": sparsity.policy,
                "preset": sparsity.preset,
                "dense_steps": stats.dense_steps,
                "update_steps": stats.update_steps,
                "dispatch_steps": stats.dispatch_steps,
                "cached_fraction": stats.cached_fraction,
                "skipped_fraction": stats.skipped_fraction,
                "attention_sparsity": stats.attention_sparsity,
                "layers_cached": stats.layers_cached,
                "reused_passes": stats.reused_passes,
                "macs_total": result.macs_total,
                "macs_done": result.macs_done,
                "fallbacks": fallbacks,
            },
            "op_times": [dict(zip(op_fields, op)) for op in result.op_times],
            "warnings": result.warnings,
        }


def generate(
    prompt: str,
    model: str | os.PathLike[str] | None = None,
    *,
    dtype: str = "auto",
    backend: str = "auto",
    num_threads: int = 0,
    **arguments: Any,
) -> tuple[np.ndarray, dict[str, Any]]:
    """`Pipeline(model, ...).generate(prompt, ...)`: a picture, uint8 [height, width, 3], and a
    summary. Loads the model in every call; keep a Pipeline to draw more than once."""
    pipeline = Pipeline(model, dtype=dtype, backend=backend, num_threads=num_threads)
    return pipeline.generate(prompt, **arguments)
