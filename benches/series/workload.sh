#!/bin/sh
# init of the series guest: runs the workload named on the kernel command line (workload=NAME)
# for ever. Says READY on the console once the workload is warm.
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp
ip link set lo up 2>/dev/null || busybox ip link set lo up
workload=$(sed 's/.*workload=\([a-z]*\).*/\1/' /proc/cmdline)

compile() {
    mkdir -p /tmp/c && cd /tmp/c
    n=0
    while :; do
        n=$((n + 1))
        {
            echo '#include <stdio.h>'
            echo '#include <stdlib.h>'
            echo '#include <string.h>'
            i=0
            while [ $i -lt 60 ]; do
                echo "int f$i(int a, int b) { for (int j = 0; j < b; j++) a += (a * $((i + n)) ^ j) % 17; return a > b ? a - $i : b + $n; }"
                i=$((i + 1))
            done
            echo "int main(int c, char **v) { printf(\"%d\\n\", f$((n % 60))(c, $n)); return 0; }"
        } > "t$((n % 8)).c"
        gcc -O$((n % 3)) -c -o "t$((n % 8)).o" "t$((n % 8)).c"
        [ $n = 3 ] && echo READY > /dev/console
    done
}

redis() {
    redis-server --save '' --appendonly no --dir /tmp --daemonize yes > /dev/null
    sleep 3
    redis-benchmark -q -t set -n 60000 -r 60000 -d 96 > /dev/null
    echo READY > /dev/console
    while :; do
        redis-benchmark -q -t set,get,incr,lpush,hset -n 1500 -r 60000 -d 96 > /dev/null
        sleep 1
    done
}

sql() {
    db=/tmp/t.db
    sqlite3 $db 'PRAGMA journal_mode=WAL; CREATE TABLE t(id INTEGER PRIMARY KEY, k TEXT, v TEXT, n INT); CREATE INDEX i ON t(k); CREATE INDEX j ON t(n);' > /dev/null
    sqlite3 $db 'WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM c WHERE x<40000) INSERT INTO t SELECT x, hex(randomblob(12)), hex(randomblob(60)), random()%100000 FROM c;'
    echo READY > /dev/console
    n=0
    while :; do
        n=$((n + 1))
        sqlite3 $db "BEGIN; UPDATE t SET n=n+1, v=hex(randomblob(60)) WHERE id%401=$((n % 401)); INSERT INTO t(k,v,n) SELECT hex(randomblob(12)), v, $n FROM t WHERE id%997=$((n % 997)); DELETE FROM t WHERE id=(SELECT min(id) FROM t); COMMIT;"
    done
}

script() {
    cat > /tmp/w.js <<'JS'
const m = new Map(); let n = 0;
function step() {
  for (let i = 0; i < 1500; i++) {
    const o = { id: n, name: 'user' + (n * 7919 % 100003), tags: ['a' + n % 13, 'b' + n % 29], at: n * 1.5 };
    m.set(n % 20000, JSON.parse(JSON.stringify(o)));
    n++;
  }
  let s = 0; for (const o of m.values()) s += o.tags.length;
  if (n === 30000) require('fs').writeFileSync('/dev/console', 'READY\n');
  setTimeout(step, 20);
}
step();
JS
    node --max-old-space-size=96 /tmp/w.js
}

$workload
echo "FAILED $workload" > /dev/console
busybox poweroff -f
