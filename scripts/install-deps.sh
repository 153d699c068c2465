#!/bin/sh
# Installs the Debian packages that Warren needs: to run (the first list), and to be built and tested (the second).
# Usage: scripts/install-deps.sh [run|test]
set -eu

run="runc nftables btrfs-progs mmdebstrap iproute2 ca-certificates curl"
test="gcc make e2fsprogs util-linux perl-base dnsutils dnsmasq-base iperf3 iputils-ping procps jq busybox-static python3 python3-pip python3-venv"

case "${1:-test}" in
run) wanted="$run" ;;
test) wanted="$run $test" ;;
*)
    echo "usage: $0 [run|test]" >&2
    exit 2
    ;;
esac

missing=""
for package in $wanted; do
    if ! dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed'; then
        missing="$missing $package"
    fi
done
[ -z "$missing" ] && exit 0

if [ "$(id -u)" -ne 0 ]; then
    echo "these Debian packages are missing:$missing" >&2
    echo "install them as root: apt-get install$missing" >&2
    exit 1
fi
echo "installing:$missing" >&2
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# shellcheck disable=SC2086
apt-get install -y -qq --no-install-recommends $missing >/dev/null
