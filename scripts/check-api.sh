#!/bin/sh
# Checks the committed OpenAPI document against a running server with schemathesis: what the server answers has to be
# what the document says. The server has a network namespace of its own and is uninstalled afterwards.
# Usage: scripts/check-api.sh WARREN POOL_DIR
#   SECONDS_OF_CHECKS  how long to go on, 60 by default
#   SEED               repeats the requests of an earlier run
set -eu
root="$(cd "$(dirname "$0")/.." && pwd)"
warren="$(realpath "${1:?usage: $0 WARREN POOL_DIR}")"
pool="$(realpath "${2:?usage: $0 WARREN POOL_DIR}")"
document="$root/openapi/warren.json"
seconds="${SECONDS_OF_CHECKS:-60}"
seed="${SEED:-$(date +%s)}"

venv="$root/target/schemathesis"
if [ ! -x "$venv/bin/schemathesis" ]; then
    echo "installing schemathesis, once" >&2
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check schemathesis==4.32.5
fi

work="$(mktemp -d)"
namespace="warren-api-check-$$"
cleanup() {
    status=$?
    trap - EXIT INT TERM
    if [ -e "$work/data/installation.json" ]; then
        "$warren" uninstall --data-dir "$work/data" --yes >"$work/uninstall.log" 2>&1 || {
            cat "$work/uninstall.log" >&2
            status=1
        }
    fi
    ip netns delete "$namespace" 2>/dev/null || true
    rm -rf "$work"
    exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

ip netns add "$namespace"
ip -n "$namespace" link set lo up
mkfifo "$work/ready"
nsenter --net="/run/netns/$namespace" "$warren" up --listen 127.0.0.1:0 --data-dir "$work/data" --pool-dir "$pool" \
    --machines-per-account 4 --networks-per-account 8 >"$work/ready" 2>"$work/log" &
read -r word url <"$work/ready" || true
if [ "${word:-}" != ready ]; then
    echo "the server did not start:" >&2
    cat "$work/log" >&2
    exit 1
fi

export WARREN_DATA_DIR="$work/data"
key="$(cat "$work/data/root.key")"
curl -sS --unix-socket "$work/data/api.sock" http://warren/openapi.json >"$work/served.json"
if ! cmp -s "$document" "$work/served.json"; then
    echo "the server's document is not the committed one:" >&2
    diff -u "$document" "$work/served.json" | head -50 >&2
    exit 1
fi

# Something to look at; what deletes or renames gets names that it makes up.
"$warren" network create probe --json >/dev/null
"$warren" machine create probe --network probe --memory 128 --port web=8080/http --label team=search --json >/dev/null
cat >"$work/schemathesis.toml" <<TOML
seed = $seed
[parameters]
"header.X-Warren-Account" = "default"
TOML
for operation in show_machine list_ports show_traffic exec stat_file list_directory read_file remove_file make_directory \
    start_machine show_network show_account show_image; do
    case "$operation" in
    show_network) parameter='"path.network" = "probe"' ;;
    show_account) parameter='"path.account" = "default"' ;;
    show_image) parameter='"path.image" = "debian"' ;;
    *) parameter='"path.machine" = "probe"' ;;
    esac
    printf '[[operations]]\ninclude-operation-id = "%s"\nparameters = { %s }\n' "$operation" "$parameter"
done >>"$work/schemathesis.toml"

# Streams, and what makes or removes images in a pool that others share, are not for this tool.
set -- --exclude-operation-id exec_stream --exclude-operation-id events --exclude-operation-id read_logs \
    --exclude-operation-id write_file --exclude-operation-id import_image --exclude-operation-id build_image \
    --exclude-operation-id remove_image
cd "$work"
if ! timeout --signal=INT --kill-after=10 "$((seconds + 60))" nsenter --net="/run/netns/$namespace" \
    "$venv/bin/schemathesis" --config-file "$work/schemathesis.toml" run "$document" --url "$url" \
    --header "Authorization: Bearer $key" \
    --checks not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,response_schema_conformance \
    --phases examples,coverage,fuzzing --mode all --max-time "$seconds" --request-timeout 20 --workers 2 \
    --continue-on-failure --no-shrink --warnings off "$@" >"$work/report" 2>&1; then
    cat "$work/report" >&2
    echo "the server's log:" >&2
    tail -n 40 "$work/log" >&2
    echo "repeat with SEED=$seed" >&2
    exit 1
fi
tail -n 25 "$work/report"
