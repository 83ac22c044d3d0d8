"""The `prepare` stage: pictures of the objects -> one file of sprites, and what reads it."""

import io
import json
import pathlib
import re
import zipfile

import numpy as np

from .files import write_atomically

FILE_NAME = re.compile(r"([0-9A-F]{4,5}_(?:classic|flat|3d))\.(?:png|webp)")


def read_pictures(source):
    """Yields (sprite name, PIL picture) of `source`.

    A folder or zip file of <code point>_<style>.png or .webp, or a model's heldout folder, whose
    sprites of 40 x 40 pixels are enough to see that everything runs.
    """
    from PIL import Image  # only here: everything later reads the file that this stage writes

    source = pathlib.Path(source)
    if (source / "sprites.png").is_file():
        names = json.loads((source / "captions.json").read_text())["sprites"]
        sheet, side, columns = Image.open(source / "sprites.png"), 40, 24
        for index, name in enumerate(names):
            x, y = index % columns * side, index // columns * side
            yield name, sheet.crop((x, y, x + side, y + side))
        return
    if source.is_dir():
        files = ((path.name, path.read_bytes) for path in sorted(source.iterdir()))
    elif zipfile.is_zipfile(source):
        archive = zipfile.ZipFile(source)
        files = ((name, lambda name=name: archive.read(name)) for name in archive.namelist())
    else:
        raise SystemExit(f"prepare: {source} is neither a folder nor a zip file")
    for name, read in files:
        if match := FILE_NAME.fullmatch(name):
            yield match.group(1), Image.open(io.BytesIO(read()))


def prepare(source, out, side=128):
    """Writes every sprite as [4, side, side] bytes: red, green, blue, each multiplied by alpha, and
    alpha."""
    from PIL import Image

    names, pixels = [], []
    for name, picture in read_pictures(source):
        rgba = np.asarray(picture.convert("RGBA").resize((side, side), Image.LANCZOS), np.float32)
        alpha = rgba[..., 3:]
        rgba = np.concatenate([rgba[..., :3] * alpha / 255, alpha], -1)
        names.append(name)
        pixels.append(np.rint(rgba).astype(np.uint8).transpose(2, 0, 1))
    if not names:
        raise SystemExit(f"prepare: no <code point>_<style>.png or .webp in {source}")
    write_atomically(out, lambda file: np.savez_compressed(file, names=names,
                                                           pixels=np.stack(pixels)))
    return len(names)


class Sprites:
    """Sprites by name, each at its own size and halved down to at least 32 pixels."""

    def __init__(self, path):
        with np.load(path) as file:
            names, pixels = file["names"].tolist(), file["pixels"]
        self.index = {name: index for index, name in enumerate(names)}
        self.levels = [pixels]
        while pixels.shape[-1] >= 64 and pixels.shape[-1] % 2 == 0:
            side = pixels.shape[-1] // 2
            blocks = pixels.reshape(-1, 4, side, 2, side, 2)
            pixels = np.rint(blocks.mean((3, 5), dtype=np.float32)).astype(np.uint8)
            self.levels.append(pixels)

    def __contains__(self, name):
        return name in self.index

    def at(self, name, side):
        """The smallest version that is enlarged by at most a quarter for `side` pixels."""
        fine = [level for level in self.levels if 1.25 * level.shape[-1] >= side]
        return (fine or self.levels)[-1 if fine else 0][self.index[name]]
