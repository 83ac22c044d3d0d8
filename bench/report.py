#!/usr/bin/env python3
"""Measures with the command-line tool and renders the tables of docs/ from what was measured.

  bench/report.py quality   `flashomni eval` over the sweeps below -> quality/*.json, docs/img;
                            --sweeps NAME,... for some; goes on where it was stopped
  bench/report.py operators time the CPU operators against the machine's peak -> operators.json
  bench/report.py render    rewrite the tables of docs/benchmarks.md and docs/quality.md;
                            --check only compares

Every file under bench/results/ keeps the command, the commit, the date and the machine.
"""
import argparse
import datetime
import json
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
DOC = ROOT / "docs" / "benchmarks.md"
QUALITY_DOC = ROOT / "docs" / "quality.md"

# (name, arguments): one line of the operator table per sparsity.
OPERATORS = [
    ("attention", "--head-dim 64 --heads 6 --kind skip --block 64 --dtype f32"),
    ("attention", "--head-dim 128 --heads 6 --kind skip --block 64 --dtype f32"),
    ("attention", "--head-dim 64 --heads 6 --kind skip --block 64 --dtype bf16"),
    ("attention", "--head-dim 128 --heads 6 --kind skip --block 64 --dtype bf16"),
    ("gemm-q", "--head-dim 128 --heads 24 --kind cache --block 128 --dtype f32"),
    ("gemm-o", "--head-dim 128 --heads 24 --kind cache --block 128 --dtype f32"),
]


# Name -> arguments of eval. One thread and the processor's time, so that figures do not depend on
# what else the machine does.
SWEEPS = {
    "presets-256": "--settings bench/settings/presets.json -W 256 -H 256 --count 24",
    "presets-128": "--settings bench/settings/presets.json -W 128 -H 128 --count 128",
    "pareto-128": "--settings bench/settings/pareto-128.json -W 128 -H 128 --count 24",
}
COMMON = "--threads 1 --clock cpu"


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


def measure_quality(options):
    for name in options.sweeps.split(","):
        arguments = f"{SWEEPS[name]} {COMMON} -o out/eval/{name}"
        print(f"flashomni eval {arguments}", file=sys.stderr)
        subprocess.run([str(options.tool), "eval", *arguments.split()], cwd=ROOT, check=True,
                       stdout=subprocess.DEVNULL)
        folder = ROOT / "out" / "eval" / name
        summary = json.loads((folder / "summary.json").read_text())
        (RESULTS / "quality").mkdir(parents=True, exist_ok=True)
        record = {"command": f"flashomni eval {SWEEPS[name]} {COMMON}",
                  "date": datetime.date.today().isoformat(), **summary}
        (RESULTS / "quality" / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
        for axis in ("work", "seconds") if name.startswith("pareto") else ():
            picture = (folder / f"psnr-over-{axis}.svg").read_text()
            (ROOT / "docs" / "img" / f"{name}-{axis}.svg").write_text(picture)


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


def interval(estimate, digits):
    if estimate["low"] is None:
        return f"{estimate['mean']:.{digits}f}"
    return f"{estimate['mean']:.{digits}f} +- {estimate['high'] - estimate['mean']:.{digits}f}"


def render_quality(record):
    cells = []
    for row in record["settings"]:
        captions = row["captions"]
        cells.append([row["name"], f"{row['macs_ratio']['mean']:.3f}", interval(row["psnr_db"], 1),
                      f"{row['psnr_db']['min']:.1f}", interval(row["ssim"], 3),
                      f"{captions['dense_right']} -> {captions['sparse_right']} of "
                      f"{captions['of']} (-{captions['right_only_dense']} "
                      f"+{captions['right_only_sparse']})" if captions else "-",
                      interval(row["speedup"], 2)])
    header = ["setting", "MACs / dense", "PSNR dB", "worst", "SSIM", "captions right",
              "speed-up (CPU time)"]
    pairs = record["settings"][0]["pairs"]
    return (f"`{record['command']}`, {record['date']}, commits {', '.join(record['commits'])}, "
            f"{record['machine']}; {pairs} pairs a row.\n\n{table(header, cells)}")


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
        # What a policy leaves out depends on the length; its rows belong together all the same.
        sparsity = "-" if row["op"] == "policy" else f"{row['sparsity']:.2f}"
        key = (row["op"], row["head_dim"], row["kind"], row.get("pattern"), sparsity)
        groups.setdefault(key, {})[row["seq"]] = row
    has_patterns = any(row.get("pattern") for row in record["rows"])
    cells = []
    for (op, head_dim, kind, pattern, sparsity), group in groups.items():
        row = [op, str(head_dim), kind, *([pattern or "-"] if has_patterns else []), sparsity]
        for seq in lengths:
            entry = group.get(seq)
            if not entry or "not_run" in entry:
                row += ["not run" if entry else "-", "-", "-"]
                continue
            efficiency = entry["efficiency"]
            row += [f"{entry['ms_median']:.3f}", f"{entry['speedup_over_peer']:.2f}",
                    "-" if efficiency is None else f"{efficiency:.2f}"]
        cells.append(row)
    header = ["op", "head_dim", "kind", *(["pattern"] if has_patterns else []), "sparsity"]
    for seq in lengths:
        header += [f"N={seq} ms", "x peer", "efficiency"]
    return gpu_source(record) + "\n\n" + table(header, cells)


def gpu_source(record):
    if "kernels_of_commit" in record:  # measured before bench/peers.py was there
        return f"{record['gpu']}, {record['date']}, commit {record['kernels_of_commit']}."
    lost = {f"{row['op']} was not run: {row['not_run']}"
            for row in record["rows"] if "not_run" in row}
    return " ".join([f"`{record['command']}`, {record['date']}, commit {record['commit']}, "
                     f"{record['gpu']} ({record['power_limit']}), torch {record['torch']}, cuDNN "
                     f"{record['cudnn']}.", *(f"{reason}." for reason in sorted(lost))])


def renderer_of(path):
    """The section's name, its renderer, and the page that holds it."""
    if path.parent.name == "quality":
        return path.stem, render_quality, QUALITY_DOC
    if path.parent != RESULTS:
        return f"{path.parent.name}-{path.stem}", render_gpu, DOC
    return path.stem, render_operators, DOC


def render(options):
    pages = {page: page.read_text() for page in (DOC, QUALITY_DOC)}
    for path in sorted(RESULTS.glob("**/*.json")):
        name, render_body, page = renderer_of(path)
        body = render_body(json.loads(path.read_text()))
        section = re.compile(rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", re.S)
        if not section.search(pages[page]):
            sys.exit(f"{page.name}: no section <!-- begin {name} --> for {path.name}")
        pages[page] = section.sub(lambda match: match.group(1) + body + "\n" + match.group(2),
                                  pages[page])
    for page, text in pages.items():
        if options.check and text != page.read_text():
            sys.exit(f"{page.name} is not what bench/results say: run bench/report.py render")
        page.write_text(text)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["quality", "operators", "render"])
    parser.add_argument("--tool", default=ROOT / "flashomni")
    parser.add_argument("--sweeps", default=",".join(SWEEPS))
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    {"quality": measure_quality, "operators": measure_operators, "render": render}[options.what](
        options)


if __name__ == "__main__":
    main()
