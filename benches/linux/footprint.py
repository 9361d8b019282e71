#!/usr/bin/env python3
"""What a run of `sbctl run` takes from its host: CPU time of an idle guest, and memory.

    footprint.py idle      a guest waits at a shell prompt, with the host's clock: CPU time in per cent of a
                           core, and how often a thread of the run is put to sleep in a second
    footprint.py memory    a guest does the phases of an image: memory of the host process beyond the guest
                           RAM that was touched, at its highest

Memory is the proportional set size, which counts the code memory once (it is mapped twice); what counts as
touched is the guest RAM that the host holds. Both are read every --every seconds.

    tests/guest-images/build.sh && cargo build --release
    benches/linux/footprint.py idle && benches/linux/footprint.py memory --image work

Exit code: 0; 4 if it is 2 % or more, or more than 200 MiB.
"""
import argparse
import pathlib
import re
import subprocess
import sys
import threading
import time

import guests

SWITCHES = re.compile(r"^voluntary_ctxt_switches:\s+(\d+)", re.MULTILINE)
MAPPING = re.compile(r"^[0-9a-f]+-[0-9a-f]+ ", re.MULTILINE)


def sleeps(pid):
    """How often the threads of a process have gone to sleep."""
    tasks = pathlib.Path(f"/proc/{pid}/task").glob("*/status")
    return sum(int(SWITCHES.search(task.read_text())[1]) for task in tasks)


def start(options, append, **pipes):
    """The guest's process, when the guest is up; its console is read to the end by a thread."""
    guest = subprocess.Popen(
        guests.COMMANDS[options.machine](options, append),
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, **pipes,
    )  # fmt: skip
    for line in guest.stdout:
        if line.decode(errors="replace").strip() == "GUEST up":
            threading.Thread(target=guest.stdout.read, daemon=True).start()
            return guest
    sys.exit("the guest did not come up")


def idle(options):
    """Measures a guest that waits for input."""
    options.clock = "host"
    guest = start(options, "quiet sb.shell", stdin=subprocess.PIPE)
    try:
        time.sleep(options.settle)
        clocks = guests.Clocks(guest.pid)
        before, slept = clocks.read(), sleeps(guest.pid)
        time.sleep(options.seconds)
        used, slept = guests.difference(clocks.read(), before), sleeps(guest.pid) - slept
    finally:
        guest.kill()
    share = 100 * used["cpu"] / used["wall"]
    print(f"idle: {share:.2f} % of a core, {slept / used['wall']:.0f} sleeps a second")
    return share < 2


def memory_now(pid, ram_kib):
    """KiB of the process, and of its guest RAM, which is its one mapping of that size or a little more."""
    smaps = pathlib.Path(f"/proc/{pid}/smaps").read_text()
    starts = [match.start() for match in MAPPING.finditer(smaps)] + [len(smaps)]
    total = touched = 0
    for begin, end in zip(starts, starts[1:]):
        fields = dict(re.findall(r"^(Size|Pss):\s+(\d+) kB", smaps[begin:end], re.MULTILINE))
        total += int(fields["Pss"])
        if ram_kib <= int(fields["Size"]) < ram_kib + (64 << 10):
            touched += int(fields["Pss"])
    return total, touched


def memory(options):
    """Measures a guest that works."""
    ram_kib = int(options.memory.removesuffix("M")) << 10
    options.clock = "insn"
    phases = f"sb.phases={options.phases}" if options.phases else ""
    guest = start(options, f"quiet {phases}", stdin=subprocess.DEVNULL)
    most = (0, 0, 0)
    while guest.poll() is None:
        try:
            total, touched = memory_now(guest.pid, ram_kib)
        except (FileNotFoundError, ProcessLookupError, KeyError):
            break
        if touched:
            most = max(most, (total - touched, total, touched))
        time.sleep(options.every)
    beyond, total, touched = (kib / 1024 for kib in most)
    print(
        f"memory: {beyond:.0f} MiB beyond guest RAM at the highest"
        f" (process {total:.0f} MiB, guest RAM touched {touched:.0f} MiB)"
    )
    return guest.wait() == 0 and 0 < beyond <= 200


def main():
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["idle", "memory"])
    guests.add_guest_options(parser, "minimal")
    parser.add_argument("--machine", default="engine", choices=["engine", "qemu"])
    parser.add_argument("--phases", default="", help="a,b,c (default: all of the image)")
    parser.add_argument("--settle", type=float, default=5, help="seconds before measuring")
    parser.add_argument("--seconds", type=float, default=20, help="seconds to measure")
    parser.add_argument("--every", type=float, default=0.2, help="seconds between readings")
    options = parser.parse_args()
    sys.exit(0 if {"idle": idle, "memory": memory}[options.what](options) else 4)


if __name__ == "__main__":
    main()
