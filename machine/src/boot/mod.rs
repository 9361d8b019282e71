//! Loading a guest on the host: a Linux bzImage or an ELF executable, an initrd and a command line
//! become the content of new RAM and the state of a vCPU at its first instruction.
//!
//! A bzImage is unpacked here and entered at the 64-bit entry of the ELF file inside. The kernel's
//! own decompressor, which would be the guest's first few hundred million instructions and would
//! move the kernel to a random address, never runs. The entry follows the 64-bit boot protocol of
//! Linux (Documentation/arch/x86/boot.rst): paging on with 4 GiB mapped at their physical addresses,
//! flat segments, interrupts off, RSI pointing to boot_params.
//!
//! Nothing in an image can make the loader panic or write outside RAM; what cannot be loaded is a
//! [`BootError`].

mod bzimage;
mod elf;
mod error;
mod field;
mod layout;
mod options;
mod payload;
#[cfg(test)]
mod tests;

pub use error::BootError;
pub use options::{KernelOption, MACHINE_OPTIONS, command_line};
pub use payload::Compression;

use crate::ram::Ram;
use crate::state::{CpuState, DescriptorTable, Gpr};
use crate::units::{GuestPhys, PAGE_BYTES};
use bzimage::Setup;
use std::ops::Range;

/// A seed that is as good as any other: it makes two runs of a guest draw the same random numbers.
pub const DEFAULT_RNG_SEED: [u8; 32] = *b"SimuBoost: same seed in each run";

/// What to load.
#[derive(Clone, Copy, Debug)]
pub struct LinuxBoot<'a> {
    /// The file: a bzImage or an ELF executable.
    pub kernel: &'a [u8],
    /// The initial RAM file system, passed on as it is.
    pub initrd: Option<&'a [u8]>,
    /// The whole command line without a final zero, see [`command_line`].
    pub command_line: &'a str,
    /// What the kernel's random number generator starts from.
    pub rng_seed: [u8; 32],
}

/// A loaded guest.
#[derive(Clone, Debug)]
pub struct LoadedGuest {
    /// The vCPU at the kernel's first instruction.
    pub state: CpuState,
    /// Guest-physical range of the kernel with its zeroed memory.
    pub kernel: Range<u64>,
    /// Guest-physical range of the initrd; empty without one.
    pub initrd: Range<u64>,
}

/// Loads a guest into `ram`, which must be new (all zero).
///
/// # Errors
/// [`BootError`]; `ram` may then hold part of the guest.
pub fn load(ram: &Ram, boot: &LinuxBoot<'_>) -> Result<LoadedGuest, BootError> {
    if bzimage::is_bzimage(boot.kernel) {
        let (setup, payload) = bzimage::parse(boot.kernel)?;
        let packed = &boot.kernel[payload.start as usize..payload.end as usize];
        // vmlinux carries a few MiB of sections that are not loaded.
        let unpacked = payload::unpack(packed, ram.bytes().saturating_add(64 << 20))?;
        if !elf::is_elf(&unpacked) {
            return Err(BootError::NotAKernel(
                "the payload of the bzImage is not an ELF file".into(),
            ));
        }
        load_elf(ram, boot, &unpacked, &setup)
    } else if elf::is_elf(boot.kernel) {
        load_elf(ram, boot, boot.kernel, &Setup::for_elf())
    } else {
        Err(not_a_kernel(boot.kernel))
    }
}

fn load_elf(
    ram: &Ram,
    boot: &LinuxBoot<'_>,
    vmlinux: &[u8],
    setup: &Setup,
) -> Result<LoadedGuest, BootError> {
    enter(ram, boot, &elf::parse(vmlinux)?, setup)
}

/// Loads raw code into `ram`, which must be new, and enters it at its first byte as a kernel would be.
///
/// # Errors
/// [`BootError`]; `ram` may then hold part of the guest.
pub fn load_flat(ram: &Ram, image: &[u8], address: GuestPhys) -> Result<LoadedGuest, BootError> {
    let boot = LinuxBoot {
        kernel: image,
        initrd: None,
        command_line: "",
        rng_seed: DEFAULT_RNG_SEED,
    };
    enter(ram, &boot, &elf::flat(image, address.0)?, &Setup::for_elf())
}

fn enter(
    ram: &Ram,
    boot: &LinuxBoot<'_>,
    elf: &elf::Elf<'_>,
    setup: &Setup,
) -> Result<LoadedGuest, BootError> {
    let needed = elf.range.end.max(setup.init_end);
    if needed > ram.bytes() {
        return Err(BootError::TooLargeForRam {
            what: "the kernel",
            end_bytes: needed,
            ram_bytes: ram.bytes(),
        });
    }
    elf.load(ram)?;
    let initrd = load_initrd(ram, boot.initrd, needed, setup.initrd_max)?;
    let parameters = layout::Parameters {
        setup,
        command_line: boot.command_line.as_bytes(),
        initrd: initrd.clone(),
        rng_seed: &boot.rng_seed,
    };
    layout::write(ram, &parameters)?;
    let mut state = CpuState::long_mode(elf.entry, layout::STACK_TOP, layout::PAGE_TABLES);
    state.gdtr = DescriptorTable {
        base: layout::GDT,
        limit: layout::GDT_LIMIT,
    };
    state.gpr[Gpr::Rsi as usize] = layout::BOOT_PARAMS;
    Ok(LoadedGuest {
        state,
        kernel: elf.range.clone(),
        initrd,
    })
}

/// Puts the initrd as high as the kernel allows, where it is least in the way.
fn load_initrd(
    ram: &Ram,
    initrd: Option<&[u8]>,
    kernel_end: u64,
    highest: u64,
) -> Result<Range<u64>, BootError> {
    let Some(initrd) = initrd else {
        return Ok(0..0);
    };
    let bytes = initrd.len() as u64;
    // boot_params has 32 bits for the address and the size.
    let top = ram.bytes().min(highest.saturating_add(1)).min(1 << 32);
    let start = top
        .checked_sub(bytes)
        .map(|start| start / PAGE_BYTES * PAGE_BYTES)
        .filter(|start| *start >= kernel_end)
        .ok_or(BootError::TooLargeForRam {
            what: "the kernel and its initrd",
            end_bytes: kernel_end.saturating_add(bytes),
            ram_bytes: top,
        })?;
    ram.write(GuestPhys(start), initrd)?;
    Ok(start..start + bytes)
}

/// Says what a file is that is no kernel for this machine, as far as that can be seen.
fn not_a_kernel(image: &[u8]) -> BootError {
    let has = |offset: usize, magic: &[u8]| {
        image
            .get(offset..)
            .is_some_and(|rest| rest.starts_with(magic))
    };
    if has(0x38, b"ARM\x64") {
        return BootError::Architecture("64-bit Arm".into());
    }
    if has(0x38, b"RSC\x05") {
        return BootError::Architecture("RISC-V".into());
    }
    if has(0x24, &[0x18, 0x28, 0x6f, 0x01]) {
        return BootError::Architecture("32-bit Arm".into());
    }
    if image.len() < bzimage::MAGIC as usize + 4 {
        return BootError::NotAKernel(format!("the file has only {} bytes", image.len()));
    }
    let begins = &image[..8];
    BootError::NotAKernel(match payload::compression(image) {
        Some(format) => format!("a file packed with {format}; give the bzImage or unpack it first"),
        None => format!("neither a bzImage nor an ELF file; it begins with {begins:02x?}"),
    })
}
