//! The inline part of stopping at a state.

use super::Translator;
use crate::jit::asm::{Host, Mem};
use crate::jit::block::SiteKind;
use crate::jit::layout::disp;
use crate::jit::regs::{Home, T0, home};

/// The registers that differ most often come first: counters, pointers, results, the stack.
const ORDER: [usize; 16] = [1, 0, 6, 7, 2, 4, 3, 5, 8, 9, 12, 13, 10, 11, 14, 15];

impl Translator<'_> {
    /// Leaves if the page and all general-purpose registers are those that are looked for. Before the
    /// block's steps are taken from the budget.
    pub(super) fn emit_stop_check(&mut self) {
        let mut differs = Vec::with_capacity(ORDER.len() + 1);
        self.asm.load(T0, Mem::env(disp!(page_base)));
        self.asm.load(Host::RCX, Mem::env(disp!(stop_page)));
        self.asm.lea(Host::RCX, Mem::sum(Host::RCX, T0, 0));
        differs.push(self.unless_zero());
        for register in ORDER {
            let wanted = disp!(stop_gpr) + 8 * register as i32;
            self.asm.load(Host::RCX, Mem::env(wanted));
            let host = match home(register) {
                Home::Register(host) => host,
                Home::Block(at) => {
                    self.asm.load(T0, Mem::env(at));
                    T0
                }
            };
            self.asm.lea(Host::RCX, Mem::sum(Host::RCX, host, 0));
            differs.push(self.unless_zero());
        }
        let from = self.asm.jmp();
        for patch in differs {
            self.asm.bind(patch);
        }
        let resume = self.host_here();
        let site = self.new_site(SiteKind::Stop { resume });
        self.tails.push(super::Tail::Leave { from, site });
    }

    /// A jump that is taken unless host RCX is zero.
    fn unless_zero(&mut self) -> crate::jit::asm::Patch {
        let zero = self.asm.jrcxz();
        let patch = self.asm.jmp();
        self.asm.bind_short(zero);
        patch
    }
}
