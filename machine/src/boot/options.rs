//! The kernel options that the machine itself needs.

/// One option of the kernel command line and why the machine sets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelOption {
    /// As on the command line.
    pub text: &'static str,
    /// Why.
    pub reason: &'static str,
}

/// What [`command_line`] puts first, in this order.
pub const MACHINE_OPTIONS: &[KernelOption] = &[
    KernelOption {
        text: "console=ttyS0",
        reason: "the machine's console is its 16550A",
    },
    KernelOption {
        text: "acpi=off",
        reason: "there are no ACPI tables; without this the kernel searches for them",
    },
    KernelOption {
        text: "nolapic",
        reason: "there is no local APIC; interrupts come through the 8259s",
    },
    KernelOption {
        text: "noapic",
        reason: "there is no I/O APIC",
    },
    KernelOption {
        text: "lpj=2000000",
        reason: "delay loops take two steps of 1 ns a round, 4 ms a jiffy; without this the kernel \
                 measures them for some 100 ms on each boot",
    },
    KernelOption {
        text: "randomize_kstack_offset=off",
        reason: "the kernel takes this randomness from RDTSC on each system call, also where CPUID \
                 hides the counter, and each RDTSC would be an exit and a log entry",
    },
    KernelOption {
        text: "random.trust_bootloader=on",
        reason: "the seed in setup_data makes the random number generator ready at boot; else \
                 programs that need it wait for entropy that this machine does not have",
    },
    KernelOption {
        text: "mitigations=off",
        reason: "a simulator does not speculate; for an unknown CPU vendor the kernel would turn on \
                 every guard it has",
    },
    KernelOption {
        text: "panic=-1",
        reason: "a panic resets the machine, which ends the run with a message, instead of looping",
    },
];

/// The machine's own options followed by the user's, whose later word wins.
pub fn command_line(append: &str) -> String {
    let own = MACHINE_OPTIONS.iter().map(|option| option.text);
    let words: Vec<&str> = own
        .chain(Some(append.trim()))
        .filter(|w| !w.is_empty())
        .collect();
    words.join(" ")
}
