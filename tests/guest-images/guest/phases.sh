#!/bin/sh
# phases.sh [NAME,NAME...]: runs phases, each between "PHASE name start" and "PHASE name end". What
# they print is the same on every x86-64 machine, so that a guest can be compared with the host.

PATH=/bin:/usr/bin:/sbin:/usr/sbin
# The 32-bit twin of busybox comes first when a phase runs with it.
[ -z "${SB_TWIN:-}" ] || PATH=/bin32:$PATH
export PATH LC_ALL=C PYTHONHASHSEED=0 PYTHONDONTWRITEBYTECODE=1 PERL_HASH_SEED=0
export OPENSSL_CONF=/dev/null HOME=/tmp
cd /tmp || exit 1

MINIMAL="shell hash sort awk gzip forkexec pipes signals pagefaults threads stepper copies strings \
sse x87 indirect integers compat"
WORK="twin sha256 xz perl python compile sqlite openssl"

phase_shell() {
    i=0 sum=0
    while [ $i -lt 100000 ]; do
        i=$((i + 1))
        sum=$(((sum + i * i) % 1000003))
    done
    echo "shell $i $sum"
}
phase_hash() {
    gendata bytes 4000000 >data
    for sum in md5sum sha1sum sha256sum sha512sum sha3sum crc32; do
        echo "$sum $($sum <data)"
    done
    rm data
}
phase_sha256() {
    head -c 67108864 /dev/zero | sha256sum
}
phase_sort() {
    gendata text 1500000 >text
    sort text | sha256sum
    sort -k3,3n -k1,1 text | sha256sum
    sort -u -r -k2,2 text
    cut -d' ' -f1 text | sort | uniq -c
    rm text
}
phase_awk() {
    gendata text 1500000 >text
    awk '{ n[$1] += $3; s += $3 / 7 * 1.5; t += 1 / ($3 + 1) }
         END { for (w in n) print w, n[w] | "sort"; close("sort"); printf "%.6f %.6f\n", s, t }' text
    # Newton's square roots, and a series.
    awk 'BEGIN { for (i = 1; i <= 20000; i++) { r = i; for (k = 0; k < 9; k++) r = (r + i / r) / 2
             x += r; y = y * 1.0000001 + i % 7 / 3 }
         printf "%.10f %.8e %d\n", x, y, x * 1e6 }'
    rm text
}
phase_gzip() {
    gendata text 3000000 >text
    gzip -c text >text.gz
    wc -c <text.gz
    gunzip -c text.gz | cmp - text && echo "gzip round trip ok"
    bzip2 -c text | bunzip2 | cmp - text && echo "bzip2 round trip ok"
    rm text text.gz
}
phase_xz() {
    gendata text 2000000 >text
    /usr/bin/xz -3 -c text >text.xz
    wc -c <text.xz
    /usr/bin/xz -d -c text.xz | cmp - text && echo "xz round trip ok"
    rm text text.xz
}
phase_forkexec() {
    /bin/forkexec 250
    i=0
    while [ $i -lt 150 ]; do
        i=$((i + 1))
        word=$(echo "loop $i" | cut -d' ' -f2)
    done
    echo "pipelines $word"
}
phase_pipes() { pipes 40000; }
phase_signals() { signals 80000; }
phase_pagefaults() { pagefaults 150; }
phase_threads() { threads 5000; }
phase_stepper() { stepper 20; }
phase_copies() { copies 600; }
phase_strings() { textops 250; }
phase_sse() { sse 250; }
phase_x87() { x87 20000; }
phase_indirect() { indirect 25; }
phase_integers() { integers 8; }
# 32-bit code: what C programs do not contain.
phase_compat() { compat; }
# Phases of the 64-bit busybox with its static i386 twin.
phase_twin() {
    head -c 5 /bin32/busybox | tail -c 1 | od -An -tu1
    SB_TWIN=1 /bin32/sh /etc/phases.sh shell,hash,sort,awk,gzip,forkexec
}
phase_perl() { perl /etc/work.pl; }
phase_python() { python3 /etc/work.py; }
phase_compile() {
    for name in gendata forkexec pipes pagefaults indirect; do
        i=0
        while [ $i -lt 6 ]; do
            tcc -o "/tmp/$name" "/src/$name.c" || return
            i=$((i + 1))
        done
        wc -c <"/tmp/$name"
    done
    /tmp/gendata text 20000 | sha256sum
    /tmp/forkexec 3
    /tmp/pipes 300
    /tmp/pagefaults 2
    /tmp/indirect 1
    rm gendata forkexec pipes pagefaults indirect
}
phase_sqlite() { sqlite3 :memory: </etc/work.sql; }
phase_openssl() {
    gendata bytes 3000000 >data
    for digest in sha256 sha512 sha3-256 blake2b512 md5; do
        openssl dgst -$digest data
    done
    key="-K 000102030405060708090a0b0c0d0e0f -iv 0f0e0d0c0b0a09080706050403020100"
    for cipher in aes-128-cbc aes-128-ctr camellia-128-cbc; do
        openssl enc -$cipher $key -in data | openssl dgst -sha256
        openssl enc -$cipher $key -in data | openssl enc -d -$cipher $key | cmp - data &&
            echo "$cipher round trip ok"
    done
    openssl prime -hex 'FFFFFFFFFFFFFFFFC90FDAA22168C234C4C6628B80DC1CD129024E088A67CC74'
    rm data
}
# Takes as long as it is told to, and prints speeds: of use to see that it runs, not to compare.
phase_opensslspeed() {
    openssl speed -seconds 1 -bytes 1024 sha256 aes-128-cbc >/dev/null 2>&1 && echo "speed ok"
}

list=$(echo "${1:-}" | tr , ' ')
if [ -z "$list" ]; then
    list=$MINIMAL
    [ ! -e /etc/work.py ] || list="$list $WORK"
fi
label=PHASE
[ -z "${SB_TWIN:-}" ] || label=TWIN
for phase in $list; do
    echo "$label $phase start"
    "phase_$phase" 2>&1
    echo "$label $phase end"
done
