#!/bin/sh
# Installs npm's `freestyle` and a Node for it, at the versions of tests/freestyle/package-lock.json, with the scripts of
# tests/freestyle beside them. What is there is kept; several may ask at once.
# Usage: scripts/install-client.sh DIR
set -eu

directory="${1:?usage: $0 DIR}"
sources="$(dirname "$0")/../tests/freestyle"
mkdir -p "$directory"
exec 9>"$directory/turn"
flock 9
if ! cmp -s "$sources/package-lock.json" "$directory/installed"; then
    rm -f "$directory/installed"
    cp "$sources/package.json" "$sources/package-lock.json" "$directory/"
    (
        cd "$directory"
        timeout --kill-after=10 300 npm ci --ignore-scripts --no-audit --no-fund --loglevel=error \
            --fetch-retries=1 --fetch-timeout=60000 9>&- >&2
    ) || {
        echo "the npm client is not installed: this needs npm, and a package registry that it can reach" >&2
        exit 1
    }
    # Written last, so that an installation that broke off is made again.
    cp "$sources/package-lock.json" "$directory/installed"
fi
for script in "$sources"/*.mjs; do
    place="$directory/$(basename "$script")"
    # Whole at any time: somebody may be running it.
    cmp -s "$script" "$place" || { cp "$script" "$place.new" && mv "$place.new" "$place"; }
done
