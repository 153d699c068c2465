#!/bin/sh
# Installs npm's `freestyle` and a Node for it, at the versions of tests/freestyle/package-lock.json, with the article's
# examples beside them. What is there is kept.
# Usage: scripts/install-client.sh DIR
set -eu

directory="${1:?usage: $0 DIR}"
sources="$(dirname "$0")/../tests/freestyle"
mkdir -p "$directory"
if ! cmp -s "$sources/package-lock.json" "$directory/installed"; then
    rm -f "$directory/installed"
    cp "$sources/package.json" "$sources/package-lock.json" "$directory/"
    (cd "$directory" && timeout --kill-after=10 300 npm ci --ignore-scripts --no-audit --no-fund --silent)
    # Written last, so that an installation that broke off is made again.
    cp "$sources/package-lock.json" "$directory/installed"
fi
cp "$sources"/*.mjs "$directory/"
