#!/usr/bin/env python3
"""Who may include whom (CONTRIBUTING.md). Prints every include that points the wrong way.

Data moves one way: symbols -> plan -> backend -> engine -> models -> pipeline -> apps.
"""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.M)

# Public header -> the layer that owns it.
PUBLIC = {"tensor": "core", "error": "core", "symbols": "symbols", "token_order": "symbols",
          "plan": "plan", "selection": "backend",
          "backend": "backend", "attention": "ops", "gemm": "ops", "policy": "policy",
          "engine": "engine", "safetensors": "io", "png": "io", "flux": "models",
          "pipeline": "pipeline", "image_metrics": "pipeline", "record": "pipeline"}

# Folder -> (layers whose public headers it may use, its own src/ prefixes, third-party prefixes).
# The first matching folder counts.
KERNELS = ["core/", "symbols/layout.h", "plan/", "backend/registry.h", "backend/cpu_features.h"]
LAYERS = [
    ("src/core", "core", ["core/"], ["sys/mman.h"]),  # huge pages under large tensors
    ("src/symbols", "core symbols", ["core/", "symbols/"], []),
    ("src/plan", "core symbols plan", ["core/", "symbols/", "plan/"], []),
    ("src/backend/reference", "core symbols plan backend", KERNELS + ["backend/reference/"], []),
    ("src/backend/cpu", "core symbols plan backend", KERNELS + ["backend/cpu/"],
     ["hwy/", "immintrin.h", "cpuid.h", "sched.h", "sys/syscall.h", "unistd.h"]),
    ("src/backend/cuda", "core symbols plan backend", KERNELS + ["backend/cuda/"],
     ["cuda", "cooperative_groups"]),
    ("src/backend", "core symbols plan backend", ["core/", "plan/", "backend/"], []),
    ("src/ops", "core symbols plan backend ops", ["core/", "plan/", "ops/"], []),
    ("src/policy", "core symbols backend io policy", ["core/", "symbols/", "policy/"], []),
    ("src/engine", "core symbols plan backend policy engine",
     ["core/", "symbols/", "plan/", "policy/", "engine/", "backend/metered.h"], []),
    ("src/io", "core io pipeline", ["core/", "io/"], ["nlohmann/", "stb/", "fcntl.h", "sys/",
                                                      "unistd.h"]),
    ("src/models", "core symbols backend engine io models", ["core/", "models/"], ["nlohmann/"]),
    ("src/pipeline", "core symbols plan backend policy engine io models pipeline",
     ["core/", "io/", "models/", "pipeline/", "backend/metered.h"], ["nlohmann/"]),
]
STANDARD = re.compile(r"[a-z_]+$")  # <vector>, <cstdint>: no slash, no suffix

# (file, include): why it may.
EXCEPTIONS = {}


def allowed(path, include, quoted):
    if not quoted and STANDARD.match(include):
        return True
    if (path, include) in EXCEPTIONS:
        return True
    public = re.match(r"flashomni/(\w+)\.h$", include)
    if path.startswith("include/"):
        return bool(public)
    for folder, layers, own, third_party in LAYERS:
        if path.startswith(folder + "/"):
            if public:
                return PUBLIC.get(public.group(1)) in layers.split()
            return any(include.startswith(prefix) for prefix in own + third_party)
    # apps, bench, examples, python: the public headers and their own folder, never src/.
    return not (ROOT / "src" / include).exists()


def main():
    bad = []
    for top in ("include", "src", "apps", "bench", "examples", "python"):
        for path in sorted((ROOT / top).rglob("*")):
            if path.suffix not in (".h", ".cpp", ".cu", ".cuh"):
                continue
            name = path.relative_to(ROOT).as_posix()
            for quote, include in INCLUDE.findall(path.read_text()):
                if not allowed(name, include, quote == '"'):
                    bad.append(f"{name}: may not include {include}")
    print("\n".join(bad) or "layers: ok")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
