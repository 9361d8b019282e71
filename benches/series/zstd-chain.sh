#!/bin/sh
# Increments of a chain of whole-image patches: image n against image n-1 (no random access).
#
#   zstd-chain.sh SERIES_DIR     prints: bytes of all increments, seconds per increment
set -eu
dir=$1
total=0
count=0
previous=
start=$(date +%s.%N)
for image in "$dir"/*.ram; do
    if [ -n "$previous" ]; then
        bytes=$(zstd -q -3 --long=28 --single-thread --patch-from="$previous" -c "$image" | wc -c)
        total=$((total + bytes))
        count=$((count + 1))
    fi
    previous=$image
done
end=$(date +%s.%N)
echo "$dir $total $(echo "($end - $start) / $count" | bc -l | cut -c1-6)"
