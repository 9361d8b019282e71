#!/usr/bin/env python3
"""What positions without counts cost: Linux is recorded by landmarks, and every interval is simulated.

    landmarks.py [--phases forkexec,pipes] [--image minimal|work]

One recording per phase, with the host's clock: how many positions each rule gave, how long the guest stood
still to have a landmark taken, and what the search for them met. An arrival is a point of the replay at
which all registers are those of a landmark; it is refused where the memory differs (a loop that changes
memory only, say). A backtrack is a point that was taken and turned out to be wrong.

    tests/guest-images/build.sh && cargo build --release && benches/linux/landmarks.py

Exit code: 0; 3 if an interval is not verified.
"""
import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import guests

PHASES = "shell,sort,forkexec,pipes,signals,pagefaults,threads"
HEADER = (
    "phase", "Minsn", "after I/O", "window", "landmark", "us each", "arrivals", "refused",
    "backtracks", "record s", "verify s", "verified",
)  # fmt: skip


def sbctl(options, repository, *arguments):
    """The JSON of a command, and its exit code."""
    command = [options.sbctl, "--repo", str(repository), *arguments, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if not done.stdout:
        sys.exit(f"{' '.join(command)}: {done.stderr}")
    return json.loads(done.stdout), done.returncode


def measure(options, phase, directory):
    """One row, and whether everything was verified."""
    repository = pathlib.Path(directory, "repository")
    recorded, _ = sbctl(
        options, repository, "record", "--name", phase, "--kernel", options.kernel,
        "--initrd", guests.initrd(options), "--append", f"quiet sb.phases={phase}",
        "--memory", options.memory, "--console", "none", "--clock", "host",
        "--positions", "landmark", "--interval", options.interval,
    )  # fmt: skip
    verified, code = sbctl(options, repository, "verify", phase)
    merged = json.loads(pathlib.Path(verified["out"], "merged.json").read_text())
    positions, search = recorded["positions"], merged["search"]
    taken = max(positions["landmark"], 1)
    return (
        phase, f"{verified['instructions'] / 1e6:.0f}", positions["after_io"],
        positions["window"], positions["landmark"], f"{recorded['landmarks_ns'] / taken / 1e3:.1f}",
        search["arrivals"], search["wrong_memory"], search["backtracks"],
        f"{recorded['host_time_ns'] / 1e9:.1f}", f"{verified['host_time_ns'] / 1e9:.1f}",
        f"{verified['verified']} of {verified['intervals']}",
    ), code == 0  # fmt: skip


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    guests.add_guest_options(parser, "minimal")
    parser.add_argument("--phases", default=PHASES)
    parser.add_argument("--interval", default="1s")
    options = parser.parse_args()
    print("| " + " | ".join(HEADER) + " |\n|" + "---|" * len(HEADER))
    proven = True
    for phase in options.phases.split(","):
        with tempfile.TemporaryDirectory() as directory:
            row, verified = measure(options, phase, directory)
        proven &= verified
        print("| " + " | ".join(map(str, row)) + " |", flush=True)
    sys.exit(0 if proven else 3)


if __name__ == "__main__":
    main()
