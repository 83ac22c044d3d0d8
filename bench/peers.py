#!/usr/bin/env python3
"""Times the CUDA operators beside PyTorch's, on the same masks, in turns in one process.

  bench/peers.py                     everything: about three minutes on an H200
  bench/peers.py --ops gemm-q --seq 4608 --output /tmp/rows.json
  bench/peers.py --quick             a smoke run: one length, few masks, five runs

Peers: attention of cuDNN and of FlashAttention-2 (both through SDPA), FlexAttention with a
BlockMask of the same blocks, and cuBLAS. Every result is compared with fp64 on sampled rows before
it is timed. Times are medians of CUDA events around one call; in every round all calls of a group
come in another random order, behind matrix products that keep the GPU busy while the host runs
ahead.

Needs torch, a GPU with kernels, and the package built with the CUDA backend; FlexAttention also a C
compiler. `scripts/gpu_check.sh peers` builds and runs it; `bench/report.py render` makes tables.
"""
import argparse
import datetime
import functools
import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import flashomni as fo
from block_masks import BLOCK, HEADS, Mask
from gpu_timing import DTYPE, Candidate, check, compare, measure, say

ROOT = pathlib.Path(__file__).resolve().parent.parent
INTERVAL, TEXT, CANARY = 6, 512, -7.0
SEQS, OPS = "4608,16896,33024", "attention,flex,gemm-q,gemm-o,policy"


# Attention


class AttentionTensors:
    def __init__(self, seq, head_dim):
        generator = torch.Generator("cuda").manual_seed(1)
        shape = (1, seq, HEADS, head_dim)
        self.seq, self.head_dim = seq, head_dim
        self.q, self.k, self.v = (
            torch.randn(shape, generator=generator, device="cuda").to(DTYPE) for _ in range(3)
        )
        self.heads_first = [x.transpose(1, 2).contiguous() for x in (self.q, self.k, self.v)]
        self.out = torch.empty_like(self.q)

    def facts(self):
        return {"seq": self.seq, "heads": HEADS, "head_dim": self.head_dim, "dtype": "bf16"}

    def macs(self, density):
        return 2 * self.seq**2 * self.head_dim * HEADS * density

    def error(self, what, out, mask):
        """Of 16 computed rows of `out` against fp64, and that cached rows were left alone."""
        rng, live = np.random.default_rng(9), np.argwhere(mask.cache[0])
        actual, expected = [], []
        for head, block in live[rng.integers(len(live), size=16)]:
            token = BLOCK * block + rng.integers(BLOCK)
            keys = torch.from_numpy(np.repeat(mask.skip[0, head, block], BLOCK)).bool().cuda()
            k, v = (x[0, keys, head].double() for x in (self.k, self.v))
            logits = k @ self.q[0, token, head].double() * self.head_dim**-0.5
            expected.append(logits.softmax(0) @ v)
            actual.append(out[0, token, head])
        return check(what, torch.stack(actual), torch.stack(expected))

    def ours(self, mask):
        def call():
            fo.attention(self.q, self.k, self.v, mask.symbols, out=self.out)

        self.out.fill_(CANARY)
        call()
        error = self.error("attention", self.out, mask)
        cached = torch.from_numpy(np.repeat(mask.cache[0] == 0, BLOCK, axis=1)).cuda().t()
        if not (self.out[0][cached] == CANARY).all():
            sys.exit("peers.py: attention wrote rows of cached blocks")
        return Candidate(call, op="attention", **self.facts(), **mask.facts(), max_rel_err=error)

    def peer(self, name, call, mask):
        error = self.error(name, call().transpose(1, 2), mask)
        return Candidate(call, op=name, **self.facts(), **mask.facts(), max_rel_err=error)

    def sdpa(self, name, backend, mask):
        def call():
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(*self.heads_first)

        return self.peer(name, call, mask)


@functools.cache
def compiled_flex_attention():
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)  # for each shape when it first comes


def flex_candidate(tensors, mask):
    from torch.nn.attention.flex_attention import BlockMask

    used = torch.from_numpy(mask.skip & mask.cache[..., None]).int().cuda()
    count = used.sum(-1, dtype=torch.int32)
    indices = used.argsort(dim=-1, descending=True, stable=True).int().contiguous()
    # All kept blocks are whole ones: there is no mask inside a block to evaluate.
    partial = torch.zeros_like(count), torch.zeros_like(indices)
    block_mask = BlockMask.from_kv_blocks(*partial, count, indices, BLOCK_SIZE=BLOCK)

    def call():
        return compiled_flex_attention()(*tensors.heads_first, block_mask=block_mask)

    return tensors.peer("flex attention", call, mask)


def flex_candidates(tensors, dense_mask, masks):
    """Or the row of one that was not run, and why."""
    try:
        return [flex_candidate(tensors, mask) for mask in [dense_mask, *masks]]
    except Exception as problem:  # of a compiler stack that is not ours, in many forms
        reason = f"{type(problem).__name__}: {str(problem).strip().splitlines()[0][:200]}"
        say(f"flex attention: not run: {reason}")
        row = {"op": "flex attention", **tensors.facts(), **dense_mask.facts(), "not_run": reason}
        return [row]


def bench_attention(seq, head_dim, kinds_patterns, sparsities, options):
    ops, tensors = options.ops, AttentionTensors(seq, head_dim)
    dense_mask = Mask(seq, "dense", "random", 0)
    masks = [Mask(seq, *kind, s) for kind in kinds_patterns for s in sparsities]
    say(f"attention, N={seq}, head_dim {head_dim}: {len(masks)} masks, plans and checks")
    cudnn = tensors.sdpa("cudnn sdpa", SDPBackend.CUDNN_ATTENTION, dense_mask)
    flash = tensors.sdpa("flash sdpa", SDPBackend.FLASH_ATTENTION, dense_mask)
    dense = tensors.ours(dense_mask)
    ours = {mask: tensors.ours(mask) for mask in masks} if "attention" in ops else {}
    flex_masks = [mask for mask in masks if mask.pattern == "random"]
    flex, lost = [], []
    if "flex" in ops and head_dim == 128:
        flex = flex_candidates(tensors, dense_mask, flex_masks)
        lost = [row for row in flex if isinstance(row, dict)]
        flex = [] if lost else flex
    measure([cudnn, flash, dense, *ours.values(), *flex], options, f"attention, N={seq}")
    for candidate in (cudnn, flash, dense):
        ideal = 1 if candidate is dense else None
        compare(candidate.row, cudnn, dense if ideal else None, ideal, tensors.macs(1))
    for mask, candidate in ours.items():
        compare(candidate.row, cudnn, dense, 1 / mask.density, tensors.macs(mask.density))
    for mask, candidate in zip([dense_mask, *flex_masks], flex):
        compare(candidate.row, cudnn, flex[0], 1 / mask.density, tensors.macs(mask.density))
    return [c.row for c in (cudnn, flash, dense, *ours.values(), *flex)] + lost


# Projections


class Projection:
    """x [1, seq, C] and a weight [C, C], C = 24 x 128."""

    def __init__(self, seq):
        self.seq, self.width = seq, HEADS * 128
        generator = torch.Generator("cuda").manual_seed(1)
        self.x, self.w = (
            torch.randn(shape, generator=generator, device="cuda").to(DTYPE)
            for shape in ((1, seq, self.width), (self.width, self.width))
        )
        self.out = torch.empty_like(self.x)
        rows = torch.randint(seq, (8,), generator=generator, device="cuda")
        self.rows, self.expected = rows, self.x[0, rows].double() @ self.w.double().t()

    def candidate(self, op, call, mask, live=None):
        self.out.fill_(CANARY)
        call()
        expected = self.expected
        if live is not None:
            expected = torch.where(live, expected, CANARY)
        error = check(op, self.out[0, self.rows], expected)
        facts = {"seq": self.seq, "heads": HEADS, "head_dim": 128, "dtype": "bf16"}
        return Candidate(call, op=op, **facts, **mask.facts(), max_rel_err=error)

    def cublas(self, mask):
        weight = self.w.t()
        return self.candidate(
            "cublas", lambda: torch.matmul(self.x[0], weight, out=self.out[0]), mask
        )

    def gemm_q(self, mask):
        live = torch.from_numpy(mask.cache[0]).bool().cuda()[:, self.rows // BLOCK].t()
        live = live.repeat_interleave(128, dim=1)
        return self.candidate(
            "gemm-q", lambda: fo.gemm_q(self.x, self.w, mask.symbols, out=self.out), mask, live
        )

    def gemm_o(self, mask, dtype):
        """Update and dispatch. With `o` as at the update, both give the dense projection."""
        name = ", f32 cache" if dtype == torch.float32 else ""
        cache = fo.BiasCache([torch.zeros_like(self.x, dtype=dtype)], mask.symbols)

        def update():
            fo.gemm_o_update(self.x, self.w, mask.symbols, bias_cache=cache, out=self.out)

        def dispatch():
            fo.gemm_o_dispatch(self.x, self.w, cache, out=self.out)

        return [
            self.candidate(f"gemm-o {step.__name__}{name}", step, mask)
            for step in (update, dispatch)
        ]


def interval_row(update, dispatch, cublas, live_fraction, macs):
    row = {k: v for k, v in update.row.items() if not k.startswith(("ms_", "host_ms"))}
    row["op"] = row["op"].replace("update", f"interval {INTERVAL}")
    row["ms_median"] = round((update.ms() + (INTERVAL - 1) * dispatch.ms()) / INTERVAL, 4)
    row["max_rel_err"] = max(update.row["max_rel_err"], dispatch.row["max_rel_err"])
    work = (1 + (INTERVAL - 1) * live_fraction) / INTERVAL
    compare(row, cublas, ideal=1 / work, macs=macs * work)
    return row


def bench_projections(seq, sparsities, options):
    projection = Projection(seq)
    masks = [Mask(seq, "cache", "random", s) for s in (0, *sparsities)]
    macs = seq * projection.width**2
    cublas = projection.cublas(Mask(seq, "dense", "random", 0))
    gemm_q = [projection.gemm_q(mask) for mask in masks] if "gemm-q" in options.ops else []
    pairs = [
        (mask, projection.gemm_o(mask, dtype))
        for mask in (masks if "gemm-o" in options.ops else [])
        for dtype in (DTYPE, torch.float32)
    ]
    steps = [step for _, pair in pairs for step in pair]
    measure([cublas, *gemm_q, *steps], options, f"projections, N={seq}")
    compare(cublas.row, cublas, macs=macs)
    for mask, candidate in zip(masks, gemm_q):
        live = mask.live_fraction
        compare(candidate.row, cublas, gemm_q[0], 1 / live, macs * live)
    rows = [cublas.row, *(c.row for c in gemm_q)]
    for mask, (update, dispatch) in pairs:
        compare(update.row, cublas, macs=macs)
        compare(dispatch.row, cublas, macs=macs * mask.live_fraction)
        rows += [update.row, dispatch.row]
        rows.append(interval_row(update, dispatch, cublas, mask.live_fraction, macs))
    return rows


# Policy


def bench_policy(seq, options):
    """Symbols of one layer from its Q and K; the peer is that layer's dense attention."""
    tensors = AttentionTensors(seq, 128)
    more = {"tau_q": 0.5, "tau_kv": 0.1, "text_tokens": TEXT, "text_position": "first"}
    result = fo.policy(tensors.q, tensors.k, **more).symbols
    on_host = fo.policy(tensors.q.cpu(), tensors.k.cpu(), **more).symbols
    differ = [float((a != b).mean()) for a, b in zip(result.to_masks(), on_host.to_masks())]
    if max(differ) > 0.01:
        sys.exit(f"peers.py: policy: {differ} of the cache and skip bits are not the host's")
    dense = tensors.ours(Mask(seq, "dense", "random", 0))
    mask = {"kind": "mix", "pattern": "policy", "sparsity": round(1 - result.stats().density, 3)}
    policy = Candidate(
        lambda: fo.policy(tensors.q, tensors.k, symbols=result, **more),
        op="policy", **tensors.facts(), **mask, bits_unlike_host=max(differ),
    )
    measure([policy, dense], options, f"policy, N={seq}", apart=True)
    compare(policy.row, dense)
    policy.row["peer"] = "attention dense"
    policy.row["share_of_dense_attention"] = round(policy.ms() / dense.ms(), 4)
    return [policy.row]


# The run


def asked(*command):
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def command(options):
    """The call, but for where its output went."""
    words = ["bench/peers.py", f"--seq {','.join(map(str, options.seq))}", f"--runs {options.runs}"]
    if options.ops != set(OPS.split(",")):
        words.append(f"--ops {','.join(sorted(options.ops))}")
    return " ".join(words + (["--quick"] if options.quick else []))


def provenance(options):
    driver, power = (
        asked("nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader").splitlines()[0]
        for field in ("driver_version", "power.limit")
    )
    return {
        "command": command(options),
        "date": datetime.date.today().isoformat(),
        "commit": options.commit or asked("git", "describe", "--always", "--dirty"),
        "gpu": torch.cuda.get_device_name(),
        "driver": driver,
        "power_limit": power,
        "torch": torch.__version__,
        "cudnn": torch.backends.cudnn.version(),
        "method": __doc__.split("\n\n")[2].replace("\n", " "),
    }


def bench(options):
    rows, quick = [], options.quick
    sparsities = (0.5,) if quick else (0.25, 0.5, 0.75, 0.9)
    patterns = ("random",) if quick else ("random", "clustered", "skewed")
    kinds = [(kind, pattern) for pattern in patterns for kind in ("skip", "cache", "mix")]
    for seq in options.seq:
        if {"attention", "flex"} & options.ops:
            rows += bench_attention(seq, 128, kinds, sparsities, options)
        if "attention" in options.ops:
            few = (0.5,) if quick else (0.5, 0.75, 0.9)
            rows += bench_attention(seq, 64, kinds[:3], few, options)
        if {"gemm-q", "gemm-o"} & options.ops:
            rows += bench_projections(seq, sparsities[-3:], options)
        if "policy" in options.ops:
            rows += bench_policy(seq, options)
    return rows


def show(row):
    head = f"{row['op']:28} {row['head_dim']:3} {row['kind']:5} {row['pattern'] or '-':9}"
    head += f" s={row['sparsity']:<5} N={row['seq']:<6}"
    if "not_run" in row:
        return f"{head} not run: {row['not_run']}"
    efficiency = "-" if row["efficiency"] is None else f"{row['efficiency']:.3f}"
    times = f"{row['ms_median']:8.3f} ms  x peer {row['speedup_over_peer']:6.2f}"
    return f"{head} {times}  efficiency {efficiency}"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ops", default=OPS, help=f"some of {OPS}")
    parser.add_argument("--seq", default=None, help=f"multiples of {BLOCK}, default {SEQS}")
    parser.add_argument("--runs", type=int, default=None, help="default 25, with --quick 5")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--commit", help="that was built, if this is no git checkout")
    parser.add_argument("-o", "--output", type=pathlib.Path,
                        help="default bench/results/GPU/peers.json")
    options = parser.parse_args()
    unknown = set(options.ops.split(",")) - set(OPS.split(","))
    if unknown:
        parser.error(f"--ops {', '.join(sorted(unknown))}: there are {OPS}")
    options.ops = set(options.ops.split(","))
    options.seq = [int(n) for n in (options.seq or ("4608" if options.quick else SEQS)).split(",")]
    if any(n % BLOCK or n <= TEXT for n in options.seq):
        parser.error(f"--seq must be multiples of {BLOCK} greater than {TEXT}")
    options.runs = options.runs or (5 if options.quick else 25)
    facts = provenance(options)
    say(f"{facts['gpu']}, torch {facts['torch']}, commit {facts['commit']}")
    rows = bench(options)
    gpu = re.sub(r"^nvidia-", "", re.sub(r"\W+", "-", facts["gpu"].lower())).split("-")[0]
    path = options.output or ROOT / "bench" / "results" / gpu / "peers.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")
    print("\n".join(show(row) for row in rows))
    say(f"wrote {path}")


if __name__ == "__main__":
    main()
