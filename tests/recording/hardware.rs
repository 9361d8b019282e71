//! Bare-metal guests for hardware, one for each way in which an interrupt or a device can meet a guest.
//! They keep within what a KVM that emulates kernel code does as processors do: no INT, no SSE arithmetic,
//! rotations by one (such a KVM rotates by CL, which leaves another undefined flag), comparisons of strings
//! too short to be interrupted (it leaves the flags of the last comparison where processors leave those from
//! before the instruction), and no segment of the kernel's in user mode (its IRET does not make it null).

mod faults;
mod user;

use super::interrupts;
use super::programs::{DEVICE_WINDOW, self_modifying};
use super::{DMA_PORT, RANDOM_PORT};
use crate::guest::{Guest, asm, layout};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use machine::ram::Ram;
use machine::state::CpuState;
use machine::units::GuestPhys;

/// Clocks of the 8254 between two interrupts, about 0.6 ms.
const TIMER_COUNT: u16 = 700;
const REP: [u8; 1] = [0xf3];
const REPNE: [u8; 1] = [0xf2];

/// What a guest does all the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Loops in registers, without exits.
    Compute,
    /// Loops in which only memory changes.
    Memory,
    /// Interrupts off and on, with STI, POPF, MOV SS and HLT.
    Windows,
    /// IN, OUT, INS and OUTS.
    Ports,
    /// Devices that write RAM, on demand and on their own.
    Devices,
    /// Code that changes itself.
    SelfModifying,
    /// REP string instructions, most of them long enough to be interrupted in the middle.
    Strings,
    /// Page faults.
    Faults,
    /// Loops and faults in user mode.
    User,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Compute,
        Self::Memory,
        Self::Windows,
        Self::Ports,
        Self::Devices,
        Self::SelfModifying,
        Self::Strings,
        Self::Faults,
        Self::User,
    ];

    /// The guest: an endless loop under timer interrupts.
    pub fn guest(self) -> HardwareGuest {
        HardwareGuest(self.build().expect("the guest assembles"))
    }

    fn build(self) -> Result<Guest, IcedError> {
        let mut guest = Guest::new();
        interrupts::install_handler(&mut guest)?;
        for at in (layout::DATA..layout::DATA + 0xc000).step_by(8) {
            guest.poke_u64(at, at.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        }
        let mut a = CodeAssembler::new(64)?;
        interrupts::start_timer(&mut a, TIMER_COUNT)?;
        let mut top = a.create_label();
        asm!(a; sti(); set_label(&mut top));
        match self {
            Self::Compute => compute(&mut a)?,
            Self::Memory => memory(&mut a)?,
            Self::Windows => windows(&mut a)?,
            Self::Ports => ports(&mut a)?,
            Self::Devices => devices(&mut a)?,
            Self::SelfModifying => self_modifying(&mut a, 200)?,
            Self::Strings => strings(&mut a)?,
            Self::Faults => faults::emit(&mut guest, &mut a)?,
            Self::User => user::emit(&mut guest, &mut a)?,
        }
        asm!(a; jmp(top));
        let code = a.assemble(layout::CODE)?;
        assert!(code.len() as u64 <= interrupts::HANDLER - layout::CODE);
        guest.poke(layout::CODE, &code);
        Ok(guest)
    }
}

/// A guest for hardware.
pub struct HardwareGuest(Guest);

impl HardwareGuest {
    /// Puts the guest into RAM of [`layout::RAM_BYTES`]; returns the state to start in.
    pub fn load(&self, ram: &Ram) -> CpuState {
        ram.write(GuestPhys(0), self.0.ram())
            .expect("the guest fits its RAM");
        self.0.state.clone()
    }
}

type Emitted = Result<(), IcedError>;

fn compute(a: &mut CodeAssembler) -> Emitted {
    let (mut outer, mut inner) = (a.create_label(), a.create_label());
    asm!(a;
        mov(ebp, 50);
        set_label(&mut outer);
        mov(ecx, 300);
        set_label(&mut inner);
        imul_3(r9, r9, 1_103_515_245);
        add(r9, 12345);
        xor(r10, r9);
        rol(r10, 1);
        dec(ecx);
        jne(inner);
        dec(ebp);
        jne(outer));
    Ok(())
}

/// Registers are the same in every round.
fn memory(a: &mut CodeAssembler) -> Emitted {
    let (mut counting, mut calling, mut callee, mut over) = (
        a.create_label(),
        a.create_label(),
        a.create_label(),
        a.create_label(),
    );
    asm!(a;
        mov(rsi, layout::DATA);
        mov(dword_ptr(rsi), 5000);
        mov(dword_ptr(rsi + 0x1000), 2000);
        set_label(&mut counting);
        add(qword_ptr(rsi + 8), 3);
        dec(dword_ptr(rsi));
        jne(counting);
        jmp(over);
        set_label(&mut callee);
        dec(dword_ptr(rsi + 0x1000));
        ret();
        set_label(&mut over);
        nop();
        set_label(&mut calling);
        call(callee);
        cmp(dword_ptr(rsi + 0x1000), 0);
        jne(calling));
    Ok(())
}

fn windows(a: &mut CodeAssembler) -> Emitted {
    let (mut off, mut off_again) = (a.create_label(), a.create_label());
    asm!(a;
        cli();
        mov(edx, u32::from(RANDOM_PORT));
        in_(eax, dx);
        mov(ecx, 400);
        set_label(&mut off);
        add(r8, rax);
        ror(r8, 1);
        dec(ecx);
        jne(off);
        sti();
        add(r8, rcx);
        pushfq();
        cli();
        mov(ecx, 500);
        set_label(&mut off_again);
        inc(r9);
        dec(ecx);
        jne(off_again);
        popfq();
        inc(r10);
        mov(eax, ss);
        mov(ss, eax);
        inc(r11);
        cli();
        in_(al, 0x21);
        sti();
        hlt();
        inc(r13);
        sti();
        cli();
        sti();
        nop());
    Ok(())
}

fn ports(a: &mut CodeAssembler) -> Emitted {
    asm!(a;
        mov(edx, u32::from(RANDOM_PORT));
        in_(eax, dx);
        add(r13, rax);
        in_(al, dx);
        add(r13, rax);
        in_(ax, dx);
        mov(rdi, layout::DATA);
        mov(ecx, 9);
        db(&REP); insd();
        insb();
        mov(rsi, layout::DATA);
        mov(ecx, 5);
        mov(edx, 0x80);
        db(&REP); outsb();
        outsw();
        mov(eax, r13d);
        out(dx, eax));
    compute(a)
}

fn devices(a: &mut CodeAssembler) -> Emitted {
    let mut reading = a.create_label();
    asm!(a;
        mov(edx, u32::from(DMA_PORT));
        out(dx, eax);
        mov(rsi, DEVICE_WINDOW.start);
        mov(ecx, 60);
        set_label(&mut reading);
        add(r14, qword_ptr(rsi));
        xor(qword_ptr(rsi + 8), r14);
        add(rsi, 1040);
        dec(ecx);
        jne(reading));
    Ok(())
}

/// Fills, copies both ways, loads; comparisons and searches, which are short.
fn strings(a: &mut CodeAssembler) -> Emitted {
    asm!(a;
        mov(rdi, layout::DATA);
        mov(eax, r15d);
        inc(r15);
        mov(ecx, 6000);
        db(&REP); stosq();
        mov(rsi, layout::DATA);
        mov(rdi, layout::DATA + 0x1001);
        mov(ecx, 5000);
        db(&REP); movsb();
        mov(rsi, layout::DATA + 0x9000);
        mov(rdi, layout::DATA + 0xa000);
        mov(ecx, 3000);
        std();
        db(&REP); movsd();
        cld();
        mov(rsi, layout::DATA);
        mov(ecx, 2200);
        db(&REP); lodsb();
        add(r14, rax);
        mov(rsi, layout::DATA + 0x2001);
        mov(rdi, layout::DATA + 0x2001);
        mov(ecx, 900);
        db(&REP); cmpsb();
        mov(rdi, layout::DATA);
        mov(eax, -15);
        mov(ecx, 1000);
        db(&REPNE); scasd());
    Ok(())
}
