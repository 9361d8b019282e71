//! The KVM vCPU on /dev/kvm, kept within what a KVM that emulates kernel code can run.

use iced_x86::code_asm::*;
use kvm_recorder::kvm::{Host, KvmVcpu, probe};
use machine::cpuid::CpuidTable;
use machine::ram::Ram;
use machine::units::{GuestPhys, Port, Position};
use machine::vcpu::{Exit, Vcpu};
use simuboost_tests::guest::{Guest, asm, layout};
use simuboost_tests::oracle::kvm::host;
use simuboost_tests::oracle::vcpu::ram_of;
use std::sync::Arc;

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
    let exact = probe::window_is_exact(&host).unwrap();
    let (instructions, time) = probe::speed(&host).unwrap();
    eprintln!("windows are exact: {exact}; {instructions} instructions in {time:?}");
}
