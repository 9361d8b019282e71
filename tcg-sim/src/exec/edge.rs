//! Transfers to addresses that are not canonical.

use super::engine::{Engine, Next};
use crate::jit::block::{Onward, Site};
use crate::sys::Fault;
use machine::state::Gpr;

impl Engine {
    /// An instruction that has done everything else leads to `rip`, which is not canonical.
    ///
    /// A branch faults itself, with the registers as they were before it. What a call pushed stays in
    /// memory (seen on an Intel processor, family 6 model 207, of direct and indirect ones; AMD looks at
    /// the target of an indirect one before, which the translation does then). What merely comes to
    /// the end of the lower half has retired: the fetch of the next instruction faults.
    pub(super) fn leave_canonical_space(&mut self, site: Site, rip: u64, undo_rsp: i32) -> Next {
        let block = self.soft.cache.block(site.block);
        let insn = block.insns[usize::from(site.index)];
        let counted = !block.key.mode.is_one_step();
        let core = &mut self.soft.env().core;
        let start = core.page_base.wrapping_add(u64::from(insn.offset));
        let falls_through = match insn.onward {
            Onward::Next => true,
            Onward::Away | Onward::Call => false,
            Onward::Branch | Onward::CountEcx | Onward::CountRcx => {
                start.wrapping_add(insn.length.into()) == rip
            }
        };
        if falls_through {
            return Next::Go(rip);
        }
        let released = match insn.onward {
            Onward::Call => 8,
            _ => i64::from(undo_rsp),
        };
        core.rsp = core.rsp.wrapping_add_signed(released);
        let mut registers = core.gprs();
        let counter = &mut registers[Gpr::Rcx as usize];
        *counter = match insn.onward {
            // The upper half that a 32-bit counter had is lost.
            Onward::CountEcx => u64::from((*counter as u32).wrapping_add(1)),
            Onward::CountRcx => counter.wrapping_add(1),
            _ => *counter,
        };
        core.set_gprs(&registers);
        self.cpu.rip = start;
        self.pay();
        self.soft
            .probed()
            .rewind_exit(site.block, usize::from(site.index));
        if counted {
            self.add_steps(-1);
        }
        Next::Left(self.deliver_fault(Fault::GP0))
    }
}
