# `make demo` and `make test` do everything on a fresh Debian 12 with Rust; both need root.

# Images that the demo and the tests build once and keep.
POOL ?= $(CURDIR)/target/pool

.PHONY: help build deps demo test lint api-check deny bench clean-pool

help:
	@echo "make demo    build Warren and see its main job done, in a network namespace of its own"
	@echo "make test    format, lints and every test"
	@echo "make bench   the table of figures, both sides of each in one run"
	@echo "make build   only the program, target/release/warren"

deps:
	@scripts/install-deps.sh test

build: deps
	cargo build --release -p warren

# Without a package registry the chapter with the npm client is left out; the demo says so.
demo: build
	client="--client target/client"; scripts/install-client.sh target/client || client=; \
	target/release/warren demo --pool-dir "$(POOL)" $$client

test: deps lint
	cargo build -p warren
	scripts/install-client.sh target/client
	target/debug/warren demo --pool-dir "$(POOL)" --client target/client
	WARREN_TEST_POOL="$(POOL)" cargo test --workspace
	$(MAKE) api-check deny

lint:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo clippy -p warren --no-default-features -- -D warnings

# The committed OpenAPI document against a running server.
api-check:
	scripts/check-api.sh target/debug/warren "$(POOL)"

# Licences, bans and sources of every dependency.
deny:
	scripts/check-deny.sh

bench:
	@scripts/install-deps.sh bench
	cargo build --release -p warren -p warren-bench
	cargo build --release -p warren-ingress --example ingress
	target/release/warren image build debian --pool-dir "$(POOL)"
	cargo install --quiet --locked --root target/tools --version 0.10.2 gotatun-cli
	target/release/warren-bench --warren target/release/warren --pool-dir "$(POOL)" --gotatun target/tools/bin/gotatun
