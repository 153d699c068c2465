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
    --machines-per-account 4 --networks-per-account 8 \
    --https-listen 127.0.0.1:8443 --preview-suffix preview.example >"$work/ready" 2>"$work/log" &
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
given() {
    printf '[[operations]]\ninclude-operation-id = "%s"\nparameters = { %s }\n' "$1" "$2" >>"$work/schemathesis.toml"
}
for operation in show_machine list_ports show_traffic exec stat_file remove_file make_directory start_machine; do
    given "$operation" '"path.machine" = "probe"'
done
given read_file '"path.machine" = "probe", "query.path" = "/etc/hostname"'
given list_directory '"path.machine" = "probe", "query.path" = "/etc"'
given show_network '"path.network" = "probe"'
given show_account '"path.account" = "default"'
given show_image '"path.image" = "debian"'

# One worker: with two, Python 3.11's parser failed inside the tool ("AST constructor recursion depth mismatch").
check() {
    for_seconds="$1"
    shift
    if ! timeout --signal=INT --kill-after=10 "$((for_seconds + 40))" nsenter --net="/run/netns/$namespace" \
        "$venv/bin/schemathesis" --config-file "$work/schemathesis.toml" run "$document" --url "$url" \
        --header "Authorization: Bearer $key" --checks "$checks" --phases examples,coverage,fuzzing --mode all \
        --max-time "$for_seconds" --request-timeout 20 --workers 1 --continue-on-failure --no-shrink --warnings off \
        "$@" >"$work/report" 2>&1; then
        cat "$work/report" >&2
        echo "the server's log:" >&2
        tail -n 40 "$work/log" >&2
        echo "repeat with SEED=$seed" >&2
        exit 1
    fi
    sed -n '/^API Operations:/,$p' "$work/report"
}
checks=not_a_server_error,status_code_conformance,content_type_conformance
checks="$checks,response_headers_conformance,response_schema_conformance"
cd "$work"

# Streams, and what makes or removes images in a pool that others share, are not for this tool. What ends machines comes
# last, so that the others find one that runs.
check "$((seconds * 2 / 3))" --exclude-operation-id exec_stream --exclude-operation-id events \
    --exclude-operation-id read_logs --exclude-operation-id write_file --exclude-operation-id import_image \
    --exclude-operation-id pull_image --exclude-operation-id build_image --exclude-operation-id remove_image \
    --exclude-operation-id stop_machine --exclude-operation-id restart_machine --exclude-operation-id delete_machine
check "$((seconds / 3))" --include-operation-id create_machine --include-operation-id list_machines \
    --include-operation-id show_machine --include-operation-id stop_machine --include-operation-id start_machine \
    --include-operation-id restart_machine --include-operation-id delete_machine
