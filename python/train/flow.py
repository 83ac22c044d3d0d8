"""Rectified flow: x_t = (1 - t) x_0 + t noise, the model predicts noise - x_0. Pictures are [batch,
3, height, width] in [-1, 1], tokens [batch, rows * columns, 48] patches of 4 x 4 pixels."""

import json
import math
import pathlib

import torch

PATCH = 4


def patchify(pictures):
    """Token channel = colour * 16 + row * 4 + column."""
    batch, colors, height, width = pictures.shape
    x = pictures.reshape(batch, colors, height // PATCH, PATCH, width // PATCH, PATCH)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, colors * PATCH * PATCH)


def unpatchify(tokens, rows, columns):
    x = tokens.reshape(len(tokens), rows, columns, -1, PATCH, PATCH).permute(0, 3, 1, 4, 2, 5)
    return x.reshape(len(tokens), -1, rows * PATCH, columns * PATCH)


class Schedule:
    """FlowMatchEulerDiscreteScheduler with the dynamic shift of scheduler_config.json."""

    def __init__(self, folder):
        config = json.loads((pathlib.Path(folder) / "scheduler_config.json").read_text())
        self.tokens = config["base_image_seq_len"], config["max_image_seq_len"]
        self.shifts = config["base_shift"], config["max_shift"]

    def shift(self, tokens):
        """Grows with the picture, so that a large one gets as much noise as a small one."""
        (first, last), (low, high) = self.tokens, self.shifts
        return low + (high - low) * (tokens - first) / (last - first)

    def sigmas(self, tokens, steps):
        """The times of a denoising run, 1 first and 0 last."""
        shift = math.exp(self.shift(tokens))
        times = [1 - step / steps for step in range(steps)]
        return [shift / (shift + 1 / time - 1) for time in times] + [0.0]

    def draw_times(self, batch, tokens, generator):
        """Times to train at: logit-normal around the shift, a tenth of them uniform."""
        device = generator.device
        normal = torch.randn(batch, device=device, generator=generator)
        uniform = torch.rand(batch, device=device, generator=generator)
        times = torch.sigmoid(1.2 * normal + self.shift(tokens) - 0.2)
        return torch.where(uniform < 0.1, 10 * uniform, times).clamp(1e-3, 1 - 1e-3)


@torch.no_grad()
def denoise(transformer, text, noise, ropes, sigmas, cfg, guidance):
    """Euler's method from noise [batch, tokens, 48] to tokens.

    text: ((embeddings, pooled) of the prompts, the same of the null prompt); the second is used if
    cfg is not 1. guidance: the value for the guidance embedder.
    """
    x = noise
    branches = 1 if cfg == 1 else 2
    embeddings, pooled = (torch.cat(pair) for pair in zip(*text[:branches]))
    ones = torch.ones(branches * len(noise), device=noise.device)
    for now, after in zip(sigmas, sigmas[1:]):
        v = transformer(torch.cat([x] * branches), embeddings, pooled, now * ones,
                        guidance * ones, ropes).float()
        if branches == 2:
            prompt, null = v.chunk(2)
            v = null + cfg * (prompt - null)
        x = x + (after - now) * v
    return x
