"""python -m train STAGE: prepare, fit, distill, export, sample, eval (README.md)."""

import argparse
import json
import pathlib
import subprocess

MODEL = "models/flux-mini"
SPRITES = "out/train/sprites.npz"
# The batches that the shipped weights were trained with, more of the large sizes.
MIX = ("128x128:256:0.56,192x192:96:0.18,256x256:40:0.12,96x160:256:0.05,160x96:256:0.05,"
       "64x64:512:0.04")


def prepare(arguments):
    from .sprites import prepare

    count = prepare(arguments.source, arguments.out, arguments.side)
    print(f"{arguments.out}: {count} sprites")


def train(arguments, stage):
    import torch

    from . import data, flow, loop, weights
    from .captions import Tokenizer
    from .sprites import Sprites

    settings = loop.Settings(stage, str(arguments.base), arguments.fresh, arguments.mix,
                             arguments.steps, arguments.optimizer, arguments.lr, arguments.ema,
                             arguments.seed)
    base, device = pathlib.Path(arguments.base), device_of(arguments)
    torch.manual_seed(settings.seed)
    modules = weights.build(base) if settings.fresh else weights.load(base)
    tokenizer, sprites = Tokenizer(base / "tokenizer"), Sprites(arguments.sprites)
    objective, trained = loop.FlowMatching(), 2
    if stage == "distill":
        teacher = weights.load(base)[0].to(device).requires_grad_(False)
        objective, trained = loop.Distillation(teacher, tokenizer.null), 1
    trainer = loop.Trainer(modules, objective, flow.Schedule(base / "scheduler"), settings,
                           trained, device)
    trainer.resume(arguments.out)
    held_out = data.Batches(sprites, tokenizer, data.parse_mix(arguments.held_out), 0, "test")[0]
    batches = data.Batches(sprites, tokenizer, data.parse_mix(settings.mix), settings.seed)
    loop.run(trainer, batches, {key: torch.from_numpy(value) for key, value in held_out.items()},
             arguments.out, arguments.every, arguments.workers)


def export(arguments):
    import torch

    from . import loop, weights

    state = torch.load(pathlib.Path(arguments.run) / loop.CHECKPOINT, map_location="cpu")
    settings = state["settings"]
    # One forward pass a step is what a distilled model is for.
    defaults = ({"guidance_embedding": 3.0, "true_cfg_scale": 1.0}
                if settings["stage"] == "distill" else None)
    weights.export(state["averaged"], settings["base"], arguments.out, defaults)
    print(f"{arguments.out}: the averaged weights of step {state['step']}")


def sample(arguments):
    """Also the first half of eval. Returns the files."""
    from PIL import Image

    from .sampling import Sampler, held_out_prompts

    prompts = arguments.prompt or held_out_prompts(arguments.model, arguments.count)
    sampler = Sampler(arguments.model, device_of(arguments))
    out, files = pathlib.Path(arguments.out), []
    out.mkdir(parents=True, exist_ok=True)
    width, height = map(int, arguments.size.split("x"))
    for first in range(0, len(prompts), arguments.batch):
        some = prompts[first:first + arguments.batch]
        seeds = [arguments.seed + first + index for index in range(len(some))]
        for picture in sampler.draw(some, seeds, width, height, arguments.steps, arguments.cfg,
                                    arguments.guidance):
            files.append(out / f"{len(files):04}.png")
            Image.fromarray(picture).save(files[-1])
    (out / "prompts.json").write_text(json.dumps(prompts, indent=1) + "\n")
    print(f"{out}: {len(files)} pictures")
    return files


def evaluate(arguments):
    arguments.prompt = None
    files = sample(arguments)
    command = [arguments.flashomni, "judge", "--json", "--model", arguments.model, *map(str, files)]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if result.returncode:
        raise SystemExit(result.returncode)
    path = pathlib.Path(arguments.out) / "judged.json"
    path.write_text(result.stdout)
    judged = json.loads(result.stdout)
    print(f"{path}: {judged['right']} of {judged['of']} captions right")


def device_of(arguments):
    import torch

    return arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")


def add_training(stages, stage, text, steps, lr):
    parser = stages.add_parser(stage, help=text)
    add = parser.add_argument
    add("--base", default=MODEL, help="model directory to start from")
    add("--sprites", default=SPRITES, help="what prepare wrote")
    add("--out", default=f"out/train/{stage}", help="folder; a checkpoint in it is continued")
    add("--mix", default=MIX, help="width x height:batch:share,...")
    add("--steps", type=int, default=steps)
    add("--optimizer", choices=["muon", "adamw"], default="muon")
    add("--lr", type=float, default=lr, help="highest learning rate")
    add("--ema", type=float, default=0.9975)
    add("--seed", type=int, default=1)
    add("--held-out", default="128x128:64:1", help="what the held-out loss is taken over")
    add("--every", type=int, default=500, help="steps between checkpoints")
    add("--workers", type=int, default=12, help="processes that draw scenes")
    add("--device", help="cuda if there is one, else cpu")
    if stage == "fit":
        add("--fresh", action="store_true", help="begin with random weights")
    parser.set_defaults(run_stage=lambda arguments: train(arguments, stage), fresh=False)


def add_sampling(stages, stage, text, run_stage):
    parser = stages.add_parser(stage, help=text)
    add = parser.add_argument
    add("model", help="model directory")
    add("--out", default=f"out/train/{stage}")
    if stage == "sample":
        add("--prompt", action="append", help="may be repeated; else held-out captions are drawn")
    else:
        add("--flashomni", default="./flashomni", help="the command-line tool")
    add("--count", type=int, default=256 if stage == "eval" else 16, help="held-out captions")
    add("--size", default="128x128")
    add("--steps", type=int, default=20)
    add("--cfg", type=float, help="classifier-free guidance; 1: one pass a step")
    add("--guidance", type=float, help="value for the guidance embedder")
    add("--seed", type=int, default=1, help="of the first picture")
    add("--batch", type=int, default=16)
    add("--device", help="cuda if there is one, else cpu")
    parser.set_defaults(run_stage=run_stage)


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m train", description=__doc__)
    stages = parser.add_subparsers(required=True, metavar="STAGE")
    stage = stages.add_parser("prepare", help="pictures of the objects -> sprites.npz")
    stage.add_argument("source", help="folder, zip file, or the heldout folder of a model")
    stage.add_argument("--out", default=SPRITES)
    stage.add_argument("--side", type=int, default=128, help="pixels")
    stage.set_defaults(run_stage=prepare)
    add_training(stages, "fit", "train by flow matching", steps=10000, lr=3e-3)
    add_training(stages, "distill", "train guidance into one forward pass", steps=2000, lr=1e-3)
    stage = stages.add_parser("export", help="a checkpoint -> model directory")
    stage.add_argument("run", help="folder of fit or distill")
    stage.add_argument("--out", default="out/train/model")
    stage.set_defaults(run_stage=export)
    add_sampling(stages, "sample", "draw pictures", sample)
    add_sampling(stages, "eval", "draw held-out captions and judge them", evaluate)
    arguments = parser.parse_args(argv)
    arguments.run_stage(arguments)


if __name__ == "__main__":
    main()
