//! A page fault that hardware takes for a translation that it remembers is not logged. Replay finds it.

use iced_x86::code_asm::*;
use kvm_recorder::{Kicks, Length, Options, Positions};
use machine::checkpoint::CheckpointPages;
use machine::checkpoint::CheckpointSource;
use machine::clock::{DEFAULT_STEPS_PER_SECOND, InsnClock, VirtualClock};
use machine::ram::Ram;
use machine::units::VirtualNanos;
use replay_log::RecordingId;
use simuboost_tests::guest::layout::sel;
use simuboost_tests::guest::{Guest, Size, asm, layout, pte, tables};
use simuboost_tests::oracle::vcpu::ram_of;
use simuboost_tests::recording::{ON_ENGINE, RANDOM_PORT, TestBus, engine, record};
use std::sync::Arc;
use tcg_sim::replay::{Interval, Limits, Outcome, ReplayError, find_spurious_fault};

const PAGE: u64 = layout::DATA + 0x3000;
const HANDLER: u64 = layout::CODE + 0xe000;

/// Makes a page read-only and writable again, without a flush, and writes to it; counts page faults.
fn guest() -> Guest {
    let mut guest = Guest::new();
    let slot = guest.leaf_slot(PAGE, Size::Kib4);
    let emit = |a: &mut CodeAssembler| {
        let mut top = a.create_label();
        asm!(a;
            mov(rdi, PAGE);
            mov(rsi, slot);
            mov(edx, u32::from(RANDOM_PORT));
            set_label(&mut top);
            mov(rax, PAGE | pte::P);
            mov(qword_ptr(rsi), rax);
            invlpg(byte_ptr(rdi));
            add(r8, qword_ptr(rdi + 8));
            mov(rax, PAGE | pte::P | pte::RW);
            mov(qword_ptr(rsi), rax);
            inc(r9);
            mov(qword_ptr(rdi + 8), r9);
            in_(eax, dx);
            add(r10, rax);
            jmp(top));
        Ok(())
    };
    guest.code(emit).expect("it assembles");
    let handler = |a: &mut CodeAssembler| {
        asm!(a; inc(r12); add(rsp, 8); iretq());
        Ok(())
    };
    guest
        .code_at(HANDLER, HANDLER, handler)
        .expect("it assembles");
    guest.set_raw_gate(14, tables::gate(HANDLER, sel::CODE, 0x8e, 0));
    guest
}

/// The guest on a processor that takes the fault with this number.
fn recorded(fault_at: Option<u64>) -> Arc<dyn CheckpointSource> {
    let guest = guest();
    let ram = ram_of(&guest);
    let mut vcpu = engine(ram.clone(), false);
    vcpu.remember_translations(fault_at);
    let options = Options {
        recording: RecordingId([5; 16]),
        clock: VirtualClock::Insn(InsnClock::new(DEFAULT_STEPS_PER_SECOND)),
        positions: Positions::Landmark(Kicks::Prompt),
        interval: Length::Time(VirtualNanos(20_000)),
        stop_after: Some(Length::Steps(50_000)),
        queue_pages: 64,
    };
    let bus = TestBus::new(
        layout::RAM_BYTES,
        3,
        layout::FREE..layout::FREE + 0x10000,
        3_000,
    );
    let (store, _) = record(vcpu, ram, &guest.state, bus, options);
    Arc::new(store)
}

#[test]
fn a_fault_of_a_remembered_translation_is_found_where_an_interval_diverges() {
    let source = recorded(Some(300));
    let intervals = source.checkpoints().expect("memory does not fail") - 1;
    let mut found = Vec::new();
    for number in 0..intervals {
        let report = ON_ENGINE.replay(&source, number);
        let interval = Interval::load(&*source, number).expect("it is there");
        let limits = Limits {
            max_steps: 200_000,
            ..Limits::default()
        };
        let fresh = || {
            let pages = CheckpointPages::new(source.clone(), number);
            let ram = Ram::lazy(layout::RAM_BYTES, Arc::new(pages)).expect("RAM is small");
            let ram = Arc::new(ram);
            Ok::<_, ReplayError>((engine(ram.clone(), false), ram))
        };
        let fault = find_spurious_fault(fresh, &interval, &*source, &limits).expect("a verdict");
        // Asked for or not, it is found in the one interval that has it.
        assert_eq!(
            report.outcome != Outcome::Verified,
            fault.is_some(),
            "interval {number}"
        );
        found.extend(fault.map(|(_, fault)| fault));
    }
    let [fault] = found[..] else {
        panic!("{found:?}");
    };
    assert_eq!(fault.address, PAGE + 8);
    assert!((layout::CODE..HANDLER).contains(&fault.rip), "{fault:?}");
}

#[test]
fn nobody_faults_where_nothing_is_remembered() {
    let source = recorded(None);
    let intervals = source.checkpoints().expect("memory does not fail") - 1;
    for number in 0..intervals {
        let report = ON_ENGINE.replay(&source, number);
        assert_eq!(report.outcome, Outcome::Verified, "interval {number}");
        assert_eq!(report.met_furthest, 0);
    }
}
