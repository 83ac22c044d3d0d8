#!/usr/bin/env python3
"""Measures with the command-line tool and renders docs/benchmarks.md from what was measured.

  bench/report.py quality   compare dense and sparse over bench/prompts.txt   -> quality.json
  bench/report.py operators time the CPU operators against the machine's peak -> operators.json
  bench/report.py render    rewrite the tables of docs/benchmarks.md; --check only compares

Every file under bench/results/ keeps the command, the commit, the date and the machine.
"""
import argparse
import datetime
import json
import pathlib
import re
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
DOC = ROOT / "docs" / "benchmarks.md"

# (name, arguments): one line of the operator table per sparsity.
OPERATORS = [
    ("attention", "--head-dim 64 --heads 6 --kind skip --block 64 --dtype f32"),
    ("attention", "--head-dim 128 --heads 6 --kind skip --block 64 --dtype f32"),
    ("attention", "--head-dim 64 --heads 6 --kind skip --block 64 --dtype bf16"),
    ("attention", "--head-dim 128 --heads 6 --kind skip --block 64 --dtype bf16"),
    ("gemm-q", "--head-dim 128 --heads 24 --kind cache --block 128 --dtype f32"),
    ("gemm-o", "--head-dim 128 --heads 24 --kind cache --block 128 --dtype f32"),
]


def run_json(tool, *arguments):
    command = [str(tool), *arguments, "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr}")
    return json.loads(done.stdout)


def machine():
    model = re.search(r"model name\s*:\s*(.*)", pathlib.Path("/proc/cpuinfo").read_text())
    return model.group(1) if model else "unknown CPU"


def commit():
    done = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT,
                          capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def save(name, rows, command, **facts):
    RESULTS.mkdir(parents=True, exist_ok=True)
    record = {"command": command, "date": datetime.date.today().isoformat(), "commit": commit(),
              "machine": machine(), **facts, "rows": rows}
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"wrote {path.relative_to(ROOT)}", file=sys.stderr)


def prompts(path):
    lines = pathlib.Path(path).read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def measure_quality(options):
    rows = []
    jobs = [(p, s) for p in options.presets.split(",") for s in enumerate(prompts(options.prompts))]
    for done, (preset, (seed, prompt)) in enumerate(jobs):
        print(f"[{done + 1}/{len(jobs)}] {preset}: {prompt}", file=sys.stderr)
        result = run_json(options.tool, "compare", "-p", prompt, "-s", str(seed), "-W",
                          str(options.size), "-H", str(options.size), "--preset", preset, "-o",
                          str(ROOT / "out" / f"compare-{preset}-{seed}.png"))
        rows.append({"preset": preset, "prompt": prompt, "seed": seed, **{
            key: result[key] for key in ("psnr_db", "ssim", "speedup_denoise", "macs_ratio")},
            "seconds_dense": result["dense"]["seconds_denoise"],
            "seconds_sparse": result["sparse"]["seconds_denoise"],
            "backend": result["sparse"]["backend"],
            **{key: result["sparse"]["sparsity"][key] for key in (
                "attention_sparsity", "cached_fraction", "skipped_fraction", "layers_cached")}})
    save(f"quality-{options.size}", rows, f"bench/report.py quality --size {options.size} "
         f"--presets {options.presets}", size=options.size)


def measure_operators(options):
    rows = []
    for done, (operator, arguments) in enumerate(OPERATORS):
        print(f"[{done + 1}/{len(OPERATORS)}] {operator} {arguments}", file=sys.stderr)
        result = run_json(options.tool, "bench", operator, "--seq", "2368", "--sparsity",
                          "0,0.5,0.75,0.9", "--threads", "1", *arguments.split())
        rows += result["rows"]
    save("operators", rows, "bench/report.py operators", threads=1)


def table(header, rows):
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def provenance(record):
    return (f"`{record['command']}`, {record['date']}, commit {record['commit']}, "
            f"{record['machine']}.")


def render_quality(record):
    cells = []
    for preset in dict.fromkeys(row["preset"] for row in record["rows"]):
        group = [row for row in record["rows"] if row["preset"] == preset]
        columns = ("seconds_dense", "seconds_sparse", "speedup_denoise", "psnr_db", "ssim",
                   "attention_sparsity", "macs_ratio")
        for row in group:
            cells.append([preset, row["prompt"], *(f"{row[c]:.2f}" for c in columns)])
        cells.append([f"**{preset}**", "**mean**",
                      *(f"**{statistics.mean(row[c] for row in group):.2f}**" for c in columns)])
    header = ["preset", "prompt", "dense s", "sparse s", "speed-up", "PSNR dB", "SSIM",
              "attention sparsity", "MACs ratio"]
    return provenance(record) + "\n\n" + table(header, cells)


def render_operators(record):
    cells = []
    for row in record["rows"]:
        peak = row.get("peak_gflops")
        gflops = row["tflops_done"] * 1000
        cells.append([row["op"], row["dtype"], str(row["head_dim"]), row["kind"],
                      f"{row['sparsity']:.2f}", f"{row['ms_median']:.2f}", f"{gflops:.0f}",
                      f"{gflops / peak:.2f}" if peak else "-", f"{row['speedup']:.2f}",
                      f"{row['ideal']:.2f}", f"{row['efficiency']:.2f}"])
    header = ["op", "dtype", "head_dim", "kind", "sparsity", "ms", "GFLOP/s done", "of peak",
              "speed-up", "ideal", "efficiency"]
    return provenance(record) + "\n\n" + table(header, cells)


def render_gpu(record):
    """One row a sparsity and kind; a column of time and ratios a sequence length."""
    lengths = sorted({row["seq"] for row in record["rows"]})
    groups = {}
    for row in record["rows"]:
        key = (row["op"], row["head_dim"], row["kind"], row["sparsity"])
        groups.setdefault(key, {})[row["seq"]] = row
    cells = []
    for (op, head_dim, kind, sparsity), group in groups.items():
        row = [op, str(head_dim), kind, f"{sparsity:.2f}"]
        for seq in lengths:
            entry = group.get(seq)
            efficiency = entry and entry["efficiency"]
            row += [f"{entry['ms_median']:.3f}", f"{entry['speedup_over_peer']:.2f}",
                    "-" if efficiency is None else f"{efficiency:.2f}"] if entry else ["-"] * 3
        cells.append(row)
    header = ["op", "head_dim", "kind", "sparsity"]
    for seq in lengths:
        header += [f"N={seq} ms", "x peer", "efficiency"]
    source = f"{record['gpu']}, {record['date']}, commit {record['kernels_of_commit']}."
    return source + "\n\n" + table(header, cells)


def renderer_of(path):
    if path.parent != RESULTS:
        return f"{path.parent.name}-{path.stem}", render_gpu
    return path.stem, render_quality if path.stem.startswith("quality") else render_operators


def render(options):
    text = DOC.read_text()
    for path in sorted(RESULTS.glob("**/*.json")):
        record = json.loads(path.read_text())
        name, render_body = renderer_of(path)
        body = render_body(record)
        section = re.compile(rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", re.S)
        if not section.search(text):
            sys.exit(f"{DOC.name}: no section <!-- begin {name} --> for {path.name}")
        text = section.sub(lambda match: match.group(1) + body + "\n" + match.group(2), text)
    if options.check:
        sys.exit(0 if text == DOC.read_text() else f"{DOC.name} is not what bench/results say: "
                 "run bench/report.py render")
    DOC.write_text(text)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["quality", "operators", "render"])
    parser.add_argument("--tool", default=ROOT / "flashomni")
    parser.add_argument("--prompts", default=ROOT / "bench" / "prompts.txt")
    parser.add_argument("--presets", default="balanced,fast")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    {"quality": measure_quality, "operators": measure_operators, "render": render}[options.what](
        options)


if __name__ == "__main__":
    main()
