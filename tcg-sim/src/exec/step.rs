//! Instructions that Rust executes, and instructions that run alone.

use super::engine::{Engine, Left, Next, PendingRead};
use super::fpu::{self, Image};
use crate::instrument::facts::Branch;
use crate::jit::block::Site;
use crate::jit::translate::{is_undefined, odd_segment};
use crate::mmu::{Access, AccessType};
use crate::sys::{self, Fault, Outcome};
use iced_x86::{Instruction, Mnemonic};
use machine::state::{CpuState, Gpr, Shadow, cr0, cr4, efer, rflags};
use machine::units::Port;
use machine::vcpu::{Exit, VcpuError};

/// The bits of DR6 that name breakpoints.
const DR6_BREAKPOINTS: u64 = 0xf;

/// What translations of addresses depend on beside CR3.
pub(super) fn paging_bits(cpu: &CpuState) -> [u64; 3] {
    [
        cpu.cr0 & (cr0::PG | cr0::PE | cr0::WP),
        cpu.cr4 & (cr4::PAE | cr4::PSE | cr4::PGE | cr4::SMEP | cr4::SMAP | cr4::LA57),
        cpu.msrs.efer & (efer::NXE | efer::LMA),
    ]
}

/// The state of the breakpoints that caches depend on.
pub(super) fn breakpoints(cpu: &CpuState) -> ([u64; 4], u64) {
    (cpu.dr, cpu.dr7)
}

impl Engine {
    pub(super) fn handle_execute(
        &mut self,
        site: Site,
        instruction: &Instruction,
        resume: u64,
    ) -> Result<Next, VcpuError> {
        if !self.alone {
            self.retired = false;
        }
        self.rewind(site);
        let block = self.soft.cache.block(site.block);
        let unused = block.insns.len() as i64 - i64::from(site.index);
        let alone = block.key.mode.is_one_step();
        if !alone && sys::debug::any_enabled(&self.cpu) {
            // Its accesses must be compared with the breakpoints.
            (self.step_alone, self.begun) = (true, true);
            return Ok(Next::Left(Left::Boundary));
        }
        self.soft.counters.count_executed(instruction.mnemonic());
        self.pull();
        self.soft.probe.begin(self.cpu.rip, self.cpu.cpl());
        let instruction = self.at_its_address(instruction);
        let outcome = match self.execute(&instruction) {
            Ok(outcome) => outcome,
            Err(fault) => {
                self.push();
                return Ok(Next::Left(self.deliver_fault(fault)));
            }
        };
        if outcome == Outcome::Next && !alone && self.may_resume(site) {
            self.rep_iterations = 0;
            self.push();
            self.soft.probed().retire(Branch::of(&instruction));
            let next = usize::from(site.index) + 1;
            self.soft.probed().resume(site.block, next);
            self.add_steps(unused);
            return Ok(Next::Resume(resume));
        }
        // Blocks never start with TF set.
        let traced = self.alone && self.traced;
        self.single_step = Some(sys::debug::single_steps(&instruction, traced, &self.cpu));
        self.finish(&instruction, outcome)
    }

    /// The instruction was decoded at its page offset.
    fn at_its_address(&self, instruction: &Instruction) -> Instruction {
        let mut moved = *instruction;
        let page = self.cpu.rip & !0xfff;
        moved.set_ip(self.cpu.rip);
        if moved.op0_kind() == iced_x86::OpKind::NearBranch16 {
            moved.set_near_branch16(moved.near_branch16().wrapping_add(page as u16));
        }
        if moved.is_ip_rel_memory_operand() {
            let displacement = moved.memory_displacement64().wrapping_add(page);
            let narrow = moved.memory_base() == iced_x86::Register::EIP;
            moved.set_memory_displacement64(if narrow {
                displacement & 0xffff_ffff
            } else {
                displacement
            });
        }
        moved
    }

    fn may_resume(&mut self, site: Site) -> bool {
        let block = self.soft.cache.block(site.block);
        let fresh = block.valid && !self.soft.code_changed && self.soft.ram_error.is_none();
        let window = self.window_requested && self.cpu.rflags & rflags::IF != 0;
        fresh && !window && self.cpu.shadow == Shadow::None && !self.stepping_needed()
    }

    fn execute(&mut self, instruction: &Instruction) -> Result<Outcome, Fault> {
        if is_undefined(instruction, self.soft.host.vendor) || self.mode.has_odd_code() {
            return Err(Fault::UD);
        }
        let class = sys::fpu::classify(instruction);
        if let Some(fault) = sys::fpu::mode_fault(class, self.cpu.cr0, self.cpu.cr4) {
            return Err(fault);
        }
        // The semantics of string instructions look at each operand in turn.
        if !instruction.is_string_instruction()
            && let Some(fault) = self.segment_fault(instruction)
        {
            if class.waits() && fpu::exception_waits() {
                return Err(Fault::plain(sys::vector::MF));
            }
            if instruction.mnemonic() == Mnemonic::Pop {
                self.check_pop(instruction)?;
            }
            return Err(fault);
        }
        if let Some(result) = self.execute_fpu(instruction) {
            result?;
            self.cpu.rip = self.instruction_address(instruction.next_ip());
            self.cpu.rflags &= !rflags::RF;
            return Ok(Outcome::Next);
        }
        let limit = self.rep_limit.min(self.iterations_to_target());
        (self.soft.code_stored, self.soft.stale) = (false, false);
        sys::execute(instruction, &mut self.cpu, &mut self.soft, limit)
    }

    /// POP reads the stack before it looks at where to.
    fn check_pop(&mut self, instruction: &Instruction) -> Result<(), Fault> {
        let va = self.instruction_address(self.cpu.gpr[Gpr::Rsp as usize]);
        let bytes = instruction.memory_size().size();
        if self.checks_alignment() && !va.is_multiple_of(bytes as u64) {
            return Err(Fault::AC);
        }
        let access = Access::at_cpl(AccessType::Read, self.mode.cpl());
        self.soft.pieces(&self.cpu, va, bytes, access).map(drop)
    }

    /// The fault of an instruction that accesses memory through an odd segment.
    pub(super) fn segment_fault(&self, instruction: &Instruction) -> Option<Fault> {
        let (segment, writes) = odd_segment(instruction, self.mode)?;
        sys::refusal(&self.cpu, segment, writes)
    }

    /// Accounts for what an instruction did and decides how the run goes on.
    fn finish(&mut self, instruction: &Instruction, outcome: Outcome) -> Result<Next, VcpuError> {
        match outcome {
            Outcome::RepPartial { done } => self.iterated(done),
            Outcome::PortRead { port, size } => {
                self.pending = Some(PendingRead {
                    instruction: *instruction,
                    port: Some((port, size)),
                    alone: self.alone,
                    held: self.watch_hits,
                });
                return Ok(exit(Exit::PortRead {
                    port: Port(port),
                    size,
                }));
            }
            Outcome::TimestampRead => {
                self.pending = Some(PendingRead {
                    instruction: *instruction,
                    port: None,
                    alone: self.alone,
                    held: self.watch_hits,
                });
                return Ok(exit(Exit::TimestampRead));
            }
            Outcome::Limit(what) => return Err(self.limit(what.into())),
            Outcome::PortWrite { retired: false, .. } => {
                self.soft.probed().iterate(1, None);
                self.iterated(1);
            }
            _ => {
                let taken = self.cpu.rip != instruction.next_ip();
                self.soft.probe.note_taken(taken);
                self.retire(Branch::of(instruction))
            }
        }
        if let Outcome::AddressSpace { .. } = outcome {
            self.soft.switch_space(self.cpu.cr3);
        }
        self.push();
        if matches!(outcome, Outcome::Mode | Outcome::AddressSpace { .. }) {
            self.mode_changed();
        }
        if let Outcome::PortWrite {
            port,
            size,
            value,
            retired,
        } = outcome
        {
            if self.alone {
                self.watch_hits |= sys::debug::port_hits(&self.cpu, port, size);
                self.collect_watched();
                // The handler is entered before the write is reported; neither sees the other.
                self.debug_trap(!retired);
            }
            return Ok(exit(Exit::PortWrite {
                port: Port(port),
                size,
                value,
            }));
        }
        if !self.alone && self.retired && self.single_step == Some(true) {
            // SYSRET that sets TF traps before the instruction it returns to.
            self.watch_hits = 0;
            return Ok(Next::Left(self.debug_trap(false)));
        }
        let quiet = matches!(outcome, Outcome::Mode | Outcome::AddressSpace { .. })
            && self.cpu.shadow == Shadow::None
            && !self.stepping_needed()
            && !self.alone
            && !self.window_requested
            && self.cpu.rflags & rflags::RF == 0;
        Ok(if quiet {
            Next::Go(self.cpu.rip)
        } else {
            Next::Left(Left::Boundary)
        })
    }

    /// A REP string instruction goes on at the next boundary. RF says so, as in hardware (SDM vol. 3,
    /// 17.3.1.1): an interrupt there pushes it, and no instruction breakpoint is hit there. So the
    /// saved registers alone, without a position, tell such a place from the start of the instruction.
    pub(super) fn iterated(&mut self, iterations: u64) {
        self.rep_iterations += iterations;
        self.cpu.rflags |= rflags::RF;
    }

    fn retire(&mut self, branch: Option<Branch>) {
        self.soft.probed().retire(branch);
        self.add_steps(1);
        self.rep_iterations = 0;
        self.retired = true;
    }

    /// After control registers, EFER, CPL or RFLAGS changed.
    pub(super) fn mode_changed(&mut self) {
        let bits = paging_bits(&self.cpu);
        if bits != self.paging_bits {
            self.paging_bits = bits;
            self.soft.flush_all();
        }
        self.breakpoints_changed();
        self.refresh_mode();
    }

    /// Drops what is cached of pages that breakpoints watch now.
    fn breakpoints_changed(&mut self) {
        let now = breakpoints(&self.cpu);
        if now == self.breakpoints {
            return;
        }
        self.breakpoints = now;
        for (page, code) in sys::debug::watched_pages(&self.cpu) {
            if code {
                self.soft.forget_code(page);
            } else {
                self.soft.flush_page(page);
            }
        }
    }

    /// Runs the instruction at `cpu.rip` alone: everything about it is looked at.
    pub(super) fn step_one(&mut self, rep_limit: u64) -> Result<Left, VcpuError> {
        self.soft.counters.single_steps += 1;
        self.step_alone = false;
        self.traced = self.cpu.rflags & rflags::TF != 0;
        if let Some(fault) = sys::debug::instruction_breakpoint(&self.cpu, self.soft.host.vendor) {
            return Ok(self.deliver_fault(fault));
        }
        self.cpu.shadow = Shadow::None;
        self.cpu.rflags &= !rflags::RF;
        let armed = self.cpu.dr7 & 0xff != 0;
        self.watch_hits = u64::from(std::mem::take(&mut self.cpu.held_breakpoints));
        (self.retired, self.single_step) = (false, None);
        self.soft.watched = armed.then(Vec::new);
        self.rep_limit = if self.traced || armed {
            1
        } else {
            rep_limit.max(1)
        };
        (self.alone, self.owed, self.probe) = (true, None, None);
        let iterations = self.rep_iterations;
        let left = self.run_alone();
        (self.alone, self.rep_limit) = (false, super::engine::REP_QUANTUM);
        self.collect_watched();
        let left = left?;
        let iterated = self.rep_iterations > iterations;
        if matches!(left, Left::Boundary) && (self.retired || iterated) {
            if self.cpu.shadow == Shadow::MovSs {
                self.cpu.held_breakpoints = (self.watch_hits & DR6_BREAKPOINTS) as u8;
            }
            return Ok(self.debug_trap(iterated));
        }
        Ok(left)
    }

    fn run_alone(&mut self) -> Result<Left, VcpuError> {
        let block = match self
            .soft
            .block_for(&self.cpu, self.cpu.rip, self.mode.one_step(), 1)
        {
            Ok(block) => block,
            Err(fault) => return Ok(self.deliver_fault(fault)),
        };
        self.soft.probe.begin(self.cpu.rip, self.cpu.cpl());
        let page_base = self.cpu.rip & !0xfff;
        let near = self.soft.cache.block(block).near;
        self.env().core.page_base = page_base;
        self.env().core.resume = near;
        loop {
            self.enter();
            match self.handle_leave()? {
                Next::Resume(host) => self.env().core.resume = host,
                Next::Go(rip) => {
                    if let Some(left) = self.conclude_probe() {
                        return Ok(left);
                    }
                    self.pay();
                    self.cpu.rip = rip;
                    if !self.retired {
                        let facts = self.soft.cache.block(block).facts.as_ref();
                        let branch = facts.and_then(|f| f.facts.insns[0].branch);
                        self.retire(branch);
                    }
                    return Ok(Left::Boundary);
                }
                Next::Left(left) => return Ok(left),
            }
        }
    }

    pub(super) fn collect_watched(&mut self) {
        for (va, bytes, write) in self.soft.watched.take().unwrap_or_default() {
            self.watch_hits |= sys::debug::data_hits(&self.cpu, va, bytes, write);
        }
    }

    /// Delivers #DB after an instruction (or an iteration) if TF or a data breakpoint asks for it.
    /// It belongs to the step of the instruction, so that no position lies between the two.
    pub(super) fn debug_trap(&mut self, mid_rep: bool) -> Left {
        let single_step = self.single_step.take().unwrap_or(self.traced);
        let Some(event) = sys::debug::trap(&self.cpu, self.watch_hits, single_step, mid_rep) else {
            return Left::Boundary;
        };
        // IRET may have set RF; the state block does not hold it.
        let resume_flag = self.cpu.rflags & rflags::RF;
        self.pull();
        self.cpu.rflags |= resume_flag;
        if mid_rep {
            self.add_steps(1);
        }
        if self.deliver(event) {
            Left::Boundary
        } else {
            Left::Exit(Exit::Shutdown)
        }
    }

    /// The debug trap of an instruction whose read is complete. A triple fault shows at the boundary.
    pub(super) fn trap_after_read(&mut self, read: &PendingRead, mid_rep: bool) {
        let hits = |(port, size)| sys::debug::port_hits(&self.cpu, port, size);
        self.watch_hits = read.held | read.port.map_or(0, hits);
        self.collect_watched();
        self.single_step = None;
        self.debug_trap(mid_rep);
    }

    /// x87 and SSE state in memory. `None`: not such an instruction.
    fn execute_fpu(&mut self, instruction: &Instruction) -> Option<Result<(), Fault>> {
        use Mnemonic as M;
        let short =
            instruction.memory_size().size() == 14 || instruction.memory_size().size() == 94;
        Some(match instruction.mnemonic() {
            M::Fnstenv | M::Fstenv => self.fpu_image(instruction, Image::StoreEnvironment, short),
            M::Fldenv => self.fpu_image(instruction, Image::LoadEnvironment, short),
            M::Fnsave | M::Fsave => self.fpu_image(instruction, Image::Save, short),
            M::Frstor => self.fpu_image(instruction, Image::Restore, short),
            M::Fninit | M::Finit => {
                fpu::initialise(&mut self.env().core);
                Ok(())
            }
            M::Fnclex | M::Fclex => {
                fpu::clear_exceptions(&mut self.env().core);
                Ok(())
            }
            M::Fxsave => self.fxsave(instruction, false),
            M::Fxsave64 => self.fxsave(instruction, true),
            M::Fxrstor => self.fxrstor(instruction, false),
            M::Fxrstor64 => self.fxrstor(instruction, true),
            _ => return None,
        })
    }
}

fn exit(exit: Exit) -> Next {
    Next::Left(Left::Exit(exit))
}
