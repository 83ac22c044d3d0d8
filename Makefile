# The front door. Everything else is CMake presets; `cmake --list-presets` shows them.
#   make          build the command-line tool and link it as ./flashomni
#   make demo     the same, then a picture from a prompt, dense beside sparse: out/demo.png
#   make test     build and run every test this machine can run
#   make test-python   pip install the package into build/venv, run tests/python
#   make bench    build the tool and the timing programs, measure, print a table
#   make format   clang-format over the sources
#   make install  install headers, library, tool and model (PREFIX=/usr/local)

PREFIX ?= /usr/local
JOBS ?= $(shell nproc)
PROMPT ?= a fox to the left of a mushroom on a white background in classic style
# The CUDA backend is built where there is both a compiler and a GPU to run it.
CUDA := $(shell command -v nvcc >/dev/null && nvidia-smi -L >/dev/null 2>&1 && echo ON || echo OFF)

.PHONY: build demo test test-python bench format install clean
build:
	@scripts/setup.sh build
	cmake --preset demo -DFLASHOMNI_BUILD_CUDA=$(CUDA)
	cmake --build --preset demo -j $(JOBS)
	@ln -sfn build/demo/flashomni flashomni

demo: build
	@mkdir -p out
	./flashomni compare -p "$(PROMPT)" -s 1 -o out/demo.png

test:
	@scripts/setup.sh test
	cmake --preset cpu -DFLASHOMNI_BUILD_CUDA=$(CUDA)
	cmake --build --preset cpu -j $(JOBS)
	@ln -sfn build/cpu/flashomni flashomni
	ctest --preset cpu -j $(JOBS)

PIP := build/venv/bin/python -m pip --disable-pip-version-check
test-python:
	@scripts/setup.sh python
	[ -x build/venv/bin/python ] || python3 -m venv build/venv
	$(PIP) install -q -r python/requirements-test.txt
	$(PIP) install -q . --config-settings=build-dir=build/python \
		--config-settings=cmake.define.FLASHOMNI_BUILD_CUDA=$(CUDA)
	build/venv/bin/python -m pytest -q -rs

bench:
	@scripts/setup.sh bench
	cmake --preset bench -DFLASHOMNI_BUILD_CUDA=$(CUDA)
	cmake --build --preset bench -j $(JOBS)
	@ln -sfn build/bench/flashomni flashomni
	./flashomni bench attention --seq 2368 --sparsity 0,0.5,0.75,0.9 --block 64 --threads 1

format:
	scripts/format.sh

install: build
	cmake --install build/demo --prefix $(PREFIX)

clean:
	rm -rf build out flashomni
