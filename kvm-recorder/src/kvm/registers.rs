//! Registers between KVM's form and ours. What writes them is for whoever runs a vCPU in another way, too.

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};
use machine::state::{CpuState, DescriptorTable, Seg, Segment};

/// The base of the local APIC with its enable bit clear: the guest has none, and KVM shows in CPUID
/// whether the bit is set.
const NO_APIC: u64 = 0xfee0_0000;

/// DPL in [`Segment::attributes`].
const DPL: u16 = 3 << 5;

/// General registers, RIP and RFLAGS.
pub fn to_regs(state: &CpuState) -> kvm_regs {
    let [
        rax,
        rcx,
        rdx,
        rbx,
        rsp,
        rbp,
        rsi,
        rdi,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
    ] = state.gpr;
    kvm_regs {
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rsp,
        rbp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rip: state.rip,
        rflags: state.rflags,
    }
}

pub(super) fn from_regs(state: &mut CpuState, regs: &kvm_regs) {
    let r = regs;
    state.gpr = [
        r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11, r.r12,
        r.r13, r.r14, r.r15,
    ];
    (state.rip, state.rflags) = (r.rip, r.rflags);
}

/// Everything in `sregs` but the bitmap of pending interrupts, of which there are none.
pub fn to_sregs(state: &CpuState) -> kvm_sregs {
    let [es, cs, ss, ds, fs, gs] = state.segs.map(|segment| to_segment(&segment));
    kvm_sregs {
        cs,
        ds,
        es,
        fs,
        gs,
        ss,
        tr: to_segment(&state.tr),
        ldt: to_segment(&state.ldtr),
        gdt: to_table(&state.gdtr),
        idt: to_table(&state.idtr),
        cr0: state.cr0,
        cr2: state.cr2,
        cr3: state.cr3,
        cr4: state.cr4,
        cr8: state.cr8,
        efer: state.msrs.efer,
        apic_base: NO_APIC,
        interrupt_bitmap: [0; 4],
    }
}

pub(super) fn from_sregs(state: &mut CpuState, sregs: &kvm_sregs) {
    let s = sregs;
    for (index, segment) in [
        (Seg::Es, &s.es),
        (Seg::Cs, &s.cs),
        (Seg::Ss, &s.ss),
        (Seg::Ds, &s.ds),
        (Seg::Fs, &s.fs),
        (Seg::Gs, &s.gs),
    ] {
        state.segs[index as usize] = from_segment(segment);
    }
    (state.ldtr, state.tr) = (from_segment(&s.ldt), from_segment(&s.tr));
    (state.gdtr, state.idtr) = (from_table(&s.gdt), from_table(&s.idt));
    (state.cr0, state.cr2, state.cr3) = (s.cr0, s.cr2, s.cr3);
    (state.cr4, state.cr8, state.msrs.efer) = (s.cr4, s.cr8, s.efer);
    settle(state);
}

/// Gives hidden parts of unusable segments, which processors and hypervisors keep differently and no
/// guest can see, one value: zero, but for the bases of FS and GS, which are MSRs, and the privilege
/// level in SS, which is the processor's.
pub(super) fn settle(state: &mut CpuState) {
    let code_64 = state.segs[Seg::Cs as usize].long_mode();
    let CpuState { segs, ldtr, tr, .. } = state;
    // KVM's emulator gives a null SS, which 64-bit code may have, a descriptor of its own making.
    let ss = &mut segs[Seg::Ss as usize];
    if code_64 && ss.selector & !3 == 0 {
        ss.attributes &= DPL;
    }
    for (index, segment) in segs.iter_mut().enumerate() {
        if segment.present() {
            continue;
        }
        segment.limit = 0;
        segment.attributes &= if index == Seg::Ss as usize { DPL } else { 0 };
        if index != Seg::Fs as usize && index != Seg::Gs as usize {
            segment.base = 0;
        }
    }
    for segment in [ldtr, tr] {
        if !segment.present() {
            *segment = Segment {
                selector: segment.selector,
                ..Segment::default()
            };
        }
    }
}

fn to_segment(segment: &Segment) -> kvm_segment {
    let bit = |n: u16| (segment.attributes >> n & 1) as u8;
    kvm_segment {
        base: segment.base,
        limit: segment.limit,
        selector: segment.selector,
        type_: segment.kind(),
        present: bit(7),
        dpl: segment.dpl(),
        db: bit(14),
        s: bit(4),
        l: bit(13),
        g: bit(15),
        avl: bit(12),
        unusable: u8::from(!segment.present()),
        padding: 0,
    }
}

fn from_segment(segment: &kvm_segment) -> Segment {
    let s = segment;
    let bit = |value: u8, n: u16| u16::from(value & 1) << n;
    let usable = s.unusable == 0 && s.present != 0;
    Segment {
        selector: s.selector,
        attributes: u16::from(s.type_ & 15)
            | bit(s.s, 4)
            | u16::from(s.dpl & 3) << 5
            | bit(u8::from(usable), 7)
            | bit(s.avl, 12)
            | bit(s.l, 13)
            | bit(s.db, 14)
            | bit(s.g, 15),
        limit: s.limit,
        base: s.base,
    }
}

fn to_table(table: &DescriptorTable) -> kvm_dtable {
    kvm_dtable {
        base: table.base,
        limit: table.limit,
        padding: [0; 3],
    }
}

fn from_table(table: &kvm_dtable) -> DescriptorTable {
    DescriptorTable {
        base: table.base,
        limit: table.limit,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_register_comes_back() {
        let mut state = CpuState::long_mode(0x1234, 0x8000, 0x2000);
        for (n, register) in (1..).zip(&mut state.gpr) {
            *register = n << 40 | n;
        }
        for (n, segment) in (1..).zip(&mut state.segs) {
            segment.selector = 8 * n;
            segment.limit = u32::from(n) << 12 | 0xfff;
        }
        state.segs[Seg::Fs as usize].base = 0x7fff_1234_5678;
        state.segs[Seg::Gs as usize].base = 0xffff_8000_0000_0000;
        state.gdtr = DescriptorTable {
            base: 0x1000,
            limit: 0x7f,
        };
        (state.cr2, state.cr8) = (0xdead_beef, 5);
        let mut back = state.clone();
        (back.gpr, back.rip, back.segs) = ([0; 16], 0, [Segment::default(); 6]);
        (back.cr0, back.cr2, back.cr3, back.cr4, back.cr8) = (0, 0, 0, 0, 0);
        from_regs(&mut back, &to_regs(&state));
        from_sregs(&mut back, &to_sregs(&state));
        settle(&mut state);
        assert_eq!(back, state);
    }

    #[test]
    fn a_null_stack_segment_is_unusable_in_64_bit_code() {
        let mut state = CpuState::long_mode(0, 0, 0);
        let made_up = Segment {
            selector: 0,
            attributes: 0xc093,
            limit: 0xfff,
            base: 0,
        };
        state.segs[Seg::Ss as usize] = made_up;
        settle(&mut state);
        assert_eq!(state.segs[Seg::Ss as usize], Segment::default());
        state.segs[Seg::Cs as usize].attributes = 0xc09b;
        state.segs[Seg::Ss as usize] = made_up;
        settle(&mut state);
        assert_eq!(state.segs[Seg::Ss as usize], made_up);
    }

    #[test]
    fn unusable_segments_keep_what_a_guest_can_tell() {
        let mut state = CpuState::long_mode(0, 0, 0);
        let unusable = Segment {
            selector: 3,
            attributes: 0x0073,
            limit: 5,
            base: 7,
        };
        state.segs = [unusable; 6];
        settle(&mut state);
        let [es, _, ss, _, fs, _] = state.segs;
        assert_eq!(
            (es.selector, es.attributes, es.limit, es.base),
            (3, 0, 0, 0)
        );
        assert_eq!((ss.attributes, ss.base), (0x60, 0));
        assert_eq!((fs.attributes, fs.base), (0, 7));
        assert_eq!(state.cpl(), 3);
    }
}
