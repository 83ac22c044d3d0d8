"""Pictures from a model directory, with the noise, the steps and the defaults of the C++ engine."""

import json
import pathlib

import torch

from .captions import Tokenizer
from .flow import PATCH, Schedule, denoise, unpatchify
from .weights import load


def held_out_prompts(folder, count):
    captions = json.loads((pathlib.Path(folder) / "heldout" / "captions.json").read_text())
    return [caption["text"] for caption in captions["captions"][:count]]


class Sampler:
    def __init__(self, folder, device="cpu"):
        folder = pathlib.Path(folder)
        self.device = torch.device(device)
        self.transformer, self.text_encoder = (module.to(device) for module in load(folder))
        self.tokenizer = Tokenizer(folder / "tokenizer")
        self.schedule = Schedule(folder / "scheduler")
        self.defaults = json.loads((folder / "model_index.json").read_text())["defaults"]

    @torch.no_grad()
    def encode(self, words):
        return self.text_encoder(torch.tensor(words, device=self.device))

    @torch.no_grad()
    def draw(self, prompts, seeds, width, height, steps=20, cfg=None, guidance=None):
        """Returns [batch, height, width, 3] bytes; None: the model's default."""
        cfg = self.defaults["true_cfg_scale"] if cfg is None else cfg
        guidance = self.defaults["guidance_embedding"] if guidance is None else guidance
        rows, columns = height // PATCH, width // PATCH
        noise = torch.stack([
            torch.randn(rows * columns, self.transformer.config.in_channels,
                        generator=torch.Generator().manual_seed(seed)) for seed in seeds])
        text = [self.encode([self.tokenizer(prompt) for prompt in prompts]),
                self.encode([self.tokenizer.null] * len(prompts))]
        rope = self.transformer.rope(rows, columns, self.tokenizer.length, self.device)
        tokens = denoise(self.transformer, text, noise.to(self.device), rope,
                         self.schedule.sigmas(rows * columns, steps), cfg, guidance)
        pictures = unpatchify(tokens, rows, columns).clamp(-1, 1)
        bytes_ = ((pictures + 1) * 127.5).round().to(torch.uint8)
        return bytes_.permute(0, 2, 3, 1).cpu().numpy()
