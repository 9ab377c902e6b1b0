# A thin front door; CMakeLists.txt describes the build and spec/run the tests.
# DEPS=no leaves out the look at installed packages (for systems that are not Debian).
SHELL := /bin/bash
DEPS ?= yes
STAGES ?=

.PHONY: build run test check lint format bench stress soak upgrade-proof fuzz asan tsan clean deps
.DEFAULT_GOAL := build

build: ## the gateway: build/moongate
	@[ "$(DEPS)" = no ] || .ci/deps run
	@cmake --preset release >/dev/null || cmake --preset release
	@cmake --build --preset release

run: build ## build, make secrets on the first run, start on 127.0.0.1:8000
	@.ci/run-local

deps: ## what building, running and testing need
	@.ci/deps test

test: ## everything; STAGES="unit lua" for some (spec/run --list)
	@[ "$(DEPS)" = no ] || .ci/deps test
	@spec/run $(STAGES)

check lint: ## format, luacheck, floors
	@spec/run lint

format: ## puts C into the agreed form
	@find core spec \( -name '*.c' -o -name '*.h' \) -not -path '*/node_modules/*' -print0 | \
		xargs -0 clang-format -i

bench: ## Moongate beside its peers, into bench/results.md; BENCH_QUICK=1 for 4 minutes instead of 20
	@[ "$(DEPS)" = no ] || .ci/deps bench
	@cmake --preset bench >/dev/null && cmake --build --preset bench --target moongate bench_tools
	@bench/run build/bench

upgrade-proof: ## 50 upgrades and 1,000 reloads under 2,000 calls a second (two minutes)
	@[ "$(DEPS)" = no ] || .ci/deps test
	@cmake --preset bench >/dev/null && cmake --build --preset bench
	@node spec/upgrade/prove.mjs build/bench

stress: ## floods, slow readers, idle streams, bad upstreams in full, into docs/stress.md (15 minutes)
	@[ "$(DEPS)" = no ] || .ci/deps test
	@cmake --preset bench >/dev/null && cmake --build --preset bench --target moongate bench_load bench_upstream
	@spec/stress/run build/bench --full --report docs/stress.md

soak: ## everything at once for 20 minutes (SOAK_SECONDS=1200), into docs/soak.md
	@[ "$(DEPS)" = no ] || .ci/deps test
	@cmake --preset bench >/dev/null && cmake --build --preset bench --target moongate bench_load bench_upstream
	@spec/stress/soak build/bench docs/soak.md

fuzz: ## ten minutes for each fuzz target
	@FUZZ_SECONDS=$${FUZZ_SECONDS:-600} spec/run fuzz

asan tsan: ## unit and end-to-end tests under a sanitizer
	@spec/run $@

clean: ## build results; data/ and the local node stay
	@find build -mindepth 1 -maxdepth 1 -not -name tools -exec rm -rf {} + 2>/dev/null || true
