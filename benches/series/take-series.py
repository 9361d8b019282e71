#!/usr/bin/env python3
"""Takes a series of raw memory images from a QEMU guest that runs one workload.

    take-series.py GUEST_DIR WORKLOAD OUT_DIR [--count 33] [--memory 256] [--every 2.0]

GUEST_DIR comes from make-rootfs.sh; WORKLOAD is compile, redis, sql or script. The guest is
stopped while an image is taken (QMP stop, pmemsave, cont), so an image is a consistent checkpoint.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import time


class Qmp:
    """One QMP connection."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        for _ in range(100):
            try:
                self.socket.connect(path)
                break
            except OSError:
                time.sleep(0.1)
        self.file = self.socket.makefile("rw")
        self.file.readline()
        self.do("qmp_capabilities")

    def do(self, command, **arguments):
        self.file.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self.file.flush()
        while True:
            answer = json.loads(self.file.readline())
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                sys.exit(f"{command}: {answer['error']}")


def start(options, console, qmp):
    """Starts the guest; its writes to the disk go to a throw-away overlay."""
    guest = options.guest
    return subprocess.Popen([
        "qemu-system-x86_64", "-accel", "tcg,thread=single", "-cpu", "qemu64", "-smp", "1",
        "-m", f"{options.memory}M", "-nodefaults", "-display", "none", "-no-reboot",
        "-kernel", f"{guest}/vmlinuz", "-initrd", f"{guest}/initrd",
        "-append", "console=ttyS0 root=/dev/vda rw init=/workload.sh nokaslr quiet "
                   f"workload={options.workload}",
        "-drive", f"file={guest}/root.img,format=raw,if=virtio,snapshot=on",
        "-serial", f"file:{console}", "-qmp", f"unix:{qmp},server=on,wait=off",
    ])


def wait_ready(console, limit_seconds):
    """Waits until the workload has said READY."""
    deadline = time.time() + limit_seconds
    while time.time() < deadline:
        if os.path.exists(console) and "READY" in open(console, errors="replace").read():
            return
        time.sleep(0.5)
    sys.exit(f"the guest did not get ready; see {console}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("guest")
    parser.add_argument("workload", choices=["compile", "redis", "sql", "script"])
    parser.add_argument("out")
    parser.add_argument("--count", type=int, default=33)
    parser.add_argument("--memory", type=int, default=256)
    parser.add_argument("--every", type=float, default=2.0)
    options = parser.parse_args()
    out = os.path.abspath(options.out)
    os.makedirs(out, exist_ok=True)
    console, path = f"{out}/console", f"{out}/qmp"
    guest = start(options, console, path)
    try:
        qmp = Qmp(path)
        wait_ready(console, 600)
        for number in range(options.count):
            time.sleep(options.every)
            qmp.do("stop")
            qmp.do("pmemsave", val=0, size=options.memory << 20, filename=f"{out}/{number:03}.ram")
            qmp.do("cont")
            subprocess.run(["fallocate", "--dig-holes", f"{out}/{number:03}.ram"], check=True)
            print(f"{options.workload} {number + 1}/{options.count}", file=sys.stderr)
        qmp.do("quit")
    finally:
        guest.kill()


main()
