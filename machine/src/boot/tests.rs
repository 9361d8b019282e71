//! Loading of synthetic kernels, whole and damaged.

use super::*;
use std::io::Write;

const RAM_BYTES: u64 = 64 << 20;
const ENTRY: u64 = 0x100_0040;
const CODE_AT: u64 = 0x100_0000;
const DATA_AT: u64 = 0x120_0000;
const DATA_MEMORY_BYTES: u64 = 0x3000;

/// An ELF executable with two segments, the second with zeroed memory behind its content.
fn elf() -> Vec<u8> {
    let mut image = vec![0; 0x1000];
    put(&mut image, 0, b"\x7fELF\x02\x01\x01");
    put(&mut image, 16, &2_u16.to_le_bytes());
    put(&mut image, 18, &62_u16.to_le_bytes());
    put(&mut image, 24, &ENTRY.to_le_bytes());
    put(&mut image, 32, &64_u64.to_le_bytes());
    put(&mut image, 54, &56_u16.to_le_bytes());
    put(&mut image, 56, &3_u16.to_le_bytes());
    let code: Vec<u8> = (0..0x800_u32).map(|i| (i * 7) as u8).collect();
    let headers = [
        (1_u32, 0x400_u64, CODE_AT, 0x800_u64, 0x800_u64),
        (1, 0xc00, DATA_AT, 0x400, DATA_MEMORY_BYTES),
        // A note, which is not loaded.
        (4, 0xc00, 0, 0x10, 0x10),
    ];
    for (index, (kind, offset, address, file, memory)) in headers.into_iter().enumerate() {
        let at = 64 + index * 56;
        put(&mut image, at, &kind.to_le_bytes());
        put(&mut image, at + 8, &offset.to_le_bytes());
        put(&mut image, at + 24, &address.to_le_bytes());
        put(&mut image, at + 32, &file.to_le_bytes());
        put(&mut image, at + 40, &memory.to_le_bytes());
    }
    put(&mut image, 0x400, &code);
    put(&mut image, 0xc00, &[0xda; 0x400]);
    image
}

fn put(image: &mut [u8], offset: usize, bytes: &[u8]) {
    image[offset..offset + bytes.len()].copy_from_slice(bytes);
}

fn bzimage(payload: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 0x800];
    image[0x1f1] = 1;
    put(&mut image, 0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
    put(&mut image, 0x202, b"HdrS\x0f\x02");
    image[0x211] = 1;
    put(&mut image, 0x22c, &0x7fff_ffff_u32.to_le_bytes());
    put(&mut image, 0x236, &0x7f_u16.to_le_bytes());
    put(&mut image, 0x238, &2047_u32.to_le_bytes());
    put(&mut image, 0x248, &0x400_u32.to_le_bytes());
    put(&mut image, 0x24c, &(payload.len() as u32).to_le_bytes());
    put(&mut image, 0x258, &CODE_AT.to_le_bytes());
    put(&mut image, 0x260, &0x40_0000_u32.to_le_bytes());
    image.extend(payload);
    image
}

fn packed(format: Compression, content: &[u8]) -> Vec<u8> {
    use lzma_rust2::{FilterType, LzmaOptions, LzmaWriter, XzOptions, XzWriter};
    let mut bytes = match format {
        Compression::Gzip => {
            let mut to = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
            to.write_all(content).unwrap();
            to.finish().unwrap()
        }
        Compression::Bzip2 => {
            let mut to = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::best());
            to.write_all(content).unwrap();
            to.finish().unwrap()
        }
        Compression::Lzma => {
            let options = LzmaOptions::with_preset(6);
            let mut to = LzmaWriter::new_use_header(Vec::new(), &options, None).unwrap();
            to.write_all(content).unwrap();
            to.finish().unwrap()
        }
        Compression::Xz => {
            let mut options = XzOptions::with_preset(6);
            options.prepend_pre_filter(FilterType::BcjX86, 0);
            let mut to = XzWriter::new(Vec::new(), options).unwrap();
            to.write_all(content).unwrap();
            to.finish().unwrap()
        }
        Compression::Lz4 => {
            let block = lz4_flex::block::compress(content);
            let size = (block.len() as u32).to_le_bytes();
            [&[0x02, 0x21, 0x4c, 0x18], &size[..], &block].concat()
        }
        Compression::Zstd => zstd::encode_all(content, 19).unwrap(),
    };
    if format != Compression::Gzip {
        bytes.extend((content.len() as u32).to_le_bytes());
    }
    bytes
}

const ALL_FORMATS: [Compression; 6] = [
    Compression::Gzip,
    Compression::Bzip2,
    Compression::Lzma,
    Compression::Xz,
    Compression::Lz4,
    Compression::Zstd,
];

fn boot(kernel: &[u8]) -> LinuxBoot<'_> {
    LinuxBoot {
        kernel,
        initrd: None,
        command_line: "console=ttyS0",
        rng_seed: DEFAULT_RNG_SEED,
    }
}

fn try_load(kernel: &[u8]) -> Result<LoadedGuest, BootError> {
    load(&Ram::new(RAM_BYTES).unwrap(), &boot(kernel))
}

fn read<const N: usize>(ram: &Ram, at: u64) -> [u8; N] {
    let mut bytes = [0; N];
    ram.read(GuestPhys(at), &mut bytes).unwrap();
    bytes
}

fn read_u64(ram: &Ram, at: u64) -> u64 {
    u64::from_le_bytes(read(ram, at))
}

fn assert_loaded(ram: &Ram, guest: &LoadedGuest) {
    assert_eq!(guest.state.rip, ENTRY);
    assert_eq!(guest.kernel, CODE_AT..DATA_AT + DATA_MEMORY_BYTES);
    let image = elf();
    assert_eq!(read::<0x800>(ram, CODE_AT), image[0x400..0xc00]);
    assert_eq!(read::<0x401>(ram, DATA_AT)[0x3ff..], [0xda, 0]);
}

#[test]
fn an_elf_and_a_bzimage_of_every_packing_load_the_same_kernel() {
    let mut kernels = vec![("elf".to_owned(), elf())];
    kernels.extend(ALL_FORMATS.map(|f| (f.to_string(), bzimage(&packed(f, &elf())))));
    for (name, kernel) in kernels {
        let ram = Ram::new(RAM_BYTES).unwrap();
        let guest = load(&ram, &boot(&kernel)).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_loaded(&ram, &guest);
    }
}

#[test]
fn an_lz4_payload_of_several_blocks_is_joined() {
    let content = [elf(), vec![0x5a; 9 << 20]].concat();
    let mut bytes = vec![0x02, 0x21, 0x4c, 0x18];
    for chunk in content.chunks(8 << 20) {
        let block = lz4_flex::block::compress(chunk);
        bytes.extend((block.len() as u32).to_le_bytes());
        bytes.extend(block);
    }
    bytes.extend((content.len() as u32).to_le_bytes());
    assert_eq!(payload::unpack(&bytes, 1 << 30).unwrap(), content);
}

#[test]
fn the_vcpu_starts_as_the_64_bit_boot_protocol_says() {
    let ram = Ram::new(RAM_BYTES).unwrap();
    let state = load(&ram, &boot(&elf())).unwrap().state;
    assert_eq!(state.gpr[Gpr::Rsi as usize], layout::BOOT_PARAMS);
    assert_eq!(state.rflags & crate::state::rflags::IF, 0);
    assert_eq!(
        (state.segs[1].selector, state.segs[3].selector),
        (0x10, 0x18)
    );
    // The descriptors in memory are the ones that are loaded: reloading changes nothing.
    assert_eq!(state.gdtr.limit, 31);
    assert_eq!(
        read_u64(&ram, state.gdtr.base + 0x10),
        0x00af_9b00_0000_ffff
    );
    assert_eq!(
        read_u64(&ram, state.gdtr.base + 0x18),
        0x00cf_9300_0000_ffff
    );
    for address in [0, ENTRY, 0xffff_ffff_u64, 0x8000_1234] {
        assert_eq!(walk(&ram, state.cr3, address), Some(address));
    }
    assert_eq!(walk(&ram, state.cr3, 1 << 32), None);
}

/// The guest-physical address of a linear one.
fn walk(ram: &Ram, cr3: u64, address: u64) -> Option<u64> {
    let mut table = cr3;
    for shift in [39, 30, 21, 12] {
        let entry = read_u64(ram, table + (address >> shift & 511) * 8);
        if entry & 1 == 0 {
            return None;
        }
        let base = entry & 0x000f_ffff_ffff_f000;
        if entry & 0x80 != 0 {
            return Some((base >> shift << shift) | address & ((1 << shift) - 1));
        }
        table = base;
    }
    Some(table | address & 0xfff)
}

#[test]
fn boot_params_hold_memory_map_initrd_command_line_and_seed() {
    let ram = Ram::new(RAM_BYTES).unwrap();
    let kernel = bzimage(&packed(Compression::Zstd, &elf()));
    let initrd = vec![0xab; 5000];
    let line = command_line("  quiet ");
    let guest = load(
        &ram,
        &LinuxBoot {
            initrd: Some(&initrd),
            command_line: &line,
            rng_seed: [7; 32],
            ..boot(&kernel)
        },
    )
    .unwrap();
    let zero_page: [u8; 4096] = read(&ram, layout::BOOT_PARAMS);
    let u32_of = |at: usize| u32::from_le_bytes(zero_page[at..at + 4].try_into().unwrap());
    let u64_of = |at: usize| u64::from_le_bytes(zero_page[at..at + 8].try_into().unwrap());
    assert_eq!(
        zero_page[0x1ef], 0,
        "the sentinel is zero, so the header is believed"
    );
    assert_eq!(&zero_page[0x202..0x208], b"HdrS\x0f\x02");
    assert_eq!((zero_page[0x210], zero_page[0x211] & 1), (0xff, 1));
    assert_eq!(zero_page[0x1e8], 2);
    assert_eq!(
        (u64_of(0x2d0), u64_of(0x2d8), u32_of(0x2e0)),
        (0, 0x9_fc00, 1)
    );
    assert_eq!(
        (u64_of(0x2e4), u64_of(0x2ec), u32_of(0x2f4)),
        (1 << 20, RAM_BYTES - (1 << 20), 1)
    );
    assert_eq!(guest.initrd.start, (RAM_BYTES - 5000) & !0xfff);
    assert_eq!(u64::from(u32_of(0x218)), guest.initrd.start);
    assert_eq!(u32_of(0x21c), 5000);
    assert_eq!(read::<5000>(&ram, guest.initrd.start), initrd[..]);
    let mut text = vec![0; line.len() + 1];
    ram.read(GuestPhys(u64::from(u32_of(0x228))), &mut text)
        .unwrap();
    assert_eq!(text, [line.as_bytes(), &[0]].concat());
    assert!(line.starts_with("console=ttyS0 acpi=off ") && line.ends_with(" panic=-1 quiet"));
    let record: [u8; 48] = read(&ram, u64_of(0x250));
    assert_eq!(record[..16], [[0; 8], [9, 0, 0, 0, 32, 0, 0, 0]].concat());
    assert_eq!(record[16..], [7; 32]);
}

#[test]
fn what_is_no_kernel_for_this_machine_is_named() {
    let changed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut image = elf();
        change(&mut image);
        image
    };
    let good = bzimage(&packed(Compression::Gzip, &elf()));
    let changed_bz = |offset: usize, bytes: &[u8]| {
        let mut image = good.clone();
        put(&mut image, offset, bytes);
        image
    };
    let noise: Vec<u8> = (0..4096_u32)
        .map(|i| (i.wrapping_mul(0x9e37_79b1) >> 24) as u8)
        .collect();
    let mut arm_image = vec![0; 4096];
    put(&mut arm_image, 0x38, b"ARM\x64");
    let cases: &[(Vec<u8>, &str)] = &[
        (vec![], "the file has only 0 bytes"),
        (
            b"#!/bin/sh\n".repeat(100),
            "neither a bzImage nor an ELF file",
        ),
        (packed(Compression::Gzip, &noise), "a file packed with gzip"),
        (arm_image, "64-bit Arm"),
        (
            changed(&|i| put(i, 18, &183_u16.to_le_bytes())),
            "64-bit Arm",
        ),
        (changed(&|i| put(i, 18, &3_u16.to_le_bytes())), "32-bit x86"),
        (changed(&|i| put(i, 5, &[2, 1, 0])), "ELF machine"),
        (changed(&|i| i[4] = 1), "x32"),
        (changed(&|i| i[16] = 1), "not an executable"),
        (changed(&|i| i[54] = 20), "size of a program header"),
        (changed(&|i| i[56] = 0), "no loadable segment"),
        (
            changed(&|i| put(i, 24, &CODE_AT.wrapping_sub(1).to_le_bytes())),
            "entry point",
        ),
        (
            changed(&|i| put(i, 64 + 24, &0x8_0000_u64.to_le_bytes())),
            "below 1 MiB",
        ),
        (
            changed(&|i| put(i, 64 + 40, &1_u64.to_le_bytes())),
            "larger in the file",
        ),
        (
            changed(&|i| put(i, 64 + 40, &u64::MAX.to_le_bytes())),
            "wraps around",
        ),
        (
            changed(&|i| put(i, 64 + 8, &u64::MAX.to_le_bytes())),
            "truncated kernel: a segment",
        ),
        (
            changed(&|i| put(i, 120 + 40, &(1_u64 << 40).to_le_bytes())),
            "needs RAM up to",
        ),
        (changed(&|i| i.truncate(100)), "the program headers"),
        (
            changed_bz(0x206, &[0x0b, 0x02]),
            "boot protocol 2.11 is too old",
        ),
        (changed_bz(0x236, &[0, 0]), "32-bit x86"),
        (changed_bz(0x201, &[0x20]), "the setup header"),
        (
            changed_bz(0x24c, &u32::MAX.to_le_bytes()),
            "truncated kernel: the payload",
        ),
        (
            changed_bz(0x260, &u32::MAX.to_le_bytes()),
            "needs RAM up to",
        ),
        (
            changed_bz(0x800, &[0x89, b'L', b'Z', b'O']),
            "unknown compression",
        ),
        (
            bzimage(&packed(Compression::Lz4, b"text")),
            "not an ELF file",
        ),
        (
            good[..good.len() - 20].to_vec(),
            "truncated kernel: the payload",
        ),
    ];
    for (kernel, expected) in cases {
        let message = try_load(kernel).expect_err(expected).to_string();
        assert!(
            message.contains(expected),
            "{message:?} should contain {expected:?}"
        );
    }
}

#[test]
fn a_payload_that_unpacks_to_more_than_the_limit_is_refused() {
    for format in ALL_FORMATS {
        let bomb = packed(format, &vec![0; 4 << 20]);
        let result = payload::unpack(&bomb, 1 << 20);
        assert!(
            matches!(result, Err(BootError::TooLargeForRam { .. })),
            "{format}"
        );
    }
}

#[test]
fn what_does_not_fit_in_ram_is_refused() {
    let kernel = elf();
    for (ram_bytes, initrd_bytes) in [(16 << 20, 0), (20 << 20, 2 << 20), (20 << 20, 1 << 30)] {
        let initrd = vec![1; initrd_bytes];
        let request = LinuxBoot {
            initrd: (initrd_bytes > 0).then_some(&initrd[..]),
            ..boot(&kernel)
        };
        let error = load(&Ram::new(ram_bytes).unwrap(), &request).unwrap_err();
        assert!(matches!(error, BootError::TooLargeForRam { .. }), "{error}");
    }
}

#[test]
fn command_lines_are_taken_up_to_the_limit_and_without_zeros() {
    let kernel = elf();
    let with_line = |line: &str| {
        let ram = Ram::new(RAM_BYTES).unwrap();
        let request = LinuxBoot {
            command_line: line,
            ..boot(&kernel)
        };
        load(&ram, &request).map(|_| ())
    };
    with_line("").unwrap();
    with_line(&"x".repeat(2047)).unwrap();
    let error = with_line(&"x".repeat(2048)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "kernel command line of 2048 bytes; this kernel takes 2047"
    );
    assert!(matches!(
        with_line("a\0b"),
        Err(BootError::CommandLineZero(1))
    ));
}

/// Cuts and flips everywhere in the headers and here and there in the rest; the loader may accept
/// or refuse, but must come back, and RAM must not be left.
#[test]
fn damaged_images_never_panic() {
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random as usize
    };
    let mut refused = 0;
    let mut kernels = vec![elf()];
    kernels.extend(ALL_FORMATS.map(|f| bzimage(&packed(f, &elf()))));
    let ram = Ram::new(32 << 20).unwrap();
    for kernel in kernels {
        for round in 0..200 {
            let mut image = kernel.clone();
            let at = next()
                % image
                    .len()
                    .min(if round % 2 == 0 { 0x290 } else { usize::MAX });
            match round % 4 {
                0 | 1 => image[at] ^= 1 << (next() % 8),
                2 => image[at] = 0xff,
                _ => image.truncate(at),
            }
            refused += usize::from(load(&ram, &boot(&image)).is_err());
        }
    }
    assert!(
        refused > 350,
        "only {refused} of 1400 damaged images were refused"
    );
}
