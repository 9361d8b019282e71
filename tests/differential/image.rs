//! The memory contents that sequences start over. There are few, and they are made once, so that a
//! sequence is small to describe.

use super::layout::{CODE, CONSTANT, DATA, IMAGE_BYTES, image_offset};
use super::registers::FxImage;
use super::rng::Rng;
use super::values;

/// What code pages hold beside code.
pub(super) const BREAKPOINT: u8 = 0xcc;

/// Number of memory images; image 0 holds zeros outside the code pages.
pub const IMAGES: u8 = 8;

/// Where an image (not image 0) holds valid FXSAVE images, 64-aligned: offsets in [`DATA`].
pub const FXSAVE_AT: [u64; 2] = [0x400, 0x1000];
/// Where an image holds x87 environments and states (28 and 108 bytes): offsets in [`DATA`].
pub const FPU_STATE_AT: [u64; 3] = [0x600, 0x681, 0xfc0];
/// Where an image holds eight valid MXCSR values: offset in [`DATA`].
pub const MXCSR_AT: u64 = 0x740;
/// Where an image holds eight valid x87 control words: offset in [`DATA`].
pub const FCW_AT: u64 = 0x760;

/// All memory images.
pub struct Images(Vec<Box<[u8; IMAGE_BYTES]>>);

impl Default for Images {
    fn default() -> Self {
        Self((0..IMAGES).map(build).collect())
    }
}

impl Images {
    /// An image by its number below [`IMAGES`].
    pub fn get(&self, index: u8) -> &[u8; IMAGE_BYTES] {
        &self.0[usize::from(index)]
    }

    /// The content of [`CONSTANT`], which all images share.
    pub fn constant(&self) -> &[u8; CONSTANT.bytes() as usize] {
        let start = image_offset(DATA.base).expect("data is in the image");
        self.0[1][start..start + CONSTANT.bytes() as usize]
            .try_into()
            .expect("a page of the image")
    }
}

fn build(index: u8) -> Box<[u8; IMAGE_BYTES]> {
    let mut image = Box::new([0; IMAGE_BYTES]);
    let code = CODE.bytes() as usize;
    image[..code].fill(BREAKPOINT);
    if index == 0 {
        return image;
    }
    let mut rng = Rng::new(0x1a5e_0000 + u64::from(index));
    for word in image[code..].chunks_exact_mut(16) {
        word.copy_from_slice(&content(&mut rng).to_le_bytes());
    }
    let mut put = |offset: u64, bytes: &[u8]| {
        let at = image_offset(DATA.base + offset).expect("offsets are inside the data");
        image[at..at + bytes.len()].copy_from_slice(bytes);
    };
    for offset in FXSAVE_AT {
        put(offset, &fpu(&mut rng).0);
    }
    for offset in FPU_STATE_AT {
        put(offset, &x87_state(&mut rng));
    }
    for row in 0..8 {
        put(MXCSR_AT + row * 4, &values::mxcsr(&mut rng).to_le_bytes());
        put(FCW_AT + row * 2, &values::fcw(&mut rng).to_le_bytes());
    }
    image
}

fn content(rng: &mut Rng) -> u128 {
    match rng.below(8) {
        0 => values::float80(rng),
        1 => u128::from(values::address(rng, 8)) << 64 | u128::from(values::integer(rng)),
        2 => u128::from(values::integer(rng)) << 64 | u128::from(values::address(rng, 8)),
        // Packed decimal, as FBLD wants it.
        3 => (0..18).fold(0, |n, _| n << 4 | rng.below(10) as u128),
        _ => values::vector(rng),
    }
}

/// A consistent x87, MMX and SSE state: an exception is pending only now and then.
pub(super) fn fpu(rng: &mut Rng) -> FxImage {
    let mut image = FxImage::default();
    image.set_fcw(values::fcw(rng));
    image.set_fsw(fsw(rng, image.fcw()));
    image.set_ftw(match rng.below(4) {
        0 => 0,
        1 => 0xff,
        _ => rng.bits() as u8,
    });
    image.set_mxcsr(values::mxcsr(rng));
    for index in 0..8 {
        image.set_st(index, values::float80(rng));
    }
    for index in 0..16 {
        image.set_xmm(index, values::vector(rng));
    }
    image
}

fn fsw(rng: &mut Rng, fcw: u16) -> u16 {
    let random = rng.bits() as u16;
    let flags = match rng.below(20) {
        0..=13 => 0,
        // Only exceptions that are masked.
        14..=18 => random & 0x7f & (fcw | 0x40),
        _ => random & 0x7f,
    };
    let pending = flags & !fcw & 0x3f != 0;
    (random & 0x7f00) & if rng.percent(50) { 0x3800 } else { 0x7f00 }
        | flags
        | if pending { 0x8080 } else { 0 }
}

/// A 32-bit x87 environment followed by registers, as FLDENV and FRSTOR read them.
fn x87_state(rng: &mut Rng) -> [u8; 108] {
    let mut state = [0; 108];
    let fcw = values::fcw(rng);
    let words = [fcw, fsw(rng, fcw), rng.bits() as u16];
    for (index, word) in words.into_iter().enumerate() {
        state[index * 4..index * 4 + 2].copy_from_slice(&word.to_le_bytes());
    }
    for byte in &mut state[12..28] {
        *byte = rng.bits() as u8;
    }
    for index in 0..8 {
        let bytes = values::float80(rng).to_le_bytes();
        state[28 + index * 10..38 + index * 10].copy_from_slice(&bytes[..10]);
    }
    state
}
