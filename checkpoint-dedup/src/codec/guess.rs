//! A guess at what zstd makes of a few bytes, at a fraction of its time: greedy matches that begin at
//! every second byte, and the entropy of the rest.

use super::matcher::{common, read4};

const SLOT_BITS: u32 = 10;
/// What a match takes; less if it is as far back as the one before.
const MATCH_BITS: usize = 22;
const REPEATED_BITS: usize = 9;
/// A run of this many bytes without a match makes the search one byte coarser.
const PATIENCE: usize = 16;

/// About how many bytes `bytes` take after zstd. Only the first 64 KiB are looked at.
pub(crate) fn guess(bytes: &[u8]) -> usize {
    let bytes = &bytes[..bytes.len().min(usize::from(u16::MAX))];
    let mut seen = [0u16; 1 << SLOT_BITS];
    let mut counts = [0u16; 256];
    let (mut at, mut run_start, mut bits, mut distance) = (0, 0, 0, 0);
    while at + 4 <= bytes.len() {
        let word = read4(&bytes[at..]);
        let slot = &mut seen[(word.wrapping_mul(0x9e37_79b1) >> (32 - SLOT_BITS)) as usize];
        let before = usize::from(*slot);
        *slot = at as u16 + 1;
        // As far back as last time first, as zstd does.
        let equal = |back: usize| read4(&bytes[at - back..]) == word;
        let back = match (distance, (at + 1).wrapping_sub(before)) {
            (last, _) if (1..=at).contains(&last) && equal(last) => last,
            (_, back) if before > 0 && equal(back) => back,
            _ => 0,
        };
        if back > 0 {
            let length = common(&bytes[at..], &bytes[at - back..][..bytes.len() - at]);
            bits += match back == distance {
                true => REPEATED_BITS,
                false => MATCH_BITS,
            };
            distance = back;
            at += length;
            run_start = at;
        } else {
            let step = 2 + (at - run_start) / PATIENCE;
            let half = step as u16 / 2;
            counts[usize::from(bytes[at])] += half;
            counts[usize::from(bytes[at + 1])] += step as u16 - half;
            at += step;
        }
    }
    for &byte in bytes.get(at..).unwrap_or_default() {
        counts[usize::from(byte)] += 1;
    }
    (bits + entropy_bits(&counts)) / 8
}

/// What an ideal code of single bytes would take.
fn entropy_bits(counts: &[u16; 256]) -> usize {
    let total: u32 = counts.iter().map(|&count| u32::from(count)).sum();
    let bits = |count: u16| f32::from(count) * (total as f32 / f32::from(count)).log2();
    let nonzero = counts.iter().filter(|&&count| count > 0);
    nonzero.map(|&count| bits(count)).sum::<f32>() as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::squeeze::squeeze;

    #[test]
    fn guesses_are_near_what_zstd_takes() {
        let mut noise = [0; 4096];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        let text: Vec<u8> = (0..4096u32)
            .flat_map(|i| format!("{} ", i * i % 9973).into_bytes())
            .take(4096)
            .collect();
        let mut half = [0; 4096];
        half[1000..3000].copy_from_slice(&noise[..2000]);
        let records: Vec<u8> = (0..128u64)
            .flat_map(|i| [0xffff_8880_0000_0000 + i * i * 640, i, 0, 7])
            .flat_map(u64::to_le_bytes)
            .collect();
        for bytes in [&noise[..], &text, &half, &records, &[0; 4096], &[]] {
            let (guess, real) = (guess(bytes), squeeze(bytes, 3).len());
            assert!(
                guess <= real * 3 / 2 + 64 && real <= guess * 3 / 2 + 64,
                "guessed {guess}, zstd {real}"
            );
        }
    }
}
