"""Weights to and from the model directory that the C++ loader and diffusers read."""

import json
import math
import pathlib
import shutil
import struct

import torch

from .files import write_atomically
from .model import TextConfig, TextEncoder, Transformer, TransformerConfig, from_json

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "I64": torch.int64}
PARTS = {"transformer": "diffusion_pytorch_model.safetensors", "text_encoder": "model.safetensors"}


def load_safetensors(path):
    """Returns ({name: tensor}, metadata)."""
    data = bytearray(pathlib.Path(path).read_bytes())
    (size,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8:8 + size])
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, entry in header.items():
        tensors[name] = torch.frombuffer(
            data, dtype=DTYPES[entry["dtype"]], count=math.prod(entry["shape"]),
            offset=8 + size + entry["data_offsets"][0]).reshape(entry["shape"])
    return tensors, metadata


def save_safetensors(path, tensors, metadata):
    """In the order of the names; the same tensors give the same bytes."""
    header, parts, end = {"__metadata__": metadata}, [], 0
    names = {dtype: name for name, dtype in DTYPES.items()}
    for name, tensor in sorted(tensors.items()):
        tensor = tensor.detach().cpu().contiguous()
        raw = tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor
        parts.append(raw.numpy().tobytes())
        header[name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape),
                        "data_offsets": [end, end + len(parts[-1])]}
        end += len(parts[-1])
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    write_atomically(path, lambda file: file.writelines(
        [struct.pack("<Q", len(text)), text, *parts]))


def build(folder):
    """The transformer and text encoder of the configurations in a model directory, untrained."""
    read = [json.loads((pathlib.Path(folder) / part / "config.json").read_text())
            for part in PARTS]
    return (Transformer(from_json(TransformerConfig, read[0])),
            TextEncoder(from_json(TextConfig, read[1])))


def load(folder):
    """The transformer and text encoder of a model directory, in fp32."""
    modules = build(folder)
    for module, (part, name) in zip(modules, PARTS.items()):
        tensors, _ = load_safetensors(pathlib.Path(folder) / part / name)
        module.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return modules


def export(states, base, out, defaults=None):
    """Writes a model directory: `states` of the transformer and the text encoder in bf16, the rest
    copied from `base`, whose MODEL_CARD.md is left out: it speaks of other weights.

    `defaults`: what to change in model_index.json.
    """
    base, out = pathlib.Path(base), pathlib.Path(out)
    skip = ("MODEL_CARD.md", *PARTS.values())
    for source in sorted(base.rglob("*")):
        if source.is_file() and source.name not in skip:
            target = out / source.relative_to(base)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    if defaults:
        index = json.loads((out / "model_index.json").read_text())
        index["defaults"].update(defaults)
        (out / "model_index.json").write_text(json.dumps(index, indent=2))
    for state, (part, name) in zip(states, PARTS.items()):
        tensors = {key: value.to(torch.bfloat16) for key, value in state.items()}
        save_safetensors(out / part / name, tensors, {"format": "pt"})
