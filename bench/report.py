#!/usr/bin/env python3
"""Measures with the command-line tool and renders the tables of docs/ from what was measured.

  bench/report.py quality   `flashomni eval` over the sweeps below -> quality/*.json, docs/img;
                            --sweeps NAME,... for some; --jobs N runs parts of each side by side;
                            --backend cuda: on the GPU, without times, into NAME-cuda.json;
                            goes on where it was stopped
  bench/report.py operators time the CPU operators against the machine's peak -> operators.json
  bench/report.py render    rewrite the tables of docs/benchmarks.md and docs/quality.md;
                            --check only compares

Every file under bench/results/ keeps the command, the commit, the date and the machine.
"""
import argparse
import concurrent.futures
import datetime
import json
import pathlib
import re
import shutil
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


# Name -> (settings, side in pixels, prompts). Sweeps of one size share their pictures. On the CPU
# one thread and the processor's time, so that figures do not depend on what else the machine does.
SWEEPS = {
    "presets-256": ("bench/settings/presets.json", 256, 24),
    "presets-128": ("bench/settings/presets.json", 128, 256),
    "frontier-256": ("bench/settings/frontier-256.json", 256, 8),
    "pareto-256": ("bench/settings/pareto-256.json", 256, 8),
    "pareto-128": ("bench/settings/pareto-128.json", 128, 24),
}


CLOCKS = {"cpu": "--threads 1 --clock cpu", "cuda": "--backend cuda"}


def eval_command(backend, settings, side, count, first=0):
    return (f"flashomni eval --settings {settings} -W {side} -H {side} "
            f"{f'--first {first} ' if first else ''}--count {count} {CLOCKS[backend]}")


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


def run_eval(tool, command, folder):
    subprocess.run([str(tool), *command.split()[1:], "-o", str(folder)], cwd=ROOT, check=True,
                   stdout=subprocess.DEVNULL)


def list_shards(name, jobs):
    """(first prompt, prompts, settings) of parts of a sweep, about twice as many as jobs."""
    settings, _, count = SWEEPS[name]
    every = json.loads((ROOT / settings).read_text())
    every.pop("description")
    prompts, groups = max(1, count // (2 * jobs)), min(-(-jobs // count), len(every))
    return [(first, min(prompts, count - first), dict(list(every.items())[group::groups]))
            for first in range(0, count, prompts) for group in range(groups)]


def add_lines(path, other):
    lines = path.read_text().splitlines() if path.exists() else []
    new = [line for line in other.read_text().splitlines() if line not in set(lines)]
    path.write_text("".join(line + "\n" for line in lines + new))


def run_shards(options, name, folder):
    """The parts of a sweep as processes of their own, then all their runs in one folder."""
    def run_shard(number, shard):
        first, prompts, settings = shard
        part = folder.parent / f"{name}-{options.backend}-parts" / str(number)
        part.mkdir(parents=True, exist_ok=True)
        file = part / "settings.json"
        file.write_text(json.dumps(settings))
        run_eval(options.tool,
                 eval_command(options.backend, file, SWEEPS[name][1], prompts, first), part)
        return part

    shards = list_shards(name, options.jobs)
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        parts = list(pool.map(run_shard, range(len(shards)), shards))
    for part in parts:
        shutil.copytree(part / "pictures", folder / "pictures", dirs_exist_ok=True)
        shutil.copy(part / "eval.json", folder / "eval.json")
        for lines in part.glob("*.jsonl"):
            add_lines(folder / lines.name, lines)


def measure_quality(options):
    for name in options.sweeps.split(","):
        command = eval_command(options.backend, *SWEEPS[name])
        folder = ROOT / "out" / "eval" / f"{SWEEPS[name][1]}-{options.backend}"
        print(command, file=sys.stderr)
        if options.jobs > 1:
            run_shards(options, name, folder)
        run_eval(options.tool, command, folder)
        summary = json.loads((folder / "summary.json").read_text())
        (RESULTS / "quality").mkdir(parents=True, exist_ok=True)
        times_count = not options.crowded and options.backend == "cpu"
        record = {"command": command, "date": datetime.date.today().isoformat(),
                  "times_count": times_count, **summary}
        result = name if options.backend == "cpu" else f"{name}-{options.backend}"
        (RESULTS / "quality" / f"{result}.json").write_text(json.dumps(record, indent=1) + "\n")
        if name.startswith("presets"):
            continue
        for axis in ("work", "seconds") if times_count else ("work",):
            picture = (folder / f"psnr-over-{axis}.svg").read_text()
            (ROOT / "docs" / "img" / f"{result}-{axis}.svg").write_text(picture)


def measure_operators(options):
    rows = []
    for done, (operator, arguments) in enumerate(OPERATORS):
        print(f"[{done + 1}/{len(OPERATORS)}] {operator} {arguments}", file=sys.stderr)
        result = run_json(options.tool, "bench", operator, "--seq", "2368", "--sparsity",
                          "0,0.5,0.75,0.9", *CLOCKS["cpu"].split(), *arguments.split())
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


def quality_source(record):
    pairs = record["settings"][0]["pairs"]
    device = record["machine"] if record["backend"] == "cpu" else record["device"]
    return (f"`{record['command']}`, {record['date']}, commits {', '.join(record['commits'])}, "
            f"{device}; {pairs} pairs a row.")


def render_quality(record):
    times_count = record.get("times_count", True)
    cells = []
    for row in record["settings"]:
        captions = row["captions"]
        cells.append([row["name"], f"{row['macs_ratio']['mean']:.3f}", interval(row["psnr_db"], 1),
                      f"{row['psnr_db']['min']:.1f}", interval(row["ssim"], 3),
                      f"{captions['dense_right']} -> {captions['sparse_right']} of "
                      f"{captions['of']} (-{captions['right_only_dense']} "
                      f"+{captions['right_only_sparse']})" if captions else "-"])
        if times_count:
            cells[-1].append(interval(row["speedup"], 2))
    header = ["setting", "MACs / dense", "PSNR dB", "worst", "SSIM", "captions right"]
    if times_count:
        header.append("speed-up (CPU time)" if record["clock"] == "cpu" else "speed-up")
    return quality_source(record) + "\n\n" + table(header, cells)


def render_compare(record):
    """The presets with what they leave out, and the seconds themselves."""
    cells = []
    for row in record["settings"]:
        cells.append([row["name"], interval(row["speedup"], 2),
                      f"{row['dense_seconds']['mean']:.1f} -> {row['seconds']['mean']:.1f}",
                      interval(row["psnr_db"], 1), f"{row['psnr_db']['min']:.1f}",
                      interval(row["ssim"], 3), f"{row['attention_sparsity']['mean']:.3f}",
                      f"{row['macs_ratio']['mean']:.3f}"])
    header = ["preset", "speed-up", "seconds, dense -> sparse", "PSNR dB", "worst", "SSIM",
              "attention left out", "MACs / dense"]
    return quality_source(record) + "\n\n" + table(header, cells)


def render_operators(record):
    cells = []
    for row in record["rows"]:
        gflops = row["tflops_done"] * 1000
        cells.append([row["op"], row["dtype"], str(row["head_dim"]), row["kind"],
                      f"{row['sparsity']:.2f}", f"{row['ms_median']:.2f}", f"{gflops:.0f}",
                      f"{row['peak_gflops']:.0f}",
                      f"{row['of_peak']:.2f} ({row['of_peak_p90']:.2f})",
                      f"{row['speedup']:.2f}", f"{row['ideal']:.2f}", f"{row['efficiency']:.2f}"])
    header = ["op", "dtype", "head_dim", "kind", "sparsity", "ms", "GFLOP/s done", "peak",
              "of peak (p90)", "speed-up", "ideal", "efficiency"]
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


def with_plot(name):
    """Tables of the GPU bring their plot along, if there is one."""
    plot = f"img/{name}-work.svg"
    is_there = name.endswith("-cuda") and (QUALITY_DOC.parent / plot).exists()
    head = f"![PSNR over multiply-adds]({plot})\n\n" if is_there else ""
    return lambda record: head + render_quality(record)


def sections_of(path):
    """(name, renderer, page) of every table that a file of results fills."""
    if path.parent.name == "quality":
        sections = [(path.stem, with_plot(path.stem), QUALITY_DOC)]
        if path.stem == "presets-256":
            sections.append(("compare-256", render_compare, DOC))
        return sections
    if path.parent != RESULTS:
        return [(f"{path.parent.name}-{path.stem}", render_gpu, DOC)]
    return [(path.stem, render_operators, DOC)]


def render(options):
    pages = {page: page.read_text() for page in (DOC, QUALITY_DOC)}
    for path in sorted(RESULTS.glob("**/*.json")):
        for name, render_body, page in sections_of(path):
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
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--backend", choices=sorted(CLOCKS), default="cpu")
    parser.add_argument("--crowded", action="store_true",
                        help="the machine does much else: times are kept, not shown")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    {"quality": measure_quality, "operators": measure_operators, "render": render}[options.what](
        options)


if __name__ == "__main__":
    main()
