"""Batches of scenes, each a function of (seed, step): a run that goes on draws what it would have
drawn, with any number of workers."""

import dataclasses
import itertools
import random

import numpy as np

from .captions import Grammar
from .render import render


@dataclasses.dataclass(frozen=True)
class Share:
    """One size of the mixture: a batch of `batch` pictures in `share` of the steps."""

    width: int
    height: int
    batch: int
    share: float


def parse_mix(text):
    """128x128:256:0.6,... as width x height : batch : share."""
    mix = []
    for part in text.split(","):
        size, batch, share = part.split(":")
        width, height = map(int, size.split("x"))
        if width % 4 or height % 4 or int(batch) < 1 or not float(share) > 0:
            raise SystemExit(f"--mix: {part}: sizes are multiples of 4, batch and share positive")
        mix.append(Share(width, height, int(batch), float(share)))
    return mix


class Batches:
    """Indexed by step: {"pixels": [batch, 3, height, width] bytes, "tokens": [batch, length]}."""

    def __init__(self, sprites, tokenizer, mix, seed, split="train"):
        self.sprites, self.tokenizer, self.mix = sprites, tokenizer, mix
        self.seed, self.split = seed, split
        # For classifier-free guidance, and so that an unknown word does no harm.
        self.null_share, self.unknown_share = (0.1, 0.02) if split == "train" else (0, 0)

    def __getitem__(self, step):
        source = random.Random(f"{self.seed}/{step}")
        shape = source.choices(self.mix, [share.share for share in self.mix])[0]
        grammar = Grammar(source.getrandbits(64), self.split, self.sprites)
        scenes = list(itertools.islice(grammar, shape.batch))
        pixels = np.stack([render(scene, self.sprites, shape.width, shape.height)
                           for scene in scenes])
        tokens = np.array([self._tokens(scene.caption, source) for scene in scenes], np.int64)
        return {"pixels": pixels, "tokens": tokens}

    def _tokens(self, caption, source):
        if source.random() < self.null_share:
            return self.tokenizer.null
        tokenizer = self.tokenizer
        return [tokenizer.unknown if token != tokenizer.pad
                and source.random() < self.unknown_share else token for token in tokenizer(caption)]
