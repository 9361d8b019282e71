//! An outcome as a list of keys and values, in a fixed order.

use crate::guest::{End, EventRecord, FinalState, Guest, Outcome};

/// (key, value) pairs such as `("e0.rip", "0x40000")`. What equals its initial or usual value is
/// left out.
pub type Report = Vec<(String, String)>;

/// The report of an outcome; `fpu` adds the FXSAVE image.
pub fn report(outcome: &Outcome, fpu: bool) -> Report {
    let end = match &outcome.end {
        End::Finished => "finished".to_owned(),
        End::Shutdown => "shutdown".to_owned(),
        End::Limit => "limit".to_owned(),
        End::Halted => "halted".to_owned(),
        End::Unsupported(what) => format!("unsupported({})", what.replace(' ', "_")),
    };
    let mut report = vec![("end".to_owned(), end)];
    for (index, event) in outcome.events.iter().enumerate() {
        event_lines(&mut report, index, event);
    }
    if let Some(last) = &outcome.last {
        final_lines(&mut report, last);
        if fpu {
            fpu_lines(&mut report, &last.fxsave);
        }
    }
    for (name, bytes) in &outcome.memory {
        report.push((format!("m.{name}"), hex(bytes)));
    }
    report
}

fn hex(bytes: &[u8]) -> String {
    match <[u8; 8]>::try_from(bytes) {
        Ok(quad) => format!("{:#x}", u64::from_le_bytes(quad)),
        Err(_) => bytes.iter().map(|b| format!("{b:02x}")).collect(),
    }
}

fn event_lines(report: &mut Report, index: usize, e: &EventRecord) {
    let always = [
        ("vec", e.vector),
        ("err", e.error),
        ("rip", e.rip),
        ("cs", e.cs),
        ("rfl", e.rflags),
        ("rsp", e.rsp),
        ("ss", e.ss),
        ("frame", e.frame),
    ];
    let if_not_zero = [
        ("cr2", e.cr2),
        ("dr6", e.dr6),
        ("rax", e.registers[0]),
        ("rcx", e.registers[1]),
        ("rdx", e.registers[2]),
        ("rbx", e.registers[3]),
        ("rsi", e.registers[4]),
        ("rdi", e.registers[5]),
    ];
    let shown = always
        .into_iter()
        .chain(if_not_zero.into_iter().filter(|(_, value)| *value != 0));
    for (key, value) in shown {
        report.push((format!("e{index}.{key}"), format!("{value:#x}")));
    }
}

const GPRS: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
];

fn final_lines(report: &mut Report, last: &FinalState) {
    let usual = Guest::new().state;
    let selectors = usual.segs.map(|s| u64::from(s.selector));
    let mut show = |key: &str, value: u64, usual: u64| {
        if value != usual {
            report.push((format!("r.{key}"), format!("{value:#x}")));
        }
    };
    for (name, value) in GPRS.into_iter().zip(last.gpr) {
        show(name, value, 0);
    }
    show("rfl", last.rflags, 2);
    let control = [usual.cr0, 0, usual.cr3, usual.cr4, 0];
    for ((name, value), usual) in ["cr0", "cr2", "cr3", "cr4", "cr8"]
        .into_iter()
        .zip(last.cr)
        .zip(control)
    {
        show(name, value, usual);
    }
    let debug = [0, 0, 0, 0, usual.dr6, usual.dr7];
    for ((name, value), usual) in ["dr0", "dr1", "dr2", "dr3", "dr6", "dr7"]
        .into_iter()
        .zip(last.dr)
        .zip(debug)
    {
        show(name, value, usual);
    }
    for ((name, value), usual) in ["es", "cs", "ss", "ds", "fs", "gs"]
        .into_iter()
        .zip(last.segs)
        .zip(selectors)
    {
        show(name, value, usual);
    }
    for (name, value) in ["fsbase", "gsbase", "kgsbase"].into_iter().zip(last.bases) {
        show(name, value, 0);
    }
}

fn fpu_lines(report: &mut Report, image: &[u8]) {
    let word = |at: usize| u64::from(u16::from_le_bytes([image[at], image[at + 1]]));
    let mxcsr = word(24) | word(26) << 16;
    for (key, value) in [
        ("fcw", word(0)),
        ("fsw", word(2)),
        ("ftw", u64::from(image[4])),
        ("mxcsr", mxcsr),
    ] {
        report.push((format!("f.{key}"), format!("{value:#x}")));
    }
    for index in 0..8 {
        let bytes = &image[32 + index * 16..][..10];
        if bytes.iter().any(|b| *b != 0) {
            report.push((format!("f.st{index}"), hex(bytes)));
        }
    }
    for index in 0..16 {
        let bytes = &image[160 + index * 16..][..16];
        if bytes.iter().any(|b| *b != 0) {
            report.push((format!("f.xmm{index}"), hex(bytes)));
        }
    }
}
