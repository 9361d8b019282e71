#!/usr/bin/env python3
"""Times the phases of a Linux guest on QEMU's TCG and on our engine, in turn, on the same files.

Seconds are taken on the host, when a phase's marker line arrives on the guest's serial console. The
phase "boot" lasts from the start of the process to the line "GUEST up". With several rounds the
machines run in turn and the fastest time of each phase counts.

    tests/guest-images/build.sh
    cargo build --release
    benches/linux/compare.py --rounds 3 --json result.json

Each console is kept, so that tests/guest-images/check.sh can compare it with the native output.
"""
import argparse
import json
import math
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import threading
import time

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
# The features of machine::cpuid::CpuidTable::x86_64_v2.
QEMU_CPU = "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+cx16,-tsc,-apic,-svm,-mtrr,-mca,-mce"
# The options of machine::boot::MACHINE_OPTIONS; `sbctl run` adds them by itself.
MACHINE_OPTIONS = (
    "console=ttyS0 acpi=off nolapic noapic lpj=2000000 randomize_kstack_offset=off"
    " random.trust_bootloader=on mitigations=off panic=-1"
)
MARKER = re.compile(r"PHASE (\w+) (start|end)$")


def cache_directory():
    """Where tests/guest-images/build.sh puts its results."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.environ["HOME"], ".cache")
    return pathlib.Path(os.environ.get("SB_GUEST_IMAGES") or f"{home}/simuboost/guest-images")


def qemu_command(options, append):
    """QEMU with one TCG thread and the machine that is most like ours."""
    return [
        "qemu-system-x86_64", "-M", "pc", "-accel", "tcg,thread=single", "-cpu", QEMU_CPU,
        "-m", options.memory, "-nodefaults", "-no-reboot", "-display", "none",
        "-serial", "stdio", "-kernel", options.kernel, "-initrd", options.initrd,
        "-append", f"{MACHINE_OPTIONS} {append}",
    ]  # fmt: skip


def engine_command(options, append):
    """Our engine."""
    return [
        options.sbctl, "run", "--accel", "engine", "--clock", options.clock,
        "--memory", options.memory, "--kernel", options.kernel, "--initrd", options.initrd,
        "--append", append,
    ]  # fmt: skip


def run(command, log_path, timeout):
    """Runs a guest until it is down; seconds per phase by name, in order."""
    seconds, open_phases = {}, {}
    with open(log_path, "wb") as log, tempfile.TemporaryFile() as errors:
        start = time.monotonic()
        guest = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors
        )
        watchdog = threading.Timer(timeout, guest.kill)
        watchdog.start()
        down = False
        for raw in guest.stdout:
            now = time.monotonic()
            log.write(raw)
            line = raw.decode(errors="replace").strip()
            marker = MARKER.match(line)
            if line == "GUEST up":
                seconds["boot"] = now - start
            elif line == "GUEST down":
                # QEMU does not end by itself when a guest without ACPI halts.
                down = True
                break
            elif marker and marker[2] == "start":
                open_phases[marker[1]] = now
            elif marker:
                seconds[marker[1]] = now - open_phases.pop(marker[1])
        watchdog.cancel()
        guest.kill()
        guest.wait()
        if not down:
            errors.seek(0)
            said = errors.read().decode(errors="replace").strip()
            unfinished = ", ".join(open_phases) or "none"
            sys.exit(
                f"{command[0]} did not get to the end; unfinished phase: {unfinished}; console:"
                f" {log_path}\n{said}"
            )
    return seconds


def geometric_mean(values):
    """Of positive numbers."""
    return math.exp(sum(map(math.log, values)) / len(values))


def table(best, machines):
    """A row per phase, with the ratio of the second machine to the first."""
    print(f"{'phase':14}" + "".join(f"{m:>10}" for m in machines) + ("     ratio" * (len(machines) > 1)))
    for phase in best[machines[0]]:
        times = [best[m].get(phase, math.nan) for m in machines]
        ratio = f"{times[1] / times[0]:10.2f}" if len(times) > 1 else ""
        print(f"{phase:14}" + "".join(f"{t:10.3f}" for t in times) + ratio)


def parse_arguments():
    """The command line."""
    cache = cache_directory()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kernel", default=str(cache / "vmlinuz-cloud"))
    parser.add_argument("--initrd", default=str(cache / "work.cpio"))
    parser.add_argument("--memory", default="512M")
    parser.add_argument("--phases", default="", help="a,b,c (default: all of the image)")
    parser.add_argument("--machines", default="qemu,engine")
    parser.add_argument("--clock", default="insn", help="of the engine: insn or host")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--timeout", type=float, default=600, help="seconds for one run")
    parser.add_argument("--sbctl", default=str(REPOSITORY / "target/release/sbctl"))
    parser.add_argument("--logs", default=tempfile.gettempdir(), help="folder for the consoles")
    parser.add_argument("--json", help="write all results to this file")
    return parser.parse_args()


def main():
    """Runs the machines in turn and reports."""
    options = parse_arguments()
    machines = options.machines.split(",")
    commands = {"qemu": qemu_command, "engine": engine_command}
    append = f"sb.phases={options.phases}" if options.phases else ""
    rounds = {machine: [] for machine in machines}
    for number in range(options.rounds):
        for machine in machines:
            log = os.path.join(options.logs, f"linux-{machine}-{number}.log")
            rounds[machine].append(run(commands[machine](options, append), log, options.timeout))
            print(f"round {number + 1}: {machine} done, console in {log}", file=sys.stderr)
    best = {
        m: {phase: min(r[phase] for r in runs) for phase in runs[0]} for m, runs in rounds.items()
    }
    table(best, machines)
    result = {"unit": "seconds", "kernel": options.kernel, "best": best, "rounds": rounds}
    if len(machines) > 1:
        first, second = machines[:2]
        ratios = {p: best[second][p] / best[first][p] for p in best[first]}
        result["ratio"] = {"of": second, "to": first, "phases": ratios}
        result["geometric_mean_ratio"] = geometric_mean(ratios.values())
        print(f"geometric mean of {second}/{first}: {result['geometric_mean_ratio']:.2f}")
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
