# A shim: dev.py does the work. `make` alone tells what there is.
PYTHON ?= python3

.DEFAULT_GOAL := help
.PHONY: run test lint format words lock clean help
run test lint format words lock clean help:
	@$(PYTHON) dev.py $@ $(ARGS)
