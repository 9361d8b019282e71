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

/// A guest that `emit` makes, run to its first exit.
fn first_exit(
    host: &Host,
    emit: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>,
) -> Result<Exit, VcpuError> {
    let mut guest = Guest::new();
    guest.code(emit).expect("it assembles");
    // No table of interrupts: each fault becomes a triple one.
    guest.state.idtr.limit = 0;
    let mut vcpu = vcpu(host, ram_of(&guest));
    vcpu.load(&guest.state, Position::default()).expect("taken");
    let exit = vcpu.run(None)?;
    match exit {
        Exit::PortWrite { .. } => vcpu.run(None),
        other => Ok(other),
    }
}

#[test]
fn a_guest_that_kvm_cannot_run_is_told_by_rip_and_bytes() {
    let Some(host) = host() else { return };
    // CMPXCHG16B is what a KVM that emulates kernel code stumbles over; processors execute it, and meet what
    // follows.
    let unable = first_exit(&host, |a| {
        asm!(a; mov(esi, layout::DATA as u32); db(&[0xf0, 0x48, 0x0f, 0xc7, 0x0e]); ud2());
        Ok(())
    });
    let Err(VcpuError::Unable { what, rip, bytes }) = unable else {
        panic!("{unable:?}");
    };
    eprintln!("{what}: {rip:#x} {bytes:02x?}");
    let offset = (rip - layout::CODE) as usize;
    let code = [0xf0, 0x48, 0x0f, 0xc7, 0x0e, 0x0f, 0x0b];
    assert!(offset >= 5 && bytes.starts_with(&code[offset - 5..offset - 3]));
    let message = VcpuError::Unable { what, rip, bytes }.to_string();
    assert!(message.contains("RIP 0x4000"), "{message}");
}

#[test]
fn a_triple_fault_at_the_start_is_an_error_and_later_an_end() {
    let Some(host) = host() else { return };
    let at_once = first_exit(&host, |a| a.ud2());
    let Err(VcpuError::Unable { what, rip, bytes }) = at_once else {
        panic!("{at_once:?}");
    };
    assert!(what.contains("triple fault"), "{what}");
    assert_eq!((rip, &bytes[..2]), (layout::CODE, &[0x0f, 0x0b][..]));
    let later = first_exit(&host, |a| {
        asm!(a; out(0x80, al); ud2());
        Ok(())
    });
    assert_eq!(later.expect("it was seen"), Exit::Shutdown);
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

/// Random bytes in all of RAM, page tables and descriptors included, and random places to run from: whatever
/// the guest does, the vCPU comes out with an exit or a reason, and gives and takes state.
#[test]
fn random_memory_ends_in_an_exit_or_a_reason() {
    let Some(host) = host() else { return };
    let guest = Guest::new();
    let ram = ram_of(&guest);
    let mut random = Rng::new(77);
    let (mut exits, mut reasons) = (0, 0);
    for round in 0..60 {
        let mut vcpu = vcpu(&host, ram.clone());
        let mut noise = || -> Vec<u8> { (0..4096).map(|_| random.bits() as u8).collect() };
        ram.write(GuestPhys(0), guest.ram()).expect("it fits");
        // Code and data always, and now and then what the processor reads by itself.
        let mut frames = vec![layout::CODE, layout::DATA, layout::KERNEL_STACK - 4096];
        frames.extend(
            [(2, layout::IDT), (3, layout::GDT), (5, layout::PML4)]
                .iter()
                .filter_map(|(every, at)| (round % every == 1).then_some(*at)),
        );
        for at in frames {
            ram.write(GuestPhys(at), &noise()).expect("it fits");
        }
        let mut state = guest.state.clone();
        state.gpr = std::array::from_fn(|_| random.bits() >> random.below(60));
        state.rip = layout::CODE + random.below(4000);
        vcpu.load(&state, Position::default())
            .expect("a possible state");
        let kick = vcpu.kick_handle();
        for _ in 0..50 {
            let exit = std::thread::scope(|scope| {
                let (done, waits) = std::sync::mpsc::channel::<()>();
                let kick = kick.clone();
                scope.spawn(move || {
                    if waits.recv_timeout(Duration::from_millis(5)).is_err() {
                        kick.kick();
                    }
                });
                let exit = vcpu.run(None);
                drop(done);
                exit
            });
            match exit {
                Ok(Exit::PortRead { .. } | Exit::MmioRead { .. } | Exit::TimestampRead) => {
                    vcpu.complete_read(random.bits()).expect("a read waits");
                }
                Ok(Exit::Shutdown | Exit::Halt) => break,
                Ok(_) => exits += 1,
                Err(error) => {
                    assert!(!error.to_string().is_empty());
                    reasons += 1;
                    break;
                }
            }
            if vcpu.is_settled().expect("it can be asked") {
                let state = vcpu.save().expect("it stands at a boundary");
                vcpu.load(&state, Position::default())
                    .expect("a state of its own");
                assert_eq!(vcpu.save().expect("it stands at a boundary"), state);
            }
        }
    }
    eprintln!("{exits} exits, {reasons} reasons");
    assert!(exits + reasons > 60, "{exits} exits, {reasons} reasons");
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
