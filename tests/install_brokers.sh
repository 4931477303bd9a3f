#!/bin/sh
# Installs the brokers that the live tests start for themselves, on Debian or Ubuntu, systemd, which checks our
# units, and a data set that a task is tested with. No service is started, now or at the next boot. With --if-possible a failure is no error: the tests say what is missing.
# DESTDIR stands before the paths that are looked at; for the script's own test.
set -eu

missing=
[ -x "${DESTDIR-}/usr/sbin/mosquitto" ] || missing="mosquitto"
[ -x "${DESTDIR-}/usr/lib/rabbitmq/bin/rabbitmq-server" ] || missing="$missing rabbitmq-server"
brokers=$missing
[ -x "${DESTDIR-}/usr/bin/systemd-analyze" ] || missing="$missing systemd"
[ -d "${DESTDIR-}/usr/share/datasets/fashion-mnist" ] || missing="$missing dataset-fashion-mnist"

install() {
    if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
        echo "not installed:" $missing "(as root on Debian or Ubuntu, $0 installs them)" >&2
        return 1
    fi
    # A package asks this before it starts its service; 101 forbids it.
    policy="${DESTDIR-}/usr/sbin/policy-rc.d"
    if [ ! -e "$policy" ]; then
        trap 'rm -f "$policy"' EXIT
        trap 'exit 1' INT TERM
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq && apt-get install -qq -y --no-install-recommends $missing || return 1
    if [ -n "$brokers" ] && command -v systemctl >/dev/null; then
        systemctl disable --quiet $brokers || true
    fi
}

[ -z "$missing" ] || install || [ "${1-}" = "--if-possible" ]
