#!/usr/bin/env bash
# Compares what a guest printed with what the same programs print natively, phase by phase.
#
#   check.sh CONSOLE-LOG [minimal|work]      exit 0: all phases of the log agree, and there is one
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

[ $# -ge 1 ] || fail "usage: check.sh CONSOLE-LOG [minimal|work]"
kind=${2:-work}
phases=$(tr -d '\r' <"$1" | sed -n 's/^PHASE \([a-z0-9]*\) start$/\1/p')
[ -n "$phases" ] || fail "no phase in $1"
native=$(mktemp)
trap 'rm -f "$native"' EXIT
"$HERE/native.sh" "$kind" "$(tr '\n' , <<<"$phases" | sed 's/,$//')" >"$native"

# The lines of one phase, its end included: a phase that did not end differs.
lines_of() { tr -d '\r' <"$2" | sed -n "/^PHASE $1 start\$/,/^PHASE $1 end\$/p"; }
bad=0
for phase in $phases; do
    if difference=$(diff <(lines_of "$phase" "$native") <(lines_of "$phase" "$1")); then
        printf 'ok      %s\n' "$phase"
    else
        printf 'DIFFERS %s\n%s\n' "$phase" "$difference"
        bad=1
    fi
done
exit $bad
