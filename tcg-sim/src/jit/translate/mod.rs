//! From guest instructions to a superblock of host code.
//!
//! Invariant of every emitted instruction: all guest state is committed by its last host instruction
//! that can trap or leave, so that wherever the block is left before, the guest state is that before
//! the instruction. RFLAGS hold the guest's arithmetic flags throughout; what the translator adds
//! leaves them alone.

mod arrive;
mod branch;
mod classify;
mod length;
mod memory;
mod native;
mod probe;
mod special;
mod stack;
mod string;

use super::asm::{Asm, Host, Mem, Patch};
use super::block::{BlockId, BlockKey, Insn, Instrumented, MemoryAccess, Site, SiteKind};
use super::layout::disp;
use super::mode::TlbClass;
use super::regs::{BUDGET, T0};
use crate::exec::HostCpu;
use classify::{Class, classify};
pub(crate) use classify::{is_undefined, odd_segment, segment_of};
use iced_x86::{Decoder, DecoderOptions, Encoder, Instruction, InstructionInfoFactory};
use memory::Address;
pub(crate) use special::{has_short_address, is_narrow};

/// Most instructions in a superblock.
pub(crate) const MAX_INSNS: usize = 64;
/// Host bytes that one superblock may need at most, generously.
pub(crate) const MAX_HOST_BYTES: usize = MAX_INSNS * 512;

/// Most bytes of an instruction.
const LONGEST: usize = 15;

/// What to translate.
pub(crate) struct Request<'a> {
    pub(crate) key: BlockKey,
    pub(crate) id: BlockId,
    /// Guest bytes from `key.offset` on: to the end of the page, or beyond it for an instruction that
    /// straddles pages.
    pub(crate) bytes: &'a [u8],
    /// Host address at which the code will execute.
    pub(crate) host: u64,
    /// Host address of the leave gate.
    pub(crate) leave: u64,
    /// Number of the first site.
    pub(crate) first_site: u32,
    /// Page offset at which the state that is looked for may be met: blocks end before it.
    pub(crate) stop: Option<u16>,
    pub(crate) decoder_options: u32,
    pub(crate) cpu: HostCpu,
    /// Number of the first counter that the block may use.
    pub(crate) first_slot: u32,
}

/// A finished translation.
pub(crate) struct Translation {
    pub(crate) code: Vec<u8>,
    pub(crate) sites: Vec<Site>,
    pub(crate) insns: Vec<Insn>,
    pub(crate) far: u64,
    pub(crate) near: u64,
    pub(crate) chunks: u64,
    pub(crate) facts: Option<Box<Instrumented>>,
}

/// Why there is no translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoTranslation {
    /// The first instruction needs bytes of the next page.
    NeedsNextPage,
    /// The first instruction is longer than 15 bytes: #GP(0).
    TooLong,
}

/// Whether translation goes on behind an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    Next,
    End,
}

/// Code out of the main line, emitted behind the block.
enum Tail {
    /// Slow path of a memory access whose address is in the register.
    Memory {
        from: Patch,
        address: Host,
        site: u32,
    },
    /// The stack slot does not fit: the table may.
    Slot {
        from: Patch,
        address: Address,
        access: MemoryAccess,
        direct: u64,
        site: u32,
    },
    /// Leaves with a site.
    Leave { from: Patch, site: u32 },
    /// A taken side exit behind `retired` instructions.
    SideExit {
        from: Patch,
        target: i64,
        index: u16,
    },
}

/// State of one translation.
pub(crate) struct Translator<'a> {
    request: Request<'a>,
    asm: Asm,
    encoder: Encoder,
    infos: InstructionInfoFactory,
    sites: Vec<Site>,
    insns: Vec<Insn>,
    tails: Vec<Tail>,
    class: TlbClass,
    one_step: bool,
    /// Compatibility mode: addresses have 32 bits.
    compat: bool,
    /// Bytes of return addresses.
    word: i32,
    /// Instructions in the block, known before the first is emitted.
    total: usize,
    /// Index of the instruction being emitted.
    index: u16,
    /// Page offset behind the instruction being emitted.
    next_offset: i64,
    notes: probe::Notes,
}

/// Translates a superblock.
///
/// # Errors
/// When not even the first instruction can be decoded from the given bytes.
pub(crate) fn translate(request: Request<'_>) -> Result<Translation, NoTranslation> {
    let Decoded {
        instructions: decoded,
        straddling,
    } = decode(&request)?;
    let mut translator = Translator {
        asm: Asm::new(request.host),
        encoder: Encoder::new(64),
        infos: InstructionInfoFactory::new(),
        sites: Vec::new(),
        insns: Vec::with_capacity(decoded.len()),
        tails: Vec::new(),
        class: request.key.mode.class(),
        one_step: request.key.mode.is_one_step(),
        compat: request.key.mode.is_compat(),
        word: if request.key.mode.is_compat() { 4 } else { 8 },
        total: decoded.len(),
        index: 0,
        next_offset: 0,
        notes: probe::Notes::new(request.key.instruments, request.first_slot),
        request,
    };
    let (far, near) = translator.emit(&decoded, straddling);
    let chunks = translator
        .insns
        .iter()
        .fold(0, |set, insn| set | insn_chunks(insn));
    Ok(Translation {
        code: translator.asm.bytes,
        sites: translator.sites,
        insns: translator.insns,
        far,
        near,
        chunks,
        facts: translator.notes.finish(),
    })
}

/// The 64-byte chunks of the page that an instruction lies in.
fn insn_chunks(insn: &Insn) -> u64 {
    let first = insn.offset / 64;
    let last = ((insn.offset + u16::from(insn.length) - 1) / 64).min(63);
    (first..=last).fold(0, |set, chunk| set | 1 << chunk)
}

/// The instructions of a superblock.
struct Decoded {
    instructions: Vec<(Instruction, Class)>,
    /// The instruction behind it reaches into the next page.
    straddling: bool,
}

/// Decodes up to the end of the superblock: a transfer, the page end or the limit.
fn decode(request: &Request<'_>) -> Result<Decoded, NoTranslation> {
    let options = DecoderOptions::NONE | request.decoder_options;
    let bitness = if request.key.mode.is_compat() { 32 } else { 64 };
    let mut decoder = Decoder::with_ip(
        bitness,
        request.bytes,
        u64::from(request.key.offset),
        options,
    );
    let limit = usize::from(request.key.limit).clamp(1, MAX_INSNS);
    let mut decoded = Vec::new();
    let mut straddling = false;
    while decoded.len() < limit {
        let start = decoder.position();
        if start != 0
            && request
                .stop
                .is_some_and(|stop| u64::from(stop) == decoder.ip())
        {
            break;
        }
        let instruction = decoder.decode();
        if instruction.is_invalid() {
            match refuse(&request.bytes[start..], bitness == 32) {
                None => {}
                Some(reason) if decoded.is_empty() => return Err(reason),
                // The next block deals with it.
                Some(reason) => {
                    straddling = reason == NoTranslation::NeedsNextPage;
                    break;
                }
            }
        }
        let class = classify(&instruction, request.key.mode, request.cpu.vendor);
        decoded.push((instruction, class));
        let page_ends = u64::from(request.key.offset) + decoder.position() as u64 >= 4096;
        let loops = class == Class::Condition && instruction.near_branch64() <= instruction.ip();
        if class.ends_block() || page_ends || loops {
            break;
        }
    }
    Ok(Decoded {
        instructions: decoded,
        straddling,
    })
}

/// Why bytes that are no instruction do not even raise #UD.
fn refuse(bytes: &[u8], compat: bool) -> Option<NoTranslation> {
    // How far the processor reads before it knows.
    let length = length::length(bytes, compat).unwrap_or(usize::MAX);
    if bytes.len() < length.min(LONGEST) {
        Some(NoTranslation::NeedsNextPage)
    } else if length > LONGEST {
        Some(NoTranslation::TooLong)
    } else {
        None
    }
}

impl Translator<'_> {
    /// Emits everything; returns the host addresses of the far and the near entry.
    fn emit(&mut self, decoded: &[(Instruction, Class)], straddling: bool) -> (u64, u64) {
        let mut over_budget = self.emit_over_budget();
        let far = self.host_here();
        self.asm
            .lea(T0, Mem::base(T0, -i32::from(self.request.key.offset)));
        self.asm.store(Mem::env(disp!(page_base)), T0);
        self.note_page();
        let near = self.host_here();
        if !self.one_step {
            if self.request.stop == Some(self.request.key.offset) {
                self.emit_stop_check();
                // The first one is too far for a short jump.
                let over = self.asm.jmp_short();
                over_budget = self.emit_over_budget();
                self.asm.bind_short(over);
            }
            self.emit_budget_check(over_budget);
        }
        self.note_entry();
        let mut flow = Flow::Next;
        for (index, (instruction, class)) in decoded.iter().enumerate() {
            self.index = index as u16;
            self.next_offset = instruction.next_ip() as i64;
            self.insns.push(Insn {
                offset: instruction.ip() as u16,
                length: instruction.len() as u8,
                host: self.asm.offset() as u32,
            });
            self.note_insn(instruction);
            flow = self.emit_one(instruction, *class);
        }
        if flow == Flow::Next && straddling && !self.one_step {
            // Never linked, since which page comes next is a matter of the page tables.
            self.note_exit(false);
            self.emit_goto_by_table(self.next_offset);
        } else if flow == Flow::Next {
            self.emit_goto(self.next_offset, false);
        }
        self.emit_tails();
        (far, near)
    }

    fn host_here(&self) -> u64 {
        self.request.host + self.asm.offset() as u64
    }

    /// Leaves because the budget does not suffice; returns where.
    fn emit_over_budget(&mut self) -> usize {
        let at = self.asm.offset();
        if !self.one_step {
            let site = self.new_site(SiteKind::Budget);
            self.leave_with(site);
        }
        at
    }

    /// Takes the block's steps from the budget, or goes back to `over_budget` if it has not enough.
    fn emit_budget_check(&mut self, over_budget: usize) {
        self.asm
            .lea(BUDGET, Mem::base(BUDGET, -(self.total as i32)));
        // The high half is 0, since the runtime hands out less than 2^32, or -1 below zero.
        self.asm.rorx(Host::RCX, BUDGET, 32);
        self.asm.lea32(Host::RCX, Mem::base(Host::RCX, 1));
        self.asm.jecxz_back(over_budget);
    }

    fn new_site(&mut self, kind: SiteKind) -> u32 {
        self.sites.push(Site {
            block: self.request.id,
            index: self.index,
            kind,
        });
        self.request.first_site + self.sites.len() as u32 - 1
    }

    fn emit_one(&mut self, instruction: &Instruction, class: Class) -> Flow {
        match class {
            Class::Nothing => Flow::Next,
            Class::Native => self.native(instruction),
            Class::X87 => self.x87(instruction),
            Class::Execute { ends } => self.execute(instruction, ends),
            Class::Lea => self.lea(instruction),
            Class::String => self.string(instruction),
            Class::BitString => self.bit_string(instruction),
            Class::MaskedMove => self.masked_move(instruction),
            Class::Flag => self.flag(instruction),
            Class::SwapGs => self.swap_gs(instruction),
            Class::PushFlags => self.push_flags(),
            Class::Push => self.push(instruction),
            Class::Pop => self.pop(instruction),
            Class::Leave => self.leave(),
            Class::Call => self.call(instruction),
            Class::CallIndirect => self.call_indirect(instruction),
            Class::Return => self.ret(instruction),
            Class::Jump => self.jump(instruction),
            Class::JumpIndirect => self.jump_indirect(instruction),
            Class::Condition => self.condition(instruction),
            Class::CountBranch => self.count_branch(instruction),
        }
    }

    /// Leaves for Rust, which executes the instruction.
    fn execute(&mut self, instruction: &Instruction, ends: bool) -> Flow {
        let from = self.asm.jmp();
        let resume = self.host_here();
        let site = self.new_site(SiteKind::Execute {
            instruction: *instruction,
            resume,
        });
        self.tails.push(Tail::Leave { from, site });
        // A block that ends here is left anyway; what follows is reached only if nothing happened.
        if ends {
            self.emit_goto(self.next_offset, false)
        }
        if ends { Flow::End } else { Flow::Next }
    }

    /// Re-encodes a host instruction.
    fn encode(&mut self, instruction: &Instruction) {
        let at = self.host_here();
        self.encoder.set_buffer(std::mem::take(&mut self.asm.bytes));
        let result = self.encoder.encode(instruction, at);
        self.asm.bytes = self.encoder.take_buffer();
        if let Err(error) = result {
            unreachable!(
                "{instruction} ({:?}) re-encodes: {error}",
                instruction.code()
            );
        }
    }

    fn emit_tails(&mut self) {
        for tail in std::mem::take(&mut self.tails) {
            match tail {
                Tail::Memory {
                    from,
                    address,
                    site,
                } => {
                    self.asm.bind(from);
                    self.asm.mov(T0, address);
                    self.leave_with(site);
                }
                Tail::Slot {
                    from,
                    address,
                    access,
                    direct,
                    site,
                } => {
                    self.asm.bind(from);
                    let miss = self.look_up(address, access);
                    self.asm.jmp_to(direct);
                    self.asm.bind(miss);
                    self.asm.mov(T0, address.register);
                    self.leave_with(site);
                }
                Tail::Leave { from, site } => {
                    self.asm.bind(from);
                    self.leave_with(site);
                }
                Tail::SideExit {
                    from,
                    target,
                    index,
                } => {
                    self.asm.bind(from);
                    self.index = index;
                    self.refund(index);
                    self.note_taken();
                    self.emit_goto(target, true);
                }
            }
        }
        // Side exits add tails of their own.
        if !self.tails.is_empty() {
            self.emit_tails();
        }
    }

    /// Gives back the steps of the instructions behind `index`.
    fn refund(&mut self, index: u16) {
        let unused = self.total as i32 - 1 - i32::from(index);
        if unused != 0 && !self.one_step {
            self.asm.lea(BUDGET, Mem::base(BUDGET, unused));
        }
    }

    fn leave_with(&mut self, site: u32) {
        self.asm.mov_imm(Host::RCX, u64::from(site));
        self.asm.jmp_to(self.request.leave);
    }

    fn memory_site(&mut self, access: MemoryAccess, direct: u64) -> u32 {
        self.new_site(SiteKind::Memory { access, direct })
    }
}
