//! The KVM vCPU on /dev/kvm, kept within what a KVM that emulates kernel code can run.

use iced_x86::code_asm::*;
use kvm_recorder::kvm::examine::{self, Level};
use kvm_recorder::kvm::{DirtyLog, Host, KvmVcpu, Tracking};
use machine::cpuid::CpuidTable;
use machine::ram::Ram;
use machine::units::{GuestPhys, Port, Position};
use machine::vcpu::{Exit, Vcpu, VcpuError};
use simuboost_tests::guest::{Guest, asm, layout};
use simuboost_tests::oracle::kvm::host;
use simuboost_tests::oracle::vcpu::ram_of;
use simuboost_tests::recording::Rng;
use std::sync::Arc;
use std::time::Duration;

fn vcpu(host: &Host, ram: Arc<Ram>) -> KvmVcpu {
    KvmVcpu::new(host, ram, &CpuidTable::x86_64_v2()).expect("a VM can be made")
}

#[test]
fn a_guest_computes_and_tells() {
    let Some(host) = host() else { return };
    let mut guest = Guest::new();
    guest
        .code(|a| {
            asm!(a; mov(eax, 20); add(eax, 22); mov(edx, 0x80); out(dx, al); in_(al, 0x81); mov(byte_ptr(layout::DATA), al));
            Ok(())
        })
        .expect("it assembles");
    let ram = ram_of(&guest);
    let mut vcpu = vcpu(&host, ram.clone());
    vcpu.load(&guest.state, Position::default())
        .expect("KVM takes the state");
    let write = |port, value| Exit::PortWrite {
        port: Port(port),
        size: 1,
        value,
    };
    assert_eq!(vcpu.run(None).unwrap(), write(0x80, 42));
    let read = Exit::PortRead {
        port: Port(0x81),
        size: 1,
    };
    assert_eq!(vcpu.run(None).unwrap(), read);
    vcpu.complete_read(7).unwrap();
    let finished = write(layout::EXIT_PORT, u32::from(layout::EXIT_VALUE));
    assert_eq!(vcpu.run(None).unwrap(), finished);
    let mut stored = [0];
    ram.read(GuestPhys(layout::DATA), &mut stored).unwrap();
    assert_eq!(stored, [7]);
}

#[test]
fn the_host_can_be_probed() {
    let Some(host) = host() else { return };
    let exact = examine::window_is_exact(&host).unwrap();
    let speed = examine::speed(&host, Level::Kernel).unwrap();
    eprintln!("windows are exact: {exact}; {speed:.0} instructions a second");
}

/// A guest counts in memory and is kicked; in how many of 50 epochs a write was not told.
fn writes_are_told(host: &Host, user: bool, log: DirtyLog) -> u32 {
    let mut guest = Guest::new();
    let counter = if user {
        layout::USER_DATA
    } else {
        layout::DATA
    };
    let emit = |a: &mut CodeAssembler| {
        let mut top = a.create_label();
        asm!(a; mov(rsi, counter); set_label(&mut top); inc(qword_ptr(rsi)); jmp(top));
        Ok(())
    };
    match user {
        true => guest.user_code(emit).expect("it assembles"),
        false => guest.code(emit).expect("it assembles"),
    }
    if user {
        guest.start_in_user();
    }
    let ram = ram_of(&guest);
    let tracking = Tracking {
        log,
        hold_writes: false,
    };
    let cpuid = CpuidTable::x86_64_v2();
    let mut vcpu = KvmVcpu::with_tracking(host, ram.clone(), &cpuid, tracking).expect("a VM");
    vcpu.load(&guest.state, Position::default()).expect("taken");
    ram.begin_epoch(None);
    let kick = vcpu.kick_handle();
    let mut missed = 0;
    for _ in 0..50 {
        let before = ram.page(GuestPhys(counter).gfn());
        std::thread::scope(|scope| {
            let kick = kick.clone();
            scope.spawn(move || {
                std::thread::sleep(Duration::from_millis(1));
                kick.kick();
            });
            assert_eq!(vcpu.run(None).expect("it runs"), Exit::Kicked);
        });
        let changed = ram.page(GuestPhys(counter).gfn()) != before;
        let told = ram
            .begin_epoch(None)
            .iter()
            .any(|gfn| gfn == GuestPhys(counter).gfn());
        missed += u32::from(changed && !told);
    }
    missed
}

#[test]
fn writes_of_the_guest_are_told_in_their_epoch() {
    let Some(host) = host() else { return };
    for log in [DirtyLog::Ring, DirtyLog::Bitmap, DirtyLog::ProtectedBitmap] {
        for user in [false, true] {
            assert_eq!(
                writes_are_told(&host, user, log),
                0,
                "{log:?}, user mode: {user}"
            );
        }
    }
}

/// Random registers, most of them possible: what KVM takes it gives back, what not is refused with a reason
/// and leaves the state as it was.
#[test]
fn random_states_come_back_or_are_refused() {
    let Some(host) = host() else { return };
    let guest = Guest::new();
    let mut vcpu = vcpu(&host, ram_of(&guest));
    let mut random = Rng::new(42);
    let (mut taken, mut refused) = (0, 0);
    for _ in 0..2_000 {
        let mut state = guest.state.clone();
        state.gpr = std::array::from_fn(|_| random.bits());
        state.fpu.xmm = std::array::from_fn(|_| u128::from(random.bits()) << 64 | 7);
        state.fpu.fcw = 0x37f & random.bits() as u16 | 0x40;
        state.cr2 = random.bits();
        state.dr = std::array::from_fn(|_| random.bits() >> 17);
        state.msrs.lstar = random.bits() >> 17;
        state.rflags ^= random.bits() & 0x8d5;
        match random.below(4) {
            0 => state.cr4 ^= 1 << random.below(24),
            1 => state.cr0 ^= 1 << random.below(32),
            2 => state.segs[random.below(6) as usize].attributes ^= 1 << random.below(16),
            _ => {}
        }
        let before = vcpu.save().expect("it stands at a boundary");
        match vcpu.load(&state, Position::default()) {
            Ok(()) => {
                let after = vcpu.save().expect("it stands at a boundary");
                assert_eq!(
                    (after.gpr, after.rflags, after.cr2),
                    (state.gpr, state.rflags, state.cr2)
                );
                assert_eq!(
                    (after.fpu.xmm, after.dr, after.msrs),
                    (state.fpu.xmm, state.dr, state.msrs)
                );
                taken += 1;
            }
            Err(VcpuError::InvalidState(why)) => {
                assert!(!why.is_empty());
                assert_eq!(vcpu.save().expect("it stands at a boundary"), before);
                refused += 1;
            }
            Err(other) => panic!("{other}"),
        }
    }
    assert!(
        taken > 500 && refused > 100,
        "{taken} taken, {refused} refused"
    );
}
