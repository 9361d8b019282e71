"""What the scripts of this folder share: where the guests are, how they are started, and the host's
clocks of a process."""
import os
import pathlib
import time

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
GUEST_IMAGES = REPOSITORY / "tests/guest-images"
SBCTL = REPOSITORY / "target/release/sbctl"
# The features of machine::cpuid::CpuidTable::x86_64_v2.
QEMU_CPU = "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+cx16,-tsc,-apic,-svm,-mtrr,-mca,-mce"
# The options of machine::boot::MACHINE_OPTIONS; `sbctl run` adds them by itself.
MACHINE_OPTIONS = (
    "console=ttyS0 acpi=off nolapic noapic lpj=2000000 randomize_kstack_offset=off"
    " random.trust_bootloader=on mitigations=off panic=-1"
)


def cache_directory():
    """Where tests/guest-images/build.sh puts its results."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.environ["HOME"], ".cache")
    return pathlib.Path(os.environ.get("SB_GUEST_IMAGES") or f"{home}/simuboost/guest-images")


def add_guest_options(parser, image):
    """The options that say which guest runs."""
    cache = cache_directory()
    parser.add_argument("--image", default=image, choices=["minimal", "work"])
    parser.add_argument("--kernel", default=str(cache / "vmlinuz-cloud"))
    parser.add_argument("--initrd", help="default: that of the image")
    parser.add_argument("--memory", default="512M")
    parser.add_argument("--sbctl", default=str(SBCTL))


def initrd(options):
    """The initial file system that the options name."""
    return options.initrd or str(cache_directory() / f"{options.image}.cpio")


def qemu_command(options, append):
    """QEMU with one TCG thread and the machine that is most like ours."""
    return [
        "qemu-system-x86_64", "-M", "pc", "-accel", "tcg,thread=single", "-cpu", QEMU_CPU,
        "-m", options.memory, "-nodefaults", "-no-reboot", "-display", "none",
        "-serial", "stdio", "-kernel", options.kernel, "-initrd", initrd(options),
        "-append", f"{MACHINE_OPTIONS} {append}",
    ]  # fmt: skip


def engine_command(options, append):
    """Our engine."""
    return [
        options.sbctl, "run", "--accel", "engine", "--clock", options.clock,
        "--memory", options.memory, "--kernel", options.kernel, "--initrd", initrd(options),
        "--append", append,
    ]  # fmt: skip


COMMANDS = {"qemu": qemu_command, "engine": engine_command}


class Clocks:
    """The host's clocks for one process: seconds since it started, and seconds of CPU time."""

    def __init__(self, pid):
        self.start = time.monotonic()
        self.tasks = pathlib.Path(f"/proc/{pid}/task")

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
