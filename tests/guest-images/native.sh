#!/usr/bin/env bash
# Runs the phases of an image natively on this machine, in a mount namespace with the image's files
# as root, and prints what a guest should print. No root needed where user namespaces are allowed.
#
#   native.sh [minimal|work] [PHASE,PHASE...]
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

kind=${1:-work}
root=$CACHE/root-$kind
[ -x "$root/init" ] || fail "run build.sh first"
# The guest's CPU has no FMA and no AVX; the C library's mathematics must take the same paths here.
export GLIBC_TUNABLES=glibc.cpu.hwcaps=-AVX,-AVX2,-FMA,-FMA4,-AVX512F,-ERMS,-FSRM
export SB_ROOT=$root SB_PHASES=${2:-}
# shellcheck disable=SC2016
inside='
mount -t tmpfs tmp "$SB_ROOT/tmp"
mount --rbind /dev "$SB_ROOT/dev"
mount -t proc proc "$SB_ROOT/proc"
exec chroot "$SB_ROOT" /bin/sh /etc/phases.sh "$SB_PHASES"'
namespaces=(--mount --pid --fork --propagation private)
if unshare --user --map-root-user true 2>/dev/null; then
    namespaces+=(--user --map-root-user)
elif [ "$(id -u)" != 0 ]; then
    fail "user namespaces are not allowed here and this is not root"
fi
exec env -i GLIBC_TUNABLES="$GLIBC_TUNABLES" SB_ROOT="$SB_ROOT" SB_PHASES="$SB_PHASES" \
    PATH=/usr/sbin:/usr/bin:/sbin:/bin unshare "${namespaces[@]}" sh -c "$inside"
