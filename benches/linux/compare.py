#!/usr/bin/env python3
"""Times the phases of a Linux guest on QEMU's TCG and on our engine, in turn, on the same files.

The host's clocks are read when a phase's marker line arrives on the guest's serial console: the wall
clock, and the CPU time that the guest's process has used. The latter is what is compared by default,
since other load on the host does not count in it; phases in which a guest mostly waits would need
--measure wall. The phase "boot" lasts from the start of the process to the line "GUEST up". With
several rounds the machines run in turn and the least time of each phase counts.

Each machine's output is compared with that of the same programs run natively. A phase whose output is
wrong, on any machine or in any round, is named and stays out of the mean.

    tests/guest-images/build.sh
    cargo build --release
    benches/linux/compare.py --rounds 3 --output result.json

Exit code: 0, or 3 if the output of a phase was wrong.
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
GUEST_IMAGES = REPOSITORY / "tests/guest-images"
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


class Clocks:
    """The host's clocks for one process: seconds since it started, and seconds of CPU time."""

    def __init__(self, process):
        self.start = time.monotonic()
        self.tasks = pathlib.Path(f"/proc/{process.pid}/task")

    def read(self):
        """Both; CPU time is that of all threads that live."""
        nanoseconds = 0
        for task in self.tasks.glob("*/schedstat"):
            try:
                nanoseconds += int(task.read_text().split()[0])
            except (FileNotFoundError, ProcessLookupError):
                pass
        return {"wall": time.monotonic() - self.start, "cpu": nanoseconds / 1e9}


def difference(later, earlier):
    """What passed between two readings."""
    return {clock: later[clock] - earlier[clock] for clock in later}


def run(command, log_path, timeout):
    """Runs a guest until it is down; seconds per phase by name and clock, in order."""
    seconds, open_phases = {}, {}
    with open(log_path, "wb") as log, tempfile.TemporaryFile() as errors:
        guest = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors
        )
        clocks = Clocks(guest)
        watchdog = threading.Timer(timeout, guest.kill)
        watchdog.start()
        down = False
        for raw in guest.stdout:
            now = clocks.read()
            log.write(raw)
            line = raw.decode(errors="replace").strip()
            marker = MARKER.match(line)
            if line == "GUEST up":
                seconds["boot"] = now
            elif line == "GUEST down":
                # QEMU does not end by itself when a guest without ACPI halts.
                down = True
                break
            elif marker and marker[2] == "start":
                open_phases[marker[1]] = now
            elif marker:
                seconds[marker[1]] = difference(now, open_phases.pop(marker[1]))
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


def wrong_phases(log_path, image):
    """The phases of a console whose output is not that of the same programs run natively."""
    command = [str(GUEST_IMAGES / "check.sh"), log_path, image]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    verdicts = re.findall(r"^(ok|DIFFERS) +(\w+)$", checked.stdout, re.MULTILINE)
    if not verdicts:
        sys.exit(f"{command[0]}: {checked.stderr.strip()}")
    return {phase for verdict, phase in verdicts if verdict != "ok"}


def geometric_mean(values):
    """Of positive numbers."""
    return math.exp(sum(map(math.log, values)) / len(values))


def least(runs, clock):
    """The least time of each phase."""
    return {phase: min(r[phase][clock] for r in runs if phase in r) for phase in runs[0]}


def table(best, machines, wrong):
    """A row per phase, with the ratio of the second machine to the first."""
    head = "".join(f"{machine:>10}" for machine in machines)
    print(f"{'phase':14}{head}" + ("     ratio" if len(machines) > 1 else ""))
    for phase in best[machines[0]]:
        times = [best[machine].get(phase, math.nan) for machine in machines]
        row = f"{phase:14}" + "".join(f"{seconds:10.3f}" for seconds in times)
        if phase in wrong:
            row += f"   WRONG OUTPUT: {', '.join(wrong[phase])}"
        elif len(times) > 1:
            row += f"{times[1] / times[0]:10.2f}"
        print(row)


def parse_arguments():
    """The command line."""
    cache = cache_directory()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--image", default="work", choices=["minimal", "work"])
    parser.add_argument("--kernel", default=str(cache / "vmlinuz-cloud"))
    parser.add_argument("--initrd", help="default: that of the image")
    parser.add_argument("--memory", default="512M")
    parser.add_argument("--phases", default="", help="a,b,c (default: all of the image)")
    parser.add_argument("--machines", default="qemu,engine")
    parser.add_argument("--measure", default="cpu", choices=["cpu", "wall"])
    parser.add_argument("--clock", default="insn", help="of the engine: insn or host")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--timeout", type=float, default=1200, help="seconds for one run")
    parser.add_argument("--sbctl", default=str(REPOSITORY / "target/release/sbctl"))
    parser.add_argument("--logs", default=tempfile.gettempdir(), help="folder for the consoles")
    parser.add_argument("--output", help="write all results to this file, as JSON")
    options = parser.parse_args()
    options.initrd = options.initrd or str(cache / f"{options.image}.cpio")
    return options


def main():
    """Runs the machines in turn and reports."""
    options = parse_arguments()
    machines = options.machines.split(",")
    commands = {"qemu": qemu_command, "engine": engine_command}
    append = f"quiet sb.phases={options.phases}" if options.phases else "quiet"
    rounds = {machine: [] for machine in machines}
    wrong = {}
    for number in range(options.rounds):
        for machine in machines:
            log = os.path.join(options.logs, f"linux-{machine}-{number}.log")
            rounds[machine].append(run(commands[machine](options, append), log, options.timeout))
            for phase in wrong_phases(log, options.image):
                wrong.setdefault(phase, set()).add(machine)
            print(f"round {number + 1}: {machine} done, console in {log}", file=sys.stderr)
    wrong = {phase: sorted(where) for phase, where in wrong.items()}
    best = {machine: least(runs, options.measure) for machine, runs in rounds.items()}
    table(best, machines, wrong)
    result = {
        "unit": "seconds", "measure": options.measure, "kernel": options.kernel,
        "initrd": options.initrd, "best": best, "rounds": rounds, "wrong_output": wrong,
    }  # fmt: skip
    if len(machines) > 1:
        first, second = machines[:2]
        right = [phase for phase in best[first] if phase not in wrong]
        ratios = {phase: best[second][phase] / best[first][phase] for phase in right}
        result["ratio"] = {"of": second, "to": first, "phases": ratios}
        if ratios:
            result["geometric_mean_ratio"] = geometric_mean(ratios.values())
            worst = max(ratios, key=ratios.get)
            print(
                f"{second}/{first}: geometric mean {result['geometric_mean_ratio']:.2f} of"
                f" {len(ratios)} phases, worst {ratios[worst]:.2f} ({worst})"
            )
    if wrong:
        print(f"wrong output, not in the mean: {', '.join(sorted(wrong))}")
    if options.output:
        pathlib.Path(options.output).write_text(json.dumps(result, indent=2) + "\n")
    sys.exit(3 if wrong else 0)


if __name__ == "__main__":
    main()
