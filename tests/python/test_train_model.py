"""Model, loop and export of python/train. Needs torch; no picture is drawn for long."""

import json
import math
import pathlib
import shutil
import sys
import zlib

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "python"))  # behind site-packages: the installed flashomni stays

from train import loop, weights
from train.__main__ import main
from train.captions import Tokenizer, load_objects
from train.data import Batches, parse_mix
from train.flow import Schedule, patchify, unpatchify
from train.model import Transformer, TransformerConfig, from_json, rope_tables
from train.sampling import Sampler
from train.sprites import Sprites

MODEL = ROOT / "models" / "flux-mini"
GOLDEN = ROOT / "tests" / "data" / "golden"
torch.set_num_threads(1)  # the models are tiny
# fp32 with other sums: the two makers of the golden files differ by up to 2.6e-5.
TOLERANCE = 1e-4


def difference(a, b):
    return (a - b).abs().max().item()


def formula_weight(name, shape):
    """The formula in the metadata of golden_tiny_h128."""
    x = (np.arange(math.prod(shape), dtype=np.uint64) + zlib.crc32(name.encode())) % 2**32
    for shift, factor in ((16, 0x7feb352d), (15, 0x846ca68b)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor) % 2**32
    x ^= x >> np.uint64(16)
    u = torch.from_numpy(((x >> np.uint64(8)).astype(np.float32) / 2**23 - 1)).reshape(shape)
    if len(shape) == 2:
        u = u * np.float32(math.sqrt(3 / shape[1]))
    else:
        u = 1 + 0.1 * u if "norm" in name and name.endswith(".weight") else 0.1 * u
    return u.bfloat16().float()


@pytest.mark.parametrize("name", ["golden_tiny_h64", "golden_tiny_h128"])
def test_outputs_of_diffusers(name):
    golden, metadata = weights.load_safetensors(GOLDEN / f"{name}.safetensors")
    model = Transformer(from_json(TransformerConfig, json.loads(metadata["config"])))
    state = {key[2:]: value.float() for key, value in golden.items() if key.startswith("w.")}
    state = state or {key: formula_weight(key, tuple(value.shape))
                      for key, value in model.state_dict().items()}
    model.load_state_dict(state)
    ids = torch.cat([golden["in.txt_ids"], golden["in.img_ids"]])
    rope = rope_tables(ids, model.config.axes_dims_rope)
    with torch.no_grad():
        out = model(golden["in.hidden_states"], golden["in.encoder_hidden_states"],
                    golden["in.pooled_projections"], golden["in.timestep"], golden["in.guidance"],
                    rope)
    assert difference(out, golden["out.sample"]) < TOLERANCE


def test_outputs_of_the_shipped_weights():
    """Prompt 3 of the pipeline: words, text, both branches of the first step, the times."""
    golden, _ = weights.load_safetensors(GOLDEN / "pipeline.safetensors")
    sampler = Sampler(MODEL)
    words = sampler.tokenizer(
        "a sailboat on the sea at sunset with a cloud in the sky in 3d style")
    assert words == golden["p3.token_ids"].tolist()
    text, pooled = sampler.encode([words, sampler.tokenizer.null])
    assert difference(text[0], golden["p3.prompt_embeds"]) < TOLERANCE
    assert difference(pooled[1], golden["null.pooled"]) < TOLERANCE
    rows, columns = 24, 40
    noise = torch.randn(rows * columns, 48, generator=torch.Generator().manual_seed(103))
    assert torch.equal(noise, golden["p3.noise"])
    sigmas = sampler.schedule.sigmas(rows * columns, 20)
    assert difference(torch.tensor(sigmas), golden["p3.sigmas"]) < 1e-6
    with torch.no_grad():
        v = sampler.transformer(torch.stack([noise] * 2), text, pooled, torch.full((2,), sigmas[0]),
                                torch.ones(2), sampler.transformer.rope(rows, columns, 32))
    assert difference(v[0], golden["p3.v_cond_step0"]) < TOLERANCE
    assert difference(v[1], golden["p3.v_uncond_step0"]) < TOLERANCE


def test_shipped_weights_go_out_as_they_came_in(tmp_path):
    modules = weights.load(MODEL)
    weights.export([module.state_dict() for module in modules], MODEL, tmp_path / "model")
    files = {path.relative_to(MODEL) for path in MODEL.rglob("*") if path.is_file()}
    written = {path.relative_to(tmp_path / "model") for path in (tmp_path / "model").rglob("*")
               if path.is_file()}
    assert written == files - {pathlib.Path("MODEL_CARD.md")}
    for name in written:
        assert (tmp_path / "model" / name).read_bytes() == (MODEL / name).read_bytes(), name


def test_patches_go_back_and_have_the_documented_order():
    pictures = torch.arange(2 * 3 * 8 * 12).reshape(2, 3, 8, 12)
    tokens = patchify(pictures)
    assert tokens.shape == (2, 6, 48) and torch.equal(unpatchify(tokens, 2, 3), pictures)
    assert tokens[1, 4, 2 * 16 + 3 * 4 + 1] == pictures[1, 2, 4 + 3, 4 + 1]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A model directory without weights, 1 + 1 blocks, and batches of 16 x 16 pixels."""
    base = tmp_path_factory.mktemp("tiny")
    for part in ("tokenizer", "scheduler", "transformer", "text_encoder"):
        shutil.copytree(MODEL / part, base / part, ignore=shutil.ignore_patterns("*.safetensors"))
    shutil.copy(MODEL / "model_index.json", base)
    changes = {"transformer": dict(num_layers=1, num_single_layers=1, attention_head_dim=16,
                                   num_attention_heads=2, joint_attention_dim=32,
                                   pooled_projection_dim=32, axes_dims_rope=[4, 6, 6]),
               "text_encoder": dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2)}
    for part, values in changes.items():
        path = base / part / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    names = [f"{thing.code}_{style}" for thing in load_objects()
             for style in ("classic", "flat", "3d")]
    pixels = np.random.default_rng(1).integers(0, 255, (len(names), 4, 8, 8), np.uint8)
    np.savez(base / "sprites.npz", names=names, pixels=pixels)
    batches = Batches(Sprites(base / "sprites.npz"), Tokenizer(base / "tokenizer"),
                      parse_mix("16x16:8:0.7,16x24:8:0.3"), 1)
    batches = [{key: torch.from_numpy(value) for key, value in batches[step].items()}
               for step in range(40)]
    return base, batches


def make_trainer(tiny, stage="fit", optimizer="adamw", steps=40, lr=5e-3):
    base, _ = tiny
    settings = loop.Settings(stage, "base", True, "mix", steps, optimizer, lr, 0.9, 3)
    torch.manual_seed(3)
    modules = weights.build(base)
    schedule = Schedule(base / "scheduler")
    if stage == "fit":
        return loop.Trainer(modules, loop.FlowMatching(), schedule, settings)
    for name, parameter in modules[0].named_parameters():  # a new model gives 0, with any caption
        if "proj_out" in name or "norm" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    teacher = weights.build(base)[0].requires_grad_(False)
    teacher.load_state_dict(modules[0].state_dict())
    objective = loop.Distillation(teacher, [2] + [0] * 31)
    return loop.Trainer(modules, objective, schedule, settings, trained=1)


def assert_equal(a, b, where=""):
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_equal(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, list):
        assert len(a) == len(b), where
        for index, pair in enumerate(zip(a, b)):
            assert_equal(*pair, f"{where}/{index}")
    else:
        assert a == b, where


@pytest.mark.parametrize("stage, optimizer", [("fit", "adamw"), ("fit", "muon"),
                                              ("distill", "muon")])
def test_steps_lower_the_loss(tiny, stage, optimizer):
    trainer = make_trainer(tiny, stage, optimizer)
    first = trainer.validate(tiny[1][0])
    words = {name: value.clone() for name, value in trainer.modules[1].state_dict().items()}
    for batch in tiny[1]:
        trainer.train_step(batch)
    assert trainer.validate(tiny[1][0]) < 0.8 * first
    changed = any(not torch.equal(value, words[name])
                  for name, value in trainer.modules[1].state_dict().items())
    assert changed == (stage == "fit")


@pytest.mark.parametrize("stage, optimizer", [("fit", "adamw"), ("fit", "muon"),
                                              ("distill", "muon")])
def test_resumed_run_ends_where_an_uninterrupted_one_does(tiny, tmp_path, stage, optimizer):
    whole = make_trainer(tiny, stage, optimizer, steps=6)
    for batch in tiny[1][:6]:
        whole.train_step(batch)
    part = make_trainer(tiny, stage, optimizer, steps=6)
    for batch in tiny[1][:3]:
        part.train_step(batch)
    part.save(tmp_path)
    resumed = make_trainer(tiny, stage, optimizer, steps=6)
    resumed.resume(tmp_path)
    assert resumed.step == 3
    for batch in tiny[1][3:6]:
        resumed.train_step(batch)
    assert_equal(resumed.state(), whole.state())


def test_another_runs_checkpoint_is_refused(tiny, tmp_path):
    make_trainer(tiny, steps=6).save(tmp_path)
    with pytest.raises(SystemExit, match="made with steps 6, not 7"):
        make_trainer(tiny, steps=7).resume(tmp_path)


def test_untrained_student_is_the_teacher_without_guidance(tiny):
    """Of the scales only 1 leaves it nothing to learn."""
    trainer = make_trainer(tiny, "distill")
    for module in (trainer.modules[0], trainer.objective.teacher):
        for name, parameter in module.named_parameters():
            if "guidance_embedder" in name:
                torch.nn.init.zeros_(parameter)  # any scale gives the same
    losses = []
    for scale in (1.0, 3.0):
        trainer.objective.SCALES = (scale, scale)
        losses.append(trainer.loss(trainer.modules, tiny[1][0], torch.Generator()).item())
    assert losses[0] < 1e-10 < 1e-4 < losses[1]


def test_learning_rate_goes_up_stays_and_goes_down():
    factors = [loop.lr_factor(step, 3000) for step in range(3000)]
    assert factors[0] == 1 / 150 and factors[149:2000] == [1.0] * 1851
    assert factors[2500] == pytest.approx(0.5) and factors[-1] == 0.02


def test_run_writes_checkpoints_that_export_to_a_model(tiny, tmp_path):
    base, batches = tiny
    trainer = make_trainer(tiny, steps=4)
    loop.run(trainer, batches, batches[0], tmp_path, every=2, workers=0)
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [2, 4]
    state = torch.load(tmp_path / loop.CHECKPOINT)
    weights.export(state["averaged"], base, tmp_path / "model", {"true_cfg_scale": 1.0})
    transformer, text_encoder = weights.load(tmp_path / "model")
    for module, values in zip((transformer, text_encoder), state["averaged"]):
        for name, value in module.state_dict().items():
            assert torch.equal(value, values[name].bfloat16().float())
    sampler = Sampler(tmp_path / "model")
    assert sampler.defaults["true_cfg_scale"] == 1.0
    assert sampler.draw(["a fox", "a mouse"], [1, 2], 16, 24, steps=2).shape == (2, 24, 16, 3)


def test_stages_follow_each_other(tiny, tmp_path, capsys):
    """By the command line, with a judge that finds the first of two captions right."""
    pytest.importorskip("PIL", reason="Pillow is not installed")
    base, out = tmp_path / "base", str(tmp_path)
    shutil.copytree(tiny[0], base)
    shutil.copytree(MODEL / "heldout", base / "heldout")
    judge = tmp_path / "judge"
    judge.write_text("#!/bin/sh\n"
                     f'echo "$@" > {out}/arguments\n'
                     """echo '{"right": 1, "of": 2, "pictures": []}'\n""")
    judge.chmod(0o755)
    training = ["--sprites", str(base / "sprites.npz"), "--mix", "16x16:2:1", "--held-out",
                "16x16:2:1", "--steps", "2", "--workers", "0", "--device", "cpu"]
    main(["fit", "--base", str(base), "--fresh", "--out", f"{out}/fit", *training])
    main(["export", f"{out}/fit", "--out", f"{out}/fitted"])
    main(["distill", "--base", f"{out}/fitted", "--out", f"{out}/distill", *training])
    main(["export", f"{out}/distill", "--out", f"{out}/distilled"])
    main(["eval", f"{out}/distilled", "--flashomni", str(judge), "--size", "16x16", "--steps", "1",
          "--count", "2", "--out", f"{out}/eval", "--device", "cpu"])
    assert "1 of 2 captions right" in capsys.readouterr().out
    assert (tmp_path / "arguments").read_text().split() == [
        "judge", "--json", "--model", f"{out}/distilled", f"{out}/eval/0000.png",
        f"{out}/eval/0001.png"]
    defaults = {name: json.loads((tmp_path / name / "model_index.json").read_text())["defaults"]
                for name in ("fitted", "distilled")}
    assert [(d["guidance_embedding"], d["true_cfg_scale"]) for d in defaults.values()] == [
        (1.0, 3.0), (3.0, 1.0)]
