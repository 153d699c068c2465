#!/bin/sh
# Installs the Debian packages that Warren needs: to run (the first list), to be built and tested (the second), and to
# be compared with others (the third).
# Usage: scripts/install-deps.sh [run|test|bench]
set -eu

run="runc nftables btrfs-progs mmdebstrap iproute2 ca-certificates curl"
test="gcc make e2fsprogs util-linux perl-base dnsutils dnsmasq-base iperf3 iputils-ping procps jq busybox-static python3 python3-pip python3-venv pebble wireguard-go wireguard-tools"
bench="haproxy squid-openssl openssl caddy nghttp2-client"

case "${1:-test}" in
run) wanted="$run" ;;
test) wanted="$run $test" ;;
bench) wanted="$run $test $bench" ;;
*)
    echo "usage: $0 [run|test|bench]" >&2
    exit 2
    ;;
esac

missing=""
for package in $wanted; do
    if ! dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed'; then
        missing="$missing $package"
    fi
done
# Node may come from elsewhere than Debian, and then has npm in one package.
if [ "${1:-test}" != run ]; then
    command -v node >/dev/null || missing="$missing nodejs"
    command -v npm >/dev/null || missing="$missing npm"
fi
[ -z "$missing" ] && exit 0

if [ "$(id -u)" -ne 0 ]; then
    echo "these Debian packages are missing:$missing" >&2
    echo "install them as root: apt-get install$missing" >&2
    exit 1
fi
echo "installing:$missing" >&2
export DEBIAN_FRONTEND=noninteractive

# The benchmark runs these by itself, in namespaces of its own. As services they would take the host's ports.
services=""
for service in haproxy squid caddy; do
    case "$missing " in
    *" $service "* | *" $service-"*) services="$services $service" ;;
    esac
done
policy=/usr/sbin/policy-rc.d
if [ -n "$services" ] && [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    trap 'exit 130' INT TERM
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi

apt-get update -qq
# shellcheck disable=SC2086
apt-get install -y -qq --no-install-recommends $missing >/dev/null
for service in $services; do
    systemctl --quiet disable "$service" 2>/dev/null || true
done
