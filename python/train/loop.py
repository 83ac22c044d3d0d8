"""The training loop of both stages: what is learned is the objective's matter, all else is here."""

import copy
import dataclasses
import json
import pathlib
import time

import torch
import torch.nn.functional as F

from .files import write_atomically
from .flow import PATCH, patchify
from .optimizer import make_optimizers

CHECKPOINT = "checkpoint.pt"
WARM_UP = 150  # steps
DECAY_SHARE, DECAY_TO = 1 / 3, 0.02  # of the steps, of the learning rate


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a run's weights depend on; a resumed run must have the same."""

    stage: str
    base: str  # model directory
    fresh: bool  # random weights instead of those in `base`
    mix: str
    steps: int
    optimizer: str
    lr: float
    ema: float
    seed: int


@dataclasses.dataclass(frozen=True)
class Noised:
    """A batch on its way: x [batch, tokens, 48] at `times`, and velocity = noise - picture."""

    x: torch.Tensor
    times: torch.Tensor
    velocity: torch.Tensor
    words: torch.Tensor  # [batch, length] ids
    rope: tuple


class FlowMatching:
    """Learns the velocity; the guidance embedder is fed 1."""

    def __call__(self, modules, batch, generator):
        transformer, text_encoder = modules
        predicted = transformer(batch.x, *text_encoder(batch.words), batch.times,
                                torch.ones_like(batch.times), batch.rope)
        return predicted, batch.velocity


class Distillation:
    """Learns what classifier-free guidance with the teacher gives, in one forward pass.

    The scale goes into the guidance embedder. At 1 the student is the teacher without guidance, so
    two passes with any scale remain possible: a tenth of the pictures sees exactly that. The text
    encoder stays the teacher's.
    """

    SCALES = (1.0, 5.0)

    def __init__(self, teacher, null_words):
        self.teacher, self.null_words = teacher, torch.tensor([null_words])

    def __call__(self, modules, batch, generator):
        count, device = len(batch.x), batch.x.device
        share = torch.rand(count, device=device, generator=generator)
        low, high = self.SCALES
        scales = low + (high - low) * ((share - 0.1) / 0.9).clamp(min=0)
        with torch.no_grad():
            embeddings, pooled = modules[1](batch.words)
            null = modules[1](self.null_words.to(device))
            both = [torch.cat([a, b.expand(count, *b.shape[1:])])
                    for a, b in zip((embeddings, pooled), null)]
            prompt, null = self.teacher(
                torch.cat([batch.x] * 2), *both, torch.cat([batch.times] * 2),
                torch.ones(2 * count, device=device), batch.rope).float().chunk(2)
            target = null + scales[:, None, None] * (prompt - null)
        return modules[0](batch.x, embeddings, pooled, batch.times, scales, batch.rope), target


def lr_factor(step, steps):
    """Up in WARM_UP steps, level, down linearly in the last third."""
    warm = (step + 1) / min(WARM_UP, max(1, steps // 4))
    decay = (steps - step) / max(1, steps * DECAY_SHARE)
    return min(1.0, warm, max(DECAY_TO, decay))


class Trainer:
    """modules: (transformer, text encoder); `trained` of them, the first ones, learn."""

    def __init__(self, modules, objective, schedule, settings, trained=2, device="cpu"):
        self.modules = [module.to(device) for module in modules]
        self.objective, self.schedule, self.settings = objective, schedule, settings
        self.averaged = copy.deepcopy(self.modules)
        for module in self.averaged + self.modules[trained:]:
            module.requires_grad_(False)
        self.optimizers = make_optimizers(self.modules[:trained], settings.optimizer, settings.lr)
        self.device = torch.device(device)
        self.generator = torch.Generator(self.device).manual_seed(settings.seed)
        self.step = 0
        self.ropes = {}

    def rope(self, rows, columns, words):
        if (rows, columns) not in self.ropes:
            self.ropes[rows, columns] = self.modules[0].rope(rows, columns, words, self.device)
        return self.ropes[rows, columns]

    def loss(self, modules, batch, generator, times=None):
        pixels, words = (batch[key].to(self.device, non_blocking=True)
                         for key in ("pixels", "tokens"))
        clean = patchify(pixels.float() / 127.5 - 1)
        if times is None:
            times = self.schedule.draw_times(len(clean), clean.shape[1], generator)
        noise = torch.randn(clean.shape, device=self.device, generator=generator)
        noised = Noised(torch.lerp(clean, noise, times[:, None, None]), times, noise - clean,
                        words, self.rope(pixels.shape[2] // PATCH, pixels.shape[3] // PATCH,
                                         words.shape[1]))
        with torch.autocast(self.device.type, torch.bfloat16,
                            enabled=self.device.type == "cuda"):
            predicted, target = self.objective(modules, noised, generator)
        return F.mse_loss(predicted.float(), target)

    def train_step(self, batch):
        loss = self.loss(self.modules, batch, self.generator)
        loss.backward()
        factor = lr_factor(self.step, self.settings.steps)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor
        parameters = [p for o in self.optimizers for g in o.param_groups for p in g["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        # Short at first, so that the beginning is forgotten.
        keep = min(self.settings.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for averaged, module in zip(self.averaged, self.modules):
                for mean, value in zip(averaged.parameters(), module.parameters()):
                    mean.lerp_(value, 1 - keep)
        return loss.detach()

    @torch.no_grad()
    def validate(self, batch):
        """The averaged weights' loss, always with the same noise and times spread evenly."""
        generator = torch.Generator(self.device).manual_seed(5)
        count = len(batch["pixels"])
        order = torch.randperm(count, device=self.device, generator=generator)
        return self.loss(self.averaged, batch, generator, (order + 0.5) / count).item()

    def state(self):
        return {"settings": dataclasses.asdict(self.settings), "step": self.step,
                "modules": [module.state_dict() for module in self.modules],
                "averaged": [module.state_dict() for module in self.averaged],
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                "generator": self.generator.get_state()}

    def save(self, folder):
        write_atomically(pathlib.Path(folder) / CHECKPOINT,
                         lambda file: torch.save(self.state(), file))

    def resume(self, folder):
        """Goes on from a checkpoint, if there is one."""
        path = pathlib.Path(folder) / CHECKPOINT
        if not path.exists():
            return
        state = torch.load(path, map_location=self.device)
        for name, value in dataclasses.asdict(self.settings).items():
            if state["settings"][name] != value:
                raise SystemExit(f"{path} was made with {name} {state['settings'][name]!r}, not "
                                 f"{value!r}: use its settings or another folder")
        for key, parts in (("modules", self.modules), ("averaged", self.averaged),
                           ("optimizers", self.optimizers)):
            for part, values in zip(parts, state[key]):
                part.load_state_dict(values)
        self.generator.set_state(state["generator"].cpu())
        self.step = state["step"]


def run(trainer, batches, held_out, folder, every, workers):
    """Trains to the last step; each `every` steps a checkpoint, and a line to log.jsonl."""
    loader = torch.utils.data.DataLoader(
        batches, batch_size=None, sampler=range(trainer.step, trainer.settings.steps),
        num_workers=workers, pin_memory=trainer.device.type == "cuda")
    since, losses, pictures = time.monotonic(), [], 0
    for batch in loader:
        losses.append(trainer.train_step(batch))
        pictures += len(batch["pixels"])
        if trainer.step % every and trainer.step != trainer.settings.steps:
            continue
        line = {"step": trainer.step, "loss": round(torch.stack(losses).mean().item(), 5),
                "held_out_loss": round(trainer.validate(held_out), 5),
                "pictures_per_second": round(pictures / (time.monotonic() - since), 1)}
        trainer.save(folder)
        with open(pathlib.Path(folder) / "log.jsonl", "a") as log:
            log.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)
        since, losses, pictures = time.monotonic(), [], 0
