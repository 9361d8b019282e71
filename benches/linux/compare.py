#!/usr/bin/env python3
"""Times phases of a Linux guest on QEMU's TCG and on our engine, in turn, on the same files.

Each phase is a run of its own (boot, phase, power-off), first on QEMU, then on the engine, before the
next phase begins; its line is printed at once. The host's clocks are read when a phase's marker line
arrives on the guest's serial console: the wall clock, and the CPU time that the guest's process has
used. The latter is what is compared by default, since other load on the host does not count in it;
phases in which a guest mostly waits would need --measure wall. The phase "boot" lasts from the start of
the process to the line "GUEST up", the least of all runs. With several rounds the least time counts.

Each machine's output is compared with that of the same programs run natively. A phase whose output is
wrong, or that did not end, on any machine or in any round, is named and stays out of the mean.

    tests/guest-images/build.sh
    cargo build --release
    benches/linux/compare.py --phases shell,sort,awk
    benches/linux/compare.py --image work --phases perl,python,compile --rounds 2 --output result.json
    benches/linux/compare.py --join result1.json result2.json      the table of several results

Exit code: 0; 3 if a phase's output was wrong; 4 if the engine took longer than --limit (1.5) times
QEMU's time in a phase, or longer than QEMU in the geometric mean.
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

import guests

MARKER = re.compile(r"PHASE (\w+) (start|end)$")
LIST = re.compile(r'^(MINIMAL|WORK)="([^"]*)"', re.MULTILINE)


def phases_of(image):
    """The names of an image's phases, from the script that the guest runs."""
    text = (guests.GUEST_IMAGES / "guest/phases.sh").read_text().replace("\\\n", "")
    lists = dict(LIST.findall(text))
    return (lists["MINIMAL"] + (" " + lists["WORK"] if image == "work" else "")).split()


def run(command, log_path, timeout):
    """Runs a guest until it is down: times by phase and clock, or what went wrong."""
    times, open_phases, down = {}, {}, False
    with open(log_path, "wb") as log, tempfile.TemporaryFile() as errors:
        guest = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors
        )
        clocks = guests.Clocks(guest.pid)
        watchdog = threading.Timer(timeout, guest.kill)
        watchdog.start()
        for raw in guest.stdout:
            now = clocks.read()
            log.write(raw)
            line = raw.decode(errors="replace").strip()
            marker = MARKER.match(line)
            if line == "GUEST up":
                times["boot"] = now
            elif line == "GUEST down":
                # QEMU does not end by itself when a guest without ACPI halts.
                down = True
                break
            elif marker and marker[2] == "start":
                open_phases[marker[1]] = now
            elif marker and marker[1] in open_phases:
                times[marker[1]] = guests.difference(now, open_phases.pop(marker[1]))
        watchdog.cancel()
        guest.kill()
        guest.wait()
        errors.seek(0)
        said = errors.read().decode(errors="replace").strip()
    return times, None if down else f"did not get to the end ({log_path}) {said}"


def verdict(log_path, image, phase):
    """What is wrong with the console of a phase, or None."""
    command = [str(guests.GUEST_IMAGES / "check.sh"), log_path, image]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    if re.search(rf"^ok +{phase}$", checked.stdout, re.MULTILINE):
        return None
    if "DIFFERS" in checked.stdout:
        return f"wrong output ({log_path})"
    sys.exit(f"{command[0]}: {checked.stderr.strip()}")


class Results:
    """The least times of phases by machine, and what was wrong."""

    def __init__(self, machines, measure):
        self.machines, self.measure = machines, measure
        self.times = {machine: {} for machine in machines}
        self.wrong = {}

    def add(self, machine, times):
        """Keeps the least of each clock."""
        for phase, clocks in times.items():
            best = self.times[machine].setdefault(phase, clocks)
            self.times[machine][phase] = {c: min(best[c], clocks[c]) for c in clocks}

    def blame(self, phase, machine, what):
        """The phase is out of the mean."""
        self.wrong.setdefault(phase, {})[machine] = what

    def join(self, other):
        """Adds what another run of this script found."""
        for machine, times in other["times"].items():
            self.add(machine, times)
        for phase, machines in other["wrong"].items():
            self.wrong.setdefault(phase, {}).update(machines)

    def ratios(self):
        """The second machine's time in units of the first's, for phases that both did right."""
        first, second = (self.times[machine] for machine in self.machines[:2])
        both = [p for p in first if p in second and p not in self.wrong]
        return {p: second[p][self.measure] / first[p][self.measure] for p in both}

    def line(self, phase):
        """A row of the table."""
        row = f"{phase:14}"
        for machine in self.machines:
            times = self.times[machine].get(phase)
            row += f"{times[self.measure]:10.3f}" if times else f"{'-':>10}"
        if phase in self.wrong:
            return row + "".join(f"  {m}: {what}" for m, what in self.wrong[phase].items())
        ratio = self.ratios().get(phase) if len(self.machines) > 1 else None
        return row + (f"{ratio:10.2f}" if ratio is not None else "")

    def table(self, limit):
        """Prints all rows and what they come to; the exit code."""
        print(f"\nseconds of {self.measure} time")
        print(self.head())
        for phase in self.times[self.machines[0]]:
            print(self.line(phase))
        code = 0
        if len(self.machines) > 1 and (ratios := self.ratios()):
            mean = math.exp(sum(map(math.log, ratios.values())) / len(ratios))
            worst = max(ratios, key=ratios.get)
            print(
                f"{self.machines[1]}/{self.machines[0]}: geometric mean {mean:.2f} of"
                f" {len(ratios)} phases, worst {ratios[worst]:.2f} ({worst})"
            )
            code = 4 if ratios[worst] > limit or mean > 1 else 0
        if self.wrong:
            print(f"not in the mean: {', '.join(sorted(self.wrong))}")
            code = 3
        return code

    def head(self):
        """The names of the columns."""
        names = "".join(f"{machine:>10}" for machine in self.machines)
        return f"{'phase':14}{names}" + ("     ratio" if len(self.machines) > 1 else "")

    def save(self, path):
        """Writes everything as JSON."""
        found = {"unit": "seconds", "times": self.times, "wrong": self.wrong}
        pathlib.Path(path).write_text(json.dumps(found, indent=2) + "\n")


def measure(options, results):
    """Runs the phases, each on all machines before the next."""
    phases = options.phases.split(",") if options.phases else phases_of(options.image)
    for number in range(options.rounds):
        print(f"round {number + 1} of {options.rounds}\n{results.head()}", flush=True)
        for phase in phases:
            for machine in results.machines:
                log = os.path.join(options.logs, f"linux-{machine}-{phase}-{number}.log")
                command = guests.COMMANDS[machine](options, f"quiet sb.phases={phase}")
                times, failure = run(command, log, options.timeout)
                failure = failure or verdict(log, options.image, phase)
                if failure:
                    results.blame(phase, machine, failure)
                results.add(machine, times)
            print(results.line(phase), flush=True)
            if options.output:
                results.save(options.output)


def parse_arguments():
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    guests.add_guest_options(parser, "minimal")
    parser.add_argument("--phases", default="", help="a,b,c (default: all of the image)")
    parser.add_argument("--machines", default="qemu,engine")
    parser.add_argument("--measure", default="cpu", choices=["cpu", "wall"])
    parser.add_argument("--clock", default="insn", help="of the engine: insn or host")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--limit", type=float, default=1.5, help="most times QEMU's in a phase")
    parser.add_argument("--timeout", type=float, default=240, help="seconds for one run")
    parser.add_argument("--logs", default=tempfile.gettempdir(), help="folder for the consoles")
    parser.add_argument("--output", help="write all results to this file, as JSON")
    parser.add_argument("--join", nargs="+", metavar="FILE", help="measure nothing, show these")
    return parser.parse_args()


def main():
    """Measures, or reads what was measured, and reports."""
    options = parse_arguments()
    results = Results(options.machines.split(","), options.measure)
    if options.join:
        for path in options.join:
            results.join(json.loads(pathlib.Path(path).read_text()))
    else:
        measure(options, results)
    sys.exit(results.table(options.limit))


if __name__ == "__main__":
    main()
