//! Logs written by earlier builds are read by this one. `tests/golden/replay-log` holds two segments
//! of version 1, in hexadecimal, and what they say; `SB_BLESS=1` makes them anew, which only a new
//! version of the format justifies: then under another name, beside the old ones.

use kvm_recorder::{Kicks, Length, Options, Positions};
use machine::checkpoint::CheckpointSource;
use machine::clock::{DEFAULT_STEPS_PER_SECOND, InsnClock, VirtualClock};
use machine::cpuid::CpuidTable;
use machine::ram::Ram;
use machine::units::VirtualNanos;
use replay_log::{RecordingId, Segment, Tail};
use simuboost_tests::guest::layout;
use simuboost_tests::recording::programs::{DEVICE_WINDOW, Program};
use simuboost_tests::recording::{Machine, TestBus};
use std::fmt::Write;
use std::path::PathBuf;
use std::sync::Arc;
use tcg_sim::{Engine, EngineOptions};

const MACHINE: Machine<Engine> = Machine {
    vcpu: |ram: Arc<Ram>| {
        Engine::new(ram, CpuidTable::x86_64_v2(), EngineOptions::default())
            .expect("this host runs the engine")
    },
    ram_bytes: layout::RAM_BYTES,
};

fn folder() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "golden", "replay-log"]
        .iter()
        .collect()
}

/// A segment with reads, interrupts, device writes, and positions of the kind.
fn record(positions: Positions) -> Vec<u8> {
    let bus = TestBus::new(layout::RAM_BYTES, 3, DEVICE_WINDOW, 23_000);
    let options = Options {
        recording: RecordingId([8; 16]),
        clock: VirtualClock::Insn(InsnClock::new(DEFAULT_STEPS_PER_SECOND)),
        positions,
        interval: Length::Time(VirtualNanos(30_000)),
        stop_after: Some(Length::Steps(100_000)),
        queue_pages: 64,
    };
    let program = Program::everything(60);
    let (store, _) = MACHINE.record(bus, options, |ram| program.load(ram));
    store.segment(2).expect("there are more intervals")
}

fn to_hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for line in bytes.chunks(48) {
        for byte in line {
            write!(text, "{byte:02x}").expect("memory takes everything");
        }
        text.push('\n');
    }
    text
}

fn from_hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text
        .chars()
        .filter_map(|digit| digit.to_digit(16).map(|value| value as u8))
        .collect();
    digits
        .chunks(2)
        .map(|pair| pair[0] << 4 | pair[1])
        .collect()
}

/// Everything that a segment says, also what its lines leave out.
fn text_of(segment: &Segment) -> String {
    let mut text = format!("{:?}\n", segment.header);
    for event in &segment.events {
        write!(text, "{event}\n    {event:?}\n").expect("memory takes everything");
    }
    write!(text, "{:?}\n{:?}\n", segment.end, segment.tail).expect("memory takes everything");
    text
}

#[test]
fn logs_of_version_1_say_what_they_said() {
    let kicks = Kicks::Random {
        seed: 4,
        late_by_steps: 1_000,
    };
    let rows = [
        ("1-count", Positions::Count),
        ("1-landmark", Positions::Landmark(kicks)),
    ];
    for (name, positions) in rows {
        let (bytes, text) = ["hex", "txt"]
            .map(|kind| folder().join(format!("{name}.{kind}")))
            .into();
        if std::env::var_os("SB_BLESS").is_some() {
            let segment = record(positions);
            let said = text_of(&Segment::read(&segment).expect("it was just written"));
            std::fs::create_dir_all(folder()).expect("the folder can be made");
            std::fs::write(&bytes, to_hex(&segment)).expect("the file can be written");
            std::fs::write(&text, said).expect("the file can be written");
        }
        let hex = std::fs::read_to_string(&bytes).expect("the fixture is in the tree");
        let segment = Segment::read(&from_hex(&hex)).expect("version 1 can be read");
        assert_eq!(segment.tail, Tail::Complete);
        let expected = std::fs::read_to_string(&text).expect("the fixture is in the tree");
        assert_eq!(text_of(&segment), expected, "{name}");
    }
}
