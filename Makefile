# The whole developer interface; CI calls the same targets.
#   make demo     set up what the chat needs and start it      make test    set up and run all tests
#   make demo CPU=1   the same, with torch for CPUs alone (no CUDA libraries, which take 5.7 GB)
#   make check    lint, types, layers                         make demo-model   train the demo model
#   make messages collect what the package says for its translators, and compile what they wrote
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
CHAT := $(VENV)/.chat
READY := $(VENV)/.ready
# torch's own index of builds without CUDA; by default, the index that pip is configured for.
TORCH_INDEX := $(if $(CPU),--index-url https://download.pytorch.org/whl/cpu)

LOCALE := src/baichuan/locale
# The calls whose first argument is shown to the user: every error of errors.py, and language.py.
SAYING := BaichuanError UsageError CheckpointError TokenizerError PromptError DataError DownloadError \
	TrainingError NumericalError ContextLengthError QueueFullError StoppedError translate phrase

.PHONY: demo test check format messages demo-model

$(CHAT): pyproject.toml setup.py $(wildcard csrc/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet $(TORCH_INDEX) torch==2.13.0
	$(BIN)/pip install --quiet -e .
	@ls src/baichuan/kernels/_native* > /dev/null 2>&1 || echo "No C++ compiler was found:" \
		"quantized models will be slow. Install one (Debian: apt install g++), then: make -B $@"
	touch $@

$(READY): $(CHAT)
	$(BIN)/pip install --quiet -e '.[dev]'
	touch $@

demo: $(CHAT)
	$(BIN)/baichuan chat

test: $(READY)
	$(BIN)/pytest -n 2 --dist worksteal --cov --cov-report=term

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

messages: $(READY)
	$(BIN)/pybabel extract --no-default-keywords $(SAYING:%=-k %) --add-location=file \
		--sort-by-file --project=baichuan-lm --version= -o $(VENV)/baichuan.pot src
	$(BIN)/pybabel update -D baichuan -d $(LOCALE) -i $(VENV)/baichuan.pot --width=100 \
		--ignore-obsolete --ignore-pot-creation-date --no-fuzzy-matching
	$(BIN)/pybabel compile -D baichuan -d $(LOCALE)

demo-model: $(READY)
	$(BIN)/pip install --quiet -e '.[demo]'
	$(BIN)/python demo/build.py
