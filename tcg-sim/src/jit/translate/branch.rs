//! Transfers of control.

use super::native::uses_stack_segment;
use super::{Flow, Tail, Translator};
use crate::jit::asm::{Host, Mem};
use crate::jit::block::{MemoryAccess, SiteKind};
use crate::jit::layout::{disp, ibtc_disp};
use crate::jit::regs::{GUEST_RCX, T0, T1, number};
use iced_x86::{Code, Instruction, Mnemonic, OpKind};

/// Condition numbers of JE and JNE.
const EQUAL: u8 = 4;
const NOT_EQUAL: u8 = 5;

fn in_page(target: i64) -> bool {
    (0..4096).contains(&target)
}

/// Bytes of RCX that LOOP and JCXZ look at.
fn counter_bytes(code: Code) -> u8 {
    match code {
        Code::Loop_rel8_32_CX
        | Code::Loope_rel8_32_CX
        | Code::Loopne_rel8_32_CX
        | Code::Jcxz_rel8_32 => 2,
        Code::Loop_rel8_64_ECX
        | Code::Loope_rel8_64_ECX
        | Code::Loopne_rel8_64_ECX
        | Code::Jecxz_rel8_64
        | Code::Loop_rel8_32_ECX
        | Code::Loope_rel8_32_ECX
        | Code::Loopne_rel8_32_ECX
        | Code::Jecxz_rel8_32 => 4,
        _ => 8,
    }
}

impl Translator<'_> {
    /// Goes on at a page-relative address: linked within the page, looked up across pages, since
    /// which code is there depends on the page tables. `taken`: by a conditional branch.
    pub(super) fn emit_goto(&mut self, target: i64, taken: bool) {
        self.note_exit(taken);
        if self.one_step {
            let from = self.asm.jmp();
            let site = self.new_site(SiteKind::Goto {
                target,
                link: None,
                taken,
            });
            self.tails.push(Tail::Leave { from, site });
        } else if in_page(target) {
            let from = self.asm.jmp();
            let link = Some(self.request.host + from.0 as u64);
            let site = self.new_site(SiteKind::Goto {
                target,
                link,
                taken,
            });
            self.tails.push(Tail::Leave { from, site });
        } else {
            self.emit_goto_by_table(target);
        }
    }

    /// Goes on at a page-relative address through the branch cache.
    pub(super) fn emit_goto_by_table(&mut self, target: i64) {
        self.asm.load(T0, Mem::env(disp!(page_base)));
        match i32::try_from(target) {
            Ok(relative) => self.lea_sized(T0, Mem::base(T0, relative), self.compat),
            Err(_) => {
                self.asm.mov_imm(T1, target as u64);
                self.asm.lea(T0, Mem::sum(T0, T1, 0));
            }
        }
        self.emit_lookup(0);
    }

    /// Goes on at the guest-linear address in T0 through the indirect-branch cache.
    pub(super) fn emit_indirect(&mut self, undo_rsp: i32) {
        self.note_exit(false);
        self.emit_lookup(undo_rsp);
    }

    fn emit_lookup(&mut self, undo_rsp: i32) {
        let site = self.new_site(SiteKind::Indirect { undo_rsp });
        if self.one_step {
            let from = self.asm.jmp();
            self.tails.push(Tail::Leave { from, site });
            return;
        }
        let (tag, host) = ibtc_disp(self.class);
        self.asm.shrx(T1, T0, Host::RSP);
        self.asm.lea(T1, Mem::sum(T1, T0, 0));
        self.asm.pext(T1, T1, Mem::env(disp!(ibtc_mask)));
        self.asm.load(Host::RCX, Mem::table(tag, T1));
        self.asm.lea(Host::RCX, Mem::sum(Host::RCX, T0, 0));
        let hit = self.asm.jrcxz();
        let from = self.asm.jmp();
        self.tails.push(Tail::Leave { from, site });
        self.asm.bind_short(hit);
        self.asm.jmp_mem(Mem::table(host, T1));
    }

    /// Target of a direct near transfer, relative to the page base.
    pub(super) fn branch_target(&self, instruction: &Instruction) -> i64 {
        match self.compat {
            true => i64::from(instruction.near_branch32() as i32),
            false => instruction.near_branch64() as i64,
        }
    }

    pub(super) fn jump(&mut self, instruction: &Instruction) -> Flow {
        self.emit_goto(self.branch_target(instruction), false);
        Flow::End
    }

    pub(super) fn jump_indirect(&mut self, instruction: &Instruction) -> Flow {
        if instruction.op0_kind() == OpKind::Memory {
            let address = self.linear_address(instruction);
            let stack = uses_stack_segment(instruction);
            let access = MemoryAccess {
                bytes: self.word as u8,
                read: true,
                write: false,
                alignment: 0,
                parts: false,
                stack,
            };
            self.check(address, access);
            self.load_sized(T0, Mem::sum(address.register, T1, 0), self.word);
        } else {
            self.load_guest(T0, number(instruction.op0_register()));
            if self.compat {
                self.asm.mov32(T0, T0);
            }
        }
        self.emit_indirect(0);
        Flow::End
    }

    /// Jcc: leaves the block when taken.
    pub(super) fn condition(&mut self, instruction: &Instruction) -> Flow {
        let condition = instruction.condition_code() as u8 - 1;
        let target = self.branch_target(instruction);
        let last = usize::from(self.index) + 1 == self.total;
        let from = self.asm.jcc(condition);
        if last && in_page(target) && !self.one_step && !self.notes_branches() {
            // Nothing to give back: the jump itself becomes the link.
            let link = Some(self.request.host + from.0 as u64);
            let site = self.new_site(SiteKind::Goto {
                target,
                link,
                taken: true,
            });
            self.tails.push(Tail::Leave { from, site });
        } else {
            self.tails.push(Tail::SideExit {
                from,
                target,
                index: self.index,
            });
        }
        Flow::Next
    }

    /// LOOP, LOOPE, LOOPNE, JRCXZ, JECXZ.
    pub(super) fn count_branch(&mut self, instruction: &Instruction) -> Flow {
        let counter = counter_bytes(instruction.code());
        let counts = !matches!(
            instruction.mnemonic(),
            Mnemonic::Jrcxz | Mnemonic::Jecxz | Mnemonic::Jcxz
        );
        if counts {
            let decremented = Mem::base(GUEST_RCX, -1);
            match counter {
                2 => {
                    self.asm.lea32(Host::RCX, decremented);
                    self.asm.mov16(GUEST_RCX, Host::RCX);
                }
                4 => self.asm.lea32(GUEST_RCX, decremented),
                _ => self.asm.lea(GUEST_RCX, decremented),
            }
        }
        let wrong_flag = match instruction.mnemonic() {
            Mnemonic::Loope => Some(self.asm.jcc_short(NOT_EQUAL)),
            Mnemonic::Loopne => Some(self.asm.jcc_short(EQUAL)),
            _ => None,
        };
        match counter {
            2 => self.asm.movzx16(Host::RCX, GUEST_RCX),
            4 => self.asm.mov32(Host::RCX, GUEST_RCX),
            _ => self.asm.mov(Host::RCX, GUEST_RCX),
        }
        let zero = self.asm.jrcxz();
        let target = self.branch_target(instruction);
        if counts {
            self.side_exit(target);
            self.asm.bind_short(zero);
        } else {
            let over = self.asm.jmp_short();
            self.asm.bind_short(zero);
            self.side_exit(target);
            self.asm.bind_short(over);
        }
        if let Some(wrong_flag) = wrong_flag {
            self.asm.bind_short(wrong_flag);
        }
        Flow::Next
    }

    fn side_exit(&mut self, target: i64) {
        let from = self.asm.jmp();
        self.tails.push(Tail::SideExit {
            from,
            target,
            index: self.index,
        });
    }
}
