//! The engine: a vCPU that translates.

use super::access::Owed;
use super::arrive::Search;
use super::cache::CodeCache;
use super::counters::EngineCounters;
use super::faulting::Probe;
use super::host::HostCpu;
use super::soft::Soft;
use super::traps;
use crate::jit::block::{BlockId, Site, SiteKind};
use crate::jit::code::TRAP_SITE;
use crate::jit::layout::Env;
use crate::jit::mode::{Mode, TLB_CLASSES};
use crate::mmu::is_canonical;
use crate::sys::{self, Event, Fault, vector};
use iced_x86::{DecoderOptions, Instruction};
use machine::cpuid::{CpuidTable, Maker};
use machine::ram::{Ram, RamError};
use machine::state::{Activity, CpuState, Seg, Shadow, cr0, rflags};
use machine::units::{GuestPhys, Position, Steps};
use machine::vcpu::{Exit, Kick, VcpuError};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Steps between two looks at whether the run is to be interrupted.
const QUANTUM: u64 = 1 << 18;
/// REP iterations between two looks.
pub(super) const REP_QUANTUM: u64 = 1 << 16;
/// Most instructions of a block.
pub(super) const FULL: u8 = crate::jit::translate::MAX_INSNS as u8;

/// How an engine works, beside what the guest is.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Bytes of code memory; when it is full, all translations are dropped.
    pub code_bytes: usize,
    /// One instruction a block, each looked up anew, every memory access checked in Rust: slow, and
    /// an independent way to the same states.
    pub one_instruction_blocks: bool,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            // Full, with what is kept of each block, it takes three times that of the host's memory.
            code_bytes: 48 << 20,
            one_instruction_blocks: false,
        }
    }
}

/// What waits for [`Vcpu::complete_read`].
#[derive(Clone, Copy, Debug)]
pub(super) struct PendingRead {
    pub(super) instruction: Instruction,
    /// The port and the bytes of a port read; none for the time stamp.
    pub(super) port: Option<(u16, u8)>,
    /// It runs alone: a debug trap may follow.
    pub(super) alone: bool,
    /// Data breakpoints hit so far, those that a shadow held back before it included.
    pub(super) held: u64,
}

/// What a stay in translated code ended with.
pub(super) enum Left {
    /// At the boundary `cpu.rip`.
    Boundary,
    /// The vCPU contract has something to report.
    Exit(Exit),
}

pub(super) struct KickFlag(AtomicBool);

impl Kick for KickFlag {
    fn kick(&self) {
        self.0.store(true, Ordering::Release);
    }
}

/// A vCPU that translates x86-64 to x86-64.
pub struct Engine {
    /// At a boundary: `rip`, `rflags` outside OSZAPC/IF/DF, and everything but the general-purpose
    /// registers, arithmetic flags and FPU, which live in the state block between `enter` and `leave`.
    pub(super) cpu: CpuState,
    pub(super) soft: Soft,
    pub(super) mode: Mode,
    /// The mode that last used the branch cache of each class.
    table_modes: [Mode; TLB_CLASSES],
    /// Steps at which the budget in the state block is zero.
    pub(super) deadline: u64,
    pub(super) rep_iterations: u64,
    pub(super) pending: Option<PendingRead>,
    pub(super) window_requested: bool,
    /// The next instruction must run alone: it touches memory that needs care.
    pub(super) step_alone: bool,
    /// The instruction at this boundary was begun: its fetch or access has set accessed and dirty
    /// bits. Nothing asynchronous may come before it, or those bits would betray what was cached.
    pub(super) begun: bool,
    /// The position at which this stay began, if MOV SS or POP SS came before it.
    pub(super) behind_mov_ss: Option<Position>,
    /// A store in the bounce buffer that the finished instruction owes to memory.
    pub(super) owed: Option<Owed>,
    /// An x87 store whose access cannot be made is executing.
    pub(super) probe: Option<Probe>,
    /// Set when an instruction retires; how a single step tells that from a fault.
    pub(super) retired: bool,
    /// The instruction that executes runs alone.
    pub(super) alone: bool,
    /// Most REP iterations of one call into the semantics.
    pub(super) rep_limit: u64,
    /// TF was set when the instruction that runs alone began.
    pub(super) traced: bool,
    /// What the semantics say about a single-step trap after an instruction that Rust executed.
    pub(super) single_step: Option<bool>,
    /// What translations of addresses depend on beside CR3.
    pub(super) paging_bits: [u64; 3],
    /// DR0 to DR3 and DR7, as far as caches depend on them: code in the page of an instruction
    /// breakpoint runs alone, pages with data breakpoints are not cached.
    pub(super) breakpoints: ([u64; 4], u64),
    /// Data breakpoints hit by the executing instruction.
    pub(super) watch_hits: u64,
    pub(super) options: EngineOptions,
    /// The state that is looked for.
    pub(super) search: Option<Search>,
    pub(super) kick: Arc<KickFlag>,
}

impl Engine {
    /// A vCPU over `ram`, in the default (not runnable) state at position 0.
    ///
    /// # Errors
    /// [`VcpuError::Host`] if the host gives no code memory; [`VcpuError::Protocol`] if its CPU lacks
    /// BMI2, which translated code needs.
    pub fn new(
        ram: Arc<Ram>,
        cpuid: CpuidTable,
        options: EngineOptions,
    ) -> Result<Self, VcpuError> {
        if !std::arch::is_x86_feature_detected!("bmi2") {
            return Err(VcpuError::Protocol("the engine needs a host CPU with BMI2"));
        }
        let host = HostCpu::of(vendor_of(&cpuid));
        let decoder_options = if host.vendor == Maker::Amd {
            DecoderOptions::AMD
        } else {
            DecoderOptions::NONE
        };
        let cache =
            CodeCache::new(options.code_bytes, decoder_options, host).map_err(|source| {
                VcpuError::Host {
                    operation: "mapping code memory",
                    source,
                }
            })?;
        let cpu = CpuState::default();
        Ok(Self {
            mode: Mode::of(&cpu),
            table_modes: [Mode::of(&cpu); TLB_CLASSES],
            cpu,
            soft: Soft::new(ram, cpuid, cache, host),
            deadline: 0,
            rep_iterations: 0,
            pending: None,
            window_requested: false,
            step_alone: false,
            begun: false,
            behind_mov_ss: None,
            owed: None,
            probe: None,
            retired: false,
            alone: false,
            rep_limit: REP_QUANTUM,
            traced: false,
            single_step: None,
            paging_bits: [0; 3],
            breakpoints: ([0; 4], 0),
            watch_hits: 0,
            options,
            search: None,
            kick: Arc::new(KickFlag(AtomicBool::new(false))),
        })
    }

    /// What this engine did so far.
    pub fn counters(&self) -> EngineCounters {
        let mut counters = self.soft.counters.clone();
        counters.translated = self.soft.cache.translated;
        counters.blocks = self.soft.cache.made;
        counters.cache_flushes = self.soft.cache.flushes;
        counters
    }

    /// The translated code, so that tests see what it depends on.
    #[doc(hidden)]
    pub fn translated_code(&self) -> &[u8] {
        self.soft.cache.code.emitted()
    }

    /// Drops every translation and cached address, which the guest cannot notice (E7).
    pub fn drop_caches(&mut self) {
        self.soft.reset();
    }

    pub(super) fn env(&mut self) -> &mut Env {
        self.soft.env()
    }

    pub(super) fn steps(&mut self) -> u64 {
        let budget = self.env().core.budget;
        self.deadline.wrapping_sub(budget as u64)
    }

    /// Hands out `budget` steps (below 2^32) from now on.
    pub(super) fn set_budget(&mut self, budget: u64) {
        self.deadline = self.steps().wrapping_add(budget);
        self.env().core.budget = budget as i64;
    }

    pub(super) fn add_steps(&mut self, steps: i64) {
        self.env().core.budget -= steps;
    }

    /// Copies registers and flags out of the state block.
    pub(super) fn pull(&mut self) {
        let core = &self.soft.env().core;
        self.cpu.gpr = core.gprs();
        self.cpu.rflags = core.rflags();
        self.cpu.segs[Seg::Gs as usize].base = core.gs_base;
        self.cpu.msrs.kernel_gs_base = core.kernel_gs_base;
    }

    /// Copies registers, flags and segment bases into the state block.
    pub(super) fn push(&mut self) {
        let cpu = &self.cpu;
        let core = &mut self.soft.env().core;
        core.set_gprs(&cpu.gpr);
        core.flags = (cpu.rflags & 0xd5) << 8 | cpu.rflags >> 11 & 1;
        core.interrupt_flag = cpu.rflags & rflags::IF;
        core.direction_flag = cpu.rflags & rflags::DF;
        core.system_flags = cpu.rflags & !(rflags::OSZAPC | rflags::IF | rflags::DF | rflags::RF);
        core.fs_base = cpu.segs[4].base;
        core.gs_base = cpu.segs[5].base;
        core.code_selector = u64::from(cpu.segs[1].selector);
        core.kernel_gs_base = cpu.msrs.kernel_gs_base;
    }

    /// Whether instructions must run one at a time for what the guest asked for.
    pub(super) fn stepping_needed(&self) -> bool {
        let alignment_checked =
            self.cpu.cr0 & cr0::AM != 0 && self.cpu.rflags & rflags::AC != 0 && self.cpu.cpl() == 3;
        self.options.one_instruction_blocks
            || self.step_alone
            || self.cpu.rflags & rflags::TF != 0
            || self.cpu.held_breakpoints != 0
            || alignment_checked
            || sys::debug::watches_code(&self.cpu, self.cpu.rip)
            // Has no tables of its own.
            || self.mode.is_compat() && self.mode.cpl() != 3
    }

    /// After anything that may have changed mode bits or the address space.
    pub(super) fn refresh_mode(&mut self) {
        let mode = Mode::of(&self.cpu);
        if mode != self.mode {
            // Cached branch targets are translations for the mode that last used their table.
            let last = &mut self.table_modes[mode.class() as usize];
            if std::mem::replace(last, mode) != mode {
                self.soft.flush_branches();
            }
            self.mode = mode;
        }
    }

    /// Delivers an event at `cpu.rip`; the registers are in `cpu`. True if the guest still runs.
    pub(super) fn deliver(&mut self, event: Event) -> bool {
        self.rep_iterations = 0;
        self.soft.counters.events += 1;
        self.soft.probe.begin(self.cpu.rip, self.cpu.cpl());
        let delivered = sys::deliver(&mut self.cpu, &mut self.soft, event);
        if let Ok(delivered) = &delivered {
            self.soft.probed().deliver(&event, delivered);
        }
        self.cpu.shadow = Shadow::None;
        // A fault of the next instruction comes in their place.
        self.cpu.held_breakpoints = 0;
        self.push();
        self.refresh_mode();
        delivered.is_ok()
    }

    /// Delivers the fault of the instruction at `cpu.rip`; takes one step.
    pub(super) fn deliver_fault(&mut self, fault: Fault) -> Left {
        self.pull();
        self.add_steps(1);
        if let (Some(remembered), Some(address)) = (&mut self.soft.remembered, fault.cr2) {
            remembered.delivered(self.cpu.rip, address);
        }
        if self.deliver(Event::fault(fault)) {
            Left::Boundary
        } else {
            Left::Exit(Exit::Shutdown)
        }
    }

    /// What must be reported at this boundary before anything runs.
    fn boundary(&mut self, until: Option<Position>) -> Result<Option<Exit>, VcpuError> {
        if let Some(source) = self.soft.ram_error.take() {
            let address = match &source {
                RamError::Load { gfn, .. } => gfn.base(),
                RamError::OutOfRange { start, .. } => *start,
                RamError::Size(_) | RamError::Map { .. } => GuestPhys(0),
            };
            return Err(VcpuError::PageLoad {
                address,
                source: Box::new(source),
            });
        }
        if let Some(source) = self.soft.probe.failure() {
            let operation = "keeping the memory trace";
            return Err(VcpuError::Host { operation, source });
        }
        if self.cpu.activity == Activity::Shutdown {
            return Ok(Some(Exit::Shutdown));
        }
        if self.has_arrived() || until.is_some_and(|until| self.here() >= until) {
            return Ok(Some(Exit::Reached));
        }
        if self.window_requested && self.window_open() {
            self.window_requested = false;
            return Ok(Some(Exit::InterruptWindow));
        }
        if self.cpu.activity == Activity::Halted {
            return Ok(Some(Exit::Halt));
        }
        if !std::mem::take(&mut self.begun) && self.kick.0.swap(false, Ordering::AcqRel) {
            return Ok(Some(Exit::Kicked));
        }
        Ok(None)
    }

    pub(super) fn window_open(&mut self) -> bool {
        self.soft.env().core.interrupt_flag != 0 && self.cpu.shadow == Shadow::None
    }

    pub(crate) fn position_now(&self) -> Position {
        let budget = self.soft.core().budget;
        let steps = Steps(self.deadline.wrapping_sub(budget as u64));
        Position {
            steps,
            rep_iterations: self.rep_iterations,
        }
    }

    pub(super) fn here(&mut self) -> Position {
        Position {
            steps: Steps(self.steps()),
            rep_iterations: self.rep_iterations,
        }
    }

    pub(super) fn run_loop(&mut self, until: Option<Position>) -> Result<Exit, VcpuError> {
        loop {
            if let Some(exit) = self.boundary(until)? {
                return Ok(exit);
            }
            let here = self.steps();
            let (left, rep_limit) = match until {
                None => (QUANTUM, REP_QUANTUM),
                Some(until) if until.steps.0 == here => {
                    // Inside the REP instruction at this position.
                    (0, until.rep_iterations - self.rep_iterations)
                }
                Some(until) => (until.steps.0 - here, REP_QUANTUM),
            };
            let left = self.advance(left, rep_limit.min(REP_QUANTUM))?;
            if let Left::Exit(exit) = left {
                return Ok(exit);
            }
        }
    }

    /// Runs at most `steps` steps (0: only REP iterations, at most `rep_limit`).
    fn advance(&mut self, steps: u64, rep_limit: u64) -> Result<Left, VcpuError> {
        let allowed = self.soft.probed().allow(steps);
        self.behind_mov_ss = (self.cpu.shadow == Shadow::MovSs).then(|| self.here());
        // Between two iterations the instruction may have become another one, which runs alone, too, so
        // that the count of iterations ends with it.
        if steps == 0 || self.rep_iterations != 0 || self.stepping_needed() {
            self.set_budget(steps.max(1));
            return self.step_one(rep_limit);
        }
        // A shadow ends after one instruction, and what it hid must be seen then.
        let shadowed = self.cpu.shadow != Shadow::None && self.window_requested;
        self.set_budget(if shadowed { 1 } else { allowed.min(QUANTUM) });
        let (shadow, resume_flag, start) =
            (self.cpu.shadow, self.cpu.rflags & rflags::RF, self.here());
        self.cpu.shadow = Shadow::None;
        self.cpu.rflags &= !rflags::RF;
        let left = self.run_blocks()?;
        if self.here() == start && matches!(left, Left::Boundary) {
            // Nothing ran: both still hold.
            self.cpu.shadow = shadow;
            self.cpu.rflags |= resume_flag;
        }
        Ok(left)
    }

    /// Runs translated code from `cpu.rip` until the budget ends or something needs a boundary.
    fn run_blocks(&mut self) -> Result<Left, VcpuError> {
        let remaining = self.env().core.budget.clamp(1, i64::from(FULL)) as u8;
        let limit = if remaining < FULL {
            self.limit_for(remaining)
        } else {
            FULL
        };
        if let Err(fault) = self.go_on(limit) {
            return Ok(self.deliver_fault(fault));
        }
        loop {
            self.soft.code_changed = false;
            self.enter();
            match self.handle_leave()? {
                Next::Resume(host) => self.env().core.resume = host,
                Next::Go(rip) => {
                    self.cpu.rip = rip;
                    let over = self.env().core.budget <= 0
                        || self.soft.ram_error.is_some()
                        || sys::debug::watches_code(&self.cpu, rip);
                    if over || self.arrives() {
                        return Ok(Left::Boundary);
                    }
                    if let Err(fault) = self.go_on(FULL) {
                        return Ok(self.deliver_fault(fault));
                    }
                }
                Next::Left(left) => return Ok(left),
            }
        }
    }

    /// Lets translated code go on at `cpu.rip`.
    ///
    /// # Errors
    /// The fault of the fetch.
    fn go_on(&mut self, limit: u8) -> Result<(), Fault> {
        let rip = self.cpu.rip;
        let cached = self.soft.cached_branch(self.mode, rip);
        if let Some(far) = cached.filter(|_| limit == FULL) {
            let core = &mut self.env().core;
            (core.t0, core.resume) = (rip, far);
            return Ok(());
        }
        let block = self.soft.block_for(&self.cpu, rip, self.mode, limit)?;
        if limit == FULL && self.soft.is_published(block) {
            self.soft.cache_branch(self.mode, rip, block);
        }
        let near = self.soft.cache.block(block).near;
        self.env().core.page_base = rip & !0xfff;
        self.soft.probed().page(rip & !0xfff);
        self.env().core.resume = near;
        Ok(())
    }

    /// A short budget runs a block of full length if it fits: only the runtime knows its length.
    fn limit_for(&mut self, remaining: u8) -> u8 {
        match self
            .soft
            .block_for(&self.cpu, self.cpu.rip, self.mode, FULL)
        {
            Ok(id) if self.soft.cache.block(id).insns.len() <= usize::from(remaining) => FULL,
            _ => remaining,
        }
    }

    #[expect(unsafe_code, reason = "the one call into translated code")]
    pub(super) fn enter(&mut self) {
        let base = self.soft.env_base();
        self.soft.counters.entries += 1;
        // SAFETY: `base` belongs to the current state block; `resume` was set to an entry or resume
        // point of a block in this cache that has not been cleared since; TLB entries come from
        // `Soft::fill`, which only maps RAM.
        unsafe { self.soft.cache.code.enter(base) }
    }

    pub(super) fn handle_leave(&mut self) -> Result<Next, VcpuError> {
        let number = self.env().core.site;
        if number == TRAP_SITE {
            return self.handle_trap();
        }
        let site = self.soft.cache.site(number as u32);
        match site.kind {
            SiteKind::Memory { access, direct } => Ok(self.handle_memory(site, access, direct)),
            SiteKind::Execute {
                instruction,
                resume,
            } => self.handle_execute(site, &instruction, resume),
            SiteKind::Goto {
                target,
                link,
                taken,
            } => {
                self.soft.probe.note_taken(taken);
                Ok(self.handle_goto(site, target, link))
            }
            SiteKind::Indirect { undo_rsp } => Ok(self.handle_indirect(site, undo_rsp)),
            SiteKind::Stop { resume } => {
                let offset = self.soft.cache.block(site.block).key.offset;
                let rip = self.env().core.page_base.wrapping_add(u64::from(offset));
                Ok(match self.arrives_at(rip) {
                    true => Next::Left(Left::Boundary),
                    false => Next::Resume(resume),
                })
            }
            SiteKind::Budget => {
                self.soft.counters.budget_ends += 1;
                let block = self.soft.cache.block(site.block);
                let (total, offset) = (block.insns.len() as i64, block.key.offset);
                self.add_steps(-total);
                // With steps left, the block's page was fetched to run.
                self.begun = self.env().core.budget > 0;
                self.cpu.rip = self.env().core.page_base.wrapping_add(u64::from(offset));
                Ok(Next::Left(Left::Boundary))
            }
        }
    }

    /// Goes back to the boundary before an instruction of a block.
    pub(super) fn rewind(&mut self, site: Site) {
        let block = self.soft.cache.block(site.block);
        let insn = block.insns[usize::from(site.index)];
        let unused = block.insns.len() as i64 - i64::from(site.index);
        let counted = !block.key.mode.is_one_step();
        if counted {
            self.add_steps(-unused);
        }
        let index = usize::from(site.index);
        self.soft.probed().rewind(site.block, index);
        self.cpu.rip = self
            .env()
            .core
            .page_base
            .wrapping_add(u64::from(insn.offset));
    }

    fn handle_goto(&mut self, site: Site, target: i64, link: Option<u64>) -> Next {
        self.soft.counters.gotos += 1;
        let rip = self.env().core.page_base.wrapping_add_signed(target);
        let rip = self.instruction_address(rip);
        if !is_canonical(rip) {
            return self.leave_canonical_space(site, rip, 0);
        }
        let Some(link) = link.filter(|_| self.env().core.budget > 0) else {
            return Next::Go(rip);
        };
        if self.arrives_at(rip) {
            return Next::Go(rip);
        }
        let flushes = self.soft.cache.flushes;
        match self.soft.block_for(&self.cpu, rip, self.mode, FULL) {
            Ok(block) => {
                let straddles = self.soft.cache.block(block).second.is_some();
                if flushes == self.soft.cache.flushes && !straddles && self.soft.is_published(block)
                {
                    self.soft.cache.link(link, block);
                }
                Next::Resume(self.soft.cache.block(block).near)
            }
            Err(_) => Next::Go(rip),
        }
    }

    fn handle_indirect(&mut self, site: Site, undo_rsp: i32) -> Next {
        self.soft.counters.branch_misses += 1;
        let rip = self.env().core.t0;
        if !is_canonical(rip) {
            return self.leave_canonical_space(site, rip, undo_rsp);
        }
        let one_step = self.soft.cache.block(site.block).key.mode.is_one_step();
        let watched = sys::debug::watches_code(&self.cpu, rip);
        if one_step || watched || self.env().core.budget <= 0 || self.arrives_at(rip) {
            return Next::Go(rip);
        }
        match self.soft.block_for(&self.cpu, rip, self.mode, FULL) {
            Ok(block) => {
                let host = self.soft.cache.block(block).far;
                let published = self.soft.is_published(block);
                if published {
                    self.soft.cache_branch(self.mode, rip, block);
                }
                Next::Resume(host)
            }
            Err(_) => Next::Go(rip),
        }
    }

    /// An instruction that the host trapped for the guest.
    fn handle_trap(&mut self) -> Result<Next, VcpuError> {
        let trap = traps::last();
        let found = self.soft.cache.block_at(trap.pc).and_then(|block| {
            let index = self.soft.cache.block(block).insn_at(trap.pc)?;
            Some(Site {
                block,
                index: index as u16,
                kind: SiteKind::Budget,
            })
        });
        let Some(site) = found else {
            return Err(self.limit(format!("host trap {} outside any translation", trap.vector)));
        };
        let one_step = self.soft.cache.block(site.block).key.mode.is_one_step();
        self.rewind(site);
        (self.owed, self.probe) = (None, None);
        let fault = match trap.vector as u8 {
            vector::DE => Fault::plain(vector::DE),
            vector::MF => Fault::plain(vector::MF),
            vector::XM if self.cpu.cr4 & machine::state::cr4::OSXMMEXCPT == 0 => Fault::UD,
            vector::XM => Fault::plain(vector::XM),
            vector::UD => Fault::UD,
            vector::GP if one_step => Fault::GP0,
            vector::GP | vector::SS => {
                // Alone, the address is looked at before the instruction runs.
                (self.step_alone, self.begun) = (true, true);
                return Ok(Next::Left(Left::Boundary));
            }
            other => return Err(self.limit(format!("unexpected host trap {other}"))),
        };
        Ok(Next::Left(self.deliver_fault(fault)))
    }

    /// An address of code: 32 bits in compatibility mode.
    pub(super) fn instruction_address(&self, rip: u64) -> u64 {
        match self.mode.is_compat() {
            true => rip & 0xffff_ffff,
            false => rip,
        }
    }

    pub(super) fn limit(&mut self, what: String) -> VcpuError {
        let rip = self.cpu.rip;
        let bytes = self.soft.peek_code(&self.cpu.clone(), rip);
        VcpuError::Limit {
            what,
            rip,
            bytes,
            position: self.here(),
        }
    }
}

/// How a stay goes on.
pub(super) enum Next {
    /// Enter again at a host address.
    Resume(u64),
    /// Look up the block at a guest address.
    Go(u64),
    /// Stop.
    Left(Left),
}

impl Soft {
    /// Whether a block stays findable (code outside RAM does not).
    fn is_published(&self, block: BlockId) -> bool {
        self.is_ram(self.cache.block(block).key.gfn)
    }
}

/// Whose rules hold for guests with this table: those of the maker it names. A table that names none
/// that is known gets the host's, as its undefined results are the host's anyway.
fn vendor_of(table: &CpuidTable) -> Maker {
    table.maker().unwrap_or_else(Maker::of_host)
}
