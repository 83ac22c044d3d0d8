"""Muon (https://kellerjordan.github.io/posts/muon) for the matrices of the blocks, AdamW for the
rest: what the shipped weights were trained with."""

import math

import torch

# The quintic of the post: drives the singular values of a matrix towards 1.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """Momentum, made orthogonal; scaled so that a learning rate of AdamW's size fits."""

    def __init__(self, parameters, lr, weight_decay=0.02, momentum=0.95):
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay,
                                      "momentum": momentum})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                buffer = state["momentum"]
                buffer.lerp_(parameter.grad, 1 - group["momentum"])
                update = orthogonal(parameter.grad.lerp(buffer, group["momentum"]))
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                # An orthogonal matrix has a root mean square of 1 / sqrt(longer side); AdamW's
                # updates have about 0.2.
                scale = 0.2 * math.sqrt(max(parameter.shape))
                parameter.add_(update, alpha=-group["lr"] * scale)


def orthogonal(matrix):
    x = matrix.bfloat16() if matrix.is_cuda else matrix
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (x.norm() + 1e-12)
    a, b, c = NEWTON_SCHULZ
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if tall else x).to(matrix.dtype)


def make_optimizers(modules, kind, lr):
    """One or two optimizers; each group keeps its full learning rate as "peak"."""
    named = [item for module in modules for item in module.named_parameters()]
    matrices = [parameter for name, parameter in named if kind == "muon"
                and parameter.ndim == 2 and "blocks" in name and "norm" not in name]
    chosen = set(map(id, matrices))
    rest = [parameter for _, parameter in named if id(parameter) not in chosen]
    # The rest takes 0.3 of Muon's rate, as the shipped weights' training did.
    adamw_lr = 0.3 * lr if matrices else lr
    optimizers = [torch.optim.AdamW(rest, lr=adamw_lr, betas=(0.9, 0.98), weight_decay=0.0)]
    if matrices:
        optimizers.append(Muon(matrices, lr=lr))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers
