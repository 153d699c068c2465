#!/bin/sh
# Checks the licences, bans and sources of every dependency with cargo-deny, installed into target/ when it is absent.
set -eu
cd "$(dirname "$0")/.."

tools="$PWD/target/tools"
PATH="$tools/bin:$PATH"
if ! command -v cargo-deny >/dev/null 2>&1; then
    echo "building cargo-deny, once" >&2
    cargo install cargo-deny --quiet --locked --version 0.20.2 --no-default-features --profile dev \
        --root "$tools" --target-dir "$tools/build"
    rm -rf "$tools/build"
fi
cargo deny check licenses bans sources
