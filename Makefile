# make demo   an environment, an installation, an answer from the demo model
# make test   the tests, in a fresh environment that it makes itself
# make wheel  the source distribution and the wheel in dist/, tried where there is no compiler
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: build demo test wheel bench lint asan clean

# A private environment with the package installed from this folder.
$(VENV)/installed: pyproject.toml setup.py $(shell find include src_cpp llada_native -type f -not -name '*.so' -not -path '*/__pycache__/*')
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet .
	touch $@

# Extension modules beside the sources: the fast loop of development, in the environment of $(PYTHON).
build:
	$(PYTHON) setup.py build_clib build_ext --inplace

demo: $(VENV)/installed
	$(BIN)/llada-native generate "Sort these numbers: 31, 7, 52, 12."

test:
	rm -rf build/test-venv
	$(PYTHON) -m venv build/test-venv
	build/test-venv/bin/python -m pip install --quiet --upgrade pip
	build/test-venv/bin/python -m pip install --quiet ".[test]"
	build/test-venv/bin/pytest

# The wheel is built from the source distribution, and tried in a fresh environment, from an empty folder, with nothing else on PATH.
wheel:
	rm -rf dist build/wheel
	$(PYTHON) -m venv build/wheel/maker
	$(PYTHON) -m venv build/wheel/user
	mkdir build/wheel/empty
	build/wheel/maker/bin/python -m pip install --quiet build
	build/wheel/maker/bin/python -m build --outdir dist .
	cd build/wheel/empty && export PATH=$(CURDIR)/build/wheel/user/bin CC=false CXX=false && \
	  python -m pip install --quiet --only-binary :all: $(CURDIR)/dist/*.whl && \
	  python -c "import llada_native; assert str(llada_native.generate('Sort these numbers: 31, 7, 52, 12.')) == '7, 12, 31, 52'" && \
	  llada-native generate "What is 12 plus 30?" && llada-native selftest

bench: $(VENV)/installed
	$(BIN)/python -m pip install --quiet ".[bench]"
	$(BIN)/asv machine --yes
	$(BIN)/asv run --quick --python=same --show-stderr

lint:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy

# The C++ library and the extension modules under AddressSanitizer and UndefinedBehaviorSanitizer.
asan:
	rm -rf build/asan
	LLADA_CXXFLAGS="-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g" \
	  $(PYTHON) setup.py build_clib --build-temp build/asan --build-clib build/asan \
	  build_ext --build-temp build/asan --build-lib build/asan/lib
	tar --exclude='*.so' -c llada_native | tar -x -C build/asan/lib && cp -r include build/asan/lib/llada_native/
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" ASAN_OPTIONS=detect_leaks=0 \
	  PYTHONSAFEPATH=1 PYTHONPATH=$(CURDIR)/build/asan/lib $(PYTHON) -m pytest --import-mode=importlib -m "not slow and not resident" \
	  tests/test_kernels.py tests/test_quantized.py tests/test_bfloat16_fast.py tests/test_packed.py \
	  tests/test_forward.py tests/test_moe.py tests/test_llada2.py tests/test_llada2_folders.py tests/test_dream.py \
	  tests/test_block_causal.py \
	  tests/test_gguf.py tests/test_gguf_families.py tests/test_gguf_tokenizer.py tests/test_gguf_keys.py tests/test_gguf_containers.py \
	  tests/test_sampler.py tests/test_filters.py tests/test_generate.py \
	  tests/test_signatures.py tests/test_tasks.py tests/test_rounds.py tests/test_task_caches.py tests/test_arrays.py \
	  tests/test_slots.py tests/test_shadows.py tests/test_loops.py tests/test_half_caches.py \
	  tests/test_c_api.py tests/test_c_examples.py tests/test_c_folders.py tests/test_c_weights.py \
	  tests/test_c_caches.py tests/test_c_rounds.py tests/test_bad_folders.py tests/test_shares.py

clean:
	rm -rf build $(VENV) dist *.egg-info
