"""fo.generate and fo.Pipeline on the model that ships."""

import json
import pathlib
import struct

import numpy as np
import pytest

import flashomni as fo

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODEL = ROOT / "models" / "flux-mini"
SMALL = dict(width=64, height=32, steps=6)
# Steps of every kind by symbols, whatever the presets say.
SPARSE = dict(sparsity_policy="flashomni", warmup=4, interval=3, layer_cache=0, **SMALL)
PROMPT = "a red apple on a wooden table in 3d style"


@pytest.fixture(scope="module")
def pipeline():
    return fo.Pipeline(MODEL, dtype="float32", num_threads=2)


def golden(name):
    with open(ROOT / "tests" / "data" / "golden" / "pipeline.safetensors", "rb") as file:
        (header_size,) = struct.unpack("<Q", file.read(8))
        entry = json.loads(file.read(header_size))[name]
        file.seek(entry["data_offsets"][0], 1)
        return np.fromfile(file, np.float32, int(np.prod(entry["shape"]))).reshape(entry["shape"])


def test_picture_of_another_implementation(pipeline):
    """Prompt 3 of tests/data/golden: 20 steps with guidance, made by PyTorch in fp32."""
    prompt = "a sailboat on the sea at sunset with a cloud in the sky in 3d style"
    picture, _ = pipeline.generate(prompt, width=160, height=96, seed=103, preset="off")
    expected = np.rint((golden("p3.image").transpose(1, 2, 0) + 1) * 127.5)
    error = np.mean((picture.astype(float) - expected) ** 2)
    assert picture.dtype == np.uint8 and picture.shape == (96, 160, 3)
    assert 10 * np.log10(255**2 / max(error, 1e-9)) >= 60


def test_summary_has_the_fields_of_the_contract(pipeline):
    _, summary = pipeline.generate(PROMPT, seed=3, **SPARSE)
    assert {"seed": 3, "width": 64, "height": 32, "steps": 6}.items() <= summary.items()
    assert summary["cfg"] == 3 and summary["dtype"] == "f32" and summary["model"] == str(MODEL)
    assert 0 < summary["seconds_denoise"] <= summary["seconds_total"]
    sparsity = summary["sparsity"]
    steps = [sparsity[f"{kind}_steps"] for kind in ("dense", "update", "dispatch")]
    assert sum(steps) == 6 and min(steps[1:]) > 0
    assert sparsity["policy"] == "flashomni" and sparsity["preset"] == "balanced"
    assert 0 < sparsity["attention_sparsity"] < 1
    assert 0 < sparsity["macs_done"] < sparsity["macs_total"]
    assert sparsity["fallbacks"] == [] and sparsity["layers_cached"] == 0
    assert {op["op"] for op in summary["op_times"]} >= {"attention", "gemm_q", "gemm_o", "linear"}
    json.dumps(summary)


def test_seed_and_presets_decide_the_picture(pipeline):
    dense, summary = pipeline.generate(PROMPT, preset=None, **SMALL)
    again, _ = pipeline.generate(PROMPT, preset="off", **SMALL)
    other, _ = pipeline.generate(PROMPT, preset=None, seed=1, **SMALL)
    sparse, _ = pipeline.generate(PROMPT, **SPARSE)
    nothing_left_out, _ = pipeline.generate(PROMPT, tau_q=0, tau_kv=0, **SPARSE)
    np.testing.assert_array_equal(again, dense)
    assert not np.array_equal(other, dense) and not np.array_equal(sparse, dense)
    np.testing.assert_array_equal(nothing_left_out, dense)
    assert summary["sparsity"]["policy"] == "dense" and summary["sparsity"]["preset"] == "off"


def kinds_of_steps(pipeline, **options):
    kinds = []
    pipeline.generate(PROMPT, progress=lambda *step: kinds.append(step), **SMALL, **options)
    assert [step for step, *_ in kinds] == list(range(6))
    assert all(steps == 6 and seconds > 0 for _, steps, _, seconds in kinds)
    return [kind for _, _, kind, _ in kinds]


def test_options_override_the_preset(pipeline, tmp_path):
    kinds = kinds_of_steps(pipeline, warmup=2, interval=2)
    assert kinds == ["dense", "update", "dispatch", "update", "dispatch", "dense"]
    cached = dict(sparsity_policy="layer-cache", warmup=1, interval=6)
    assert kinds_of_steps(pipeline, **cached)[1:5] == ["dispatch"] * 4
    preset = tmp_path / "mine.json"
    preset.write_text(
        '{"description": "mine", "sparsity-policy": "flashomni", "tau-q": 0.5, '
        '"keep-text-kv": false, "forecast": "newton", "warmup": 1, "interval": 5, "block": 32}'
    )
    assert kinds_of_steps(pipeline, preset=preset)[1:5] == ["dispatch"] * 4
    assert kinds_of_steps(pipeline, preset=preset, sparsity_policy="dense") == ["dense"] * 6
    small, large = (pipeline.generate(PROMPT, block=block, **SPARSE)[1] for block in (16, 64))
    assert small["sparsity"]["macs_done"] != large["sparsity"]["macs_done"]


def test_warnings(pipeline):
    _, summary = pipeline.generate("a red appel", preset=None, width=32, height=32, steps=1)
    assert any("appel" in warning for warning in summary["warnings"])


def test_what_progress_raises_ends_the_generation(pipeline):
    def stop(step, *_):
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline.generate(PROMPT, progress=stop, **SMALL)
    pipeline.generate(PROMPT, **SMALL)  # and the pipeline is as good as before


def test_generate_finds_the_model_that_ships(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    picture, summary = fo.generate(PROMPT, preset=None, width=32, height=32, steps=1)
    assert picture.shape == (32, 32, 3) and summary["model"] == "models/flux-mini"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError, match="there is no model_index.json in models/flux-mini or"):
        fo.generate(PROMPT)


WRONG = [
    (ValueError, "there is no preset 'quick'; there are off, balanced, fast", dict(preset="quick")),
    (ValueError, "30 x 32 pixels, both must be multiples of 4", dict(width=30, height=32)),
    (ValueError, "steps is 0, must be at least 1", dict(steps=0)),
    (ValueError, 'there is no option "tau"; there are cdf', dict(tau=0.5)),
    (ValueError, "forecast is 'cubic', allowed are taylor and newton", dict(forecast="cubic")),
    (ValueError, 'there is no policy "none"', dict(sparsity_policy="none")),
    (TypeError, None, dict(warmup="four")),
]


@pytest.mark.parametrize("error, message, arguments", WRONG)
def test_errors(pipeline, error, message, arguments):
    with pytest.raises(error, match=message):
        pipeline.generate(PROMPT, **arguments)


def test_errors_of_loading(tmp_path):
    with pytest.raises(ValueError, match="dtype is 'float16', allowed are auto, float32 and"):
        fo.Pipeline(MODEL, dtype="float16")
    with pytest.raises(ValueError, match="unknown backend 'tpu'"):
        fo.Pipeline(MODEL, backend="tpu")
    (tmp_path / "model_index.json").write_text((MODEL / "model_index.json").read_text())
    with pytest.raises(OSError):
        fo.Pipeline(tmp_path)
