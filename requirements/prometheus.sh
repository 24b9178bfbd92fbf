#!/usr/bin/env bash
# Print the folder that holds `prometheus` and `promtool`: the one on PATH, or $VENV/prometheus, where they are unpacked
# from Debian's package. Needs no root. Fails where there is neither, nor apt to fetch it with.
set -Eeuo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

home=${VENV:-.venv}/prometheus

fail() { printf 'prometheus: %s\n' "$*" >&2; exit 1; }

if found=$(command -v promtool) && command -v prometheus >/dev/null; then
    dirname "$found"
    exit 0
fi

if [[ ! -x $home/usr/bin/promtool ]]; then
    command -v apt-get >/dev/null && command -v dpkg >/dev/null || fail "not on PATH, and there is no apt to fetch it with"
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    # apt gives its rights away to a user who may not write here: fetch as whoever calls.
    (cd "$scratch" && apt-get download -qq -o APT::Sandbox::User="$(id -un)" prometheus >&2) \
        || fail "apt-get download prometheus failed; does apt-get update work here?"
    dpkg -x "$scratch"/prometheus_*.deb "$scratch/unpacked"
    mkdir -p "$(dirname "$home")"
    rm -rf "$home"
    # Whole or not at all, should two do this at once.
    mv "$scratch/unpacked" "$home"
fi

"$home/usr/bin/promtool" --version >/dev/null 2>&1 || fail "$home/usr/bin/promtool does not run"
(cd "$home/usr/bin" && pwd)
