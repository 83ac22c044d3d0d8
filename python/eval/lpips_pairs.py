#!/usr/bin/env python3
"""LPIPS (AlexNet) of pairs of pictures, for `flashomni eval`.

  lpips_pairs.py PAIRS OUT   PAIRS: lines "dense.png TAB sparse.png"; appends one JSON line a
                             pair to OUT. Without torch, lpips or Pillow: one line that says so,
                             exit code 3.
"""
import json
import pathlib
import sys

try:
    import lpips
    import torch
    from PIL import Image
except ImportError as missing:
    print(missing)
    sys.exit(3)


def read(path):
    """[1, 3, height, width] in [-1, 1]."""
    picture = Image.open(path).convert("RGB")
    values = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    values = values.reshape(picture.height, picture.width, 3).permute(2, 0, 1)
    return values.unsqueeze(0).float() / 127.5 - 1


def main(pairs, out):
    measure = lpips.LPIPS(net="alex", verbose=False).eval()
    with open(out, "a", encoding="utf-8") as lines, torch.no_grad():
        for pair in pathlib.Path(pairs).read_text(encoding="utf-8").splitlines():
            dense, sparse = pair.split("\t")
            value = float(measure(read(dense), read(sparse)))
            lines.write(json.dumps({"picture": pathlib.Path(sparse).name, "lpips": value}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
