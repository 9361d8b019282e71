//! What fuzzers call; runs for a second in the tests, and at length from `tests/fuzz` with cargo-fuzz.

use crate::frame::{FrameHeader, FrameKind, FrameSeal, Header};
use crate::{PositionKind, RecordingId, Segment, SegmentWriter, Tail};

/// Reads bytes as a segment and checks what must hold of any bytes: no panic, every byte accounted for,
/// and whatever was read can be written and is then read the same. The first byte chooses what the rest
/// is: a whole segment, what follows a header, or the unpacked content of a frame whose check sums hold.
///
/// # Panics
/// If any of that does not hold.
pub fn read_segment(data: &[u8]) {
    let Some((choice, rest)) = data.split_first() else {
        return;
    };
    let header = Header {
        recording: RecordingId([*choice; 16]),
        interval: 3,
        positions: match choice & 4 {
            0 => PositionKind::Landmark,
            _ => PositionKind::Count {
                start: Default::default(),
            },
        },
    };
    match choice & 3 {
        0 => check(rest),
        1 => check(&[&header.encode(), rest].concat()),
        2 => check(&sealed(&header, rest, FrameKind::Events)),
        _ => check(&sealed(&header, rest, FrameKind::End)),
    }
}

fn check(bytes: &[u8]) {
    let Ok(segment) = Segment::read(bytes) else {
        return;
    };
    match segment.tail {
        Tail::Complete => assert!(segment.end.is_some(), "complete, but without an end"),
        Tail::Cut {
            at_byte,
            lost_bytes,
            ..
        } => {
            assert!(segment.end.is_none(), "cut, but with an end");
            assert_eq!(at_byte + lost_bytes, bytes.len() as u64);
        }
    }
    rewrite(&segment);
}

fn rewrite(segment: &Segment) {
    let mut writer =
        SegmentWriter::new(Vec::new(), &segment.header).expect("memory takes everything");
    for event in &segment.events {
        writer.push(event).expect("what was read can be written");
        assert!(!event.to_string().is_empty());
    }
    let Some(end) = &segment.end else {
        return;
    };
    let (bytes, _) = writer.finish(end).expect("what was read can be written");
    let again = Segment::read(&bytes).expect("a writer's header can be read");
    assert_eq!(&again, segment);
}

/// A segment of one frame whose check sums hold, with the number of events that it says.
fn sealed(header: &Header, raw: &[u8], kind: FrameKind) -> Vec<u8> {
    let (events, raw) = match (kind, raw.split_first()) {
        (FrameKind::Events, Some((events, raw))) => (u32::from(*events), raw),
        _ => (0, raw),
    };
    let stored = zstd::bulk::compress(raw, 1).expect("memory takes everything");
    let frame = FrameHeader {
        kind,
        stored_bytes: stored.len() as u32,
        raw_bytes: raw.len() as u32,
        events,
    };
    let header = header.encode();
    let seal = FrameSeal { header, index: 0 };
    [&header[..], &frame.encode(&stored, &seal), &stored].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Encoder;
    use std::time::{Duration, Instant};

    /// SplitMix64.
    struct Random(u64);

    impl Random {
        fn next(&mut self) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        }
    }

    /// Inputs that reach far into the reader: the content of frames, and a whole segment.
    fn seeds() -> Vec<Vec<u8>> {
        let (header, events, end) = crate::tests::sample();
        let mut content = Encoder::default();
        events.iter().for_each(|event| content.event(event));
        let mut writer = SegmentWriter::new(Vec::new(), &header).unwrap();
        events.iter().for_each(|event| writer.push(event).unwrap());
        let (whole, _) = writer.finish(&end).unwrap();
        let mut last = Encoder::default();
        last.end(&end);
        vec![
            [&[0], &whole[..]].concat(),
            [&[1], &whole[64..]].concat(),
            [&[2, events.len() as u8], &content.bytes[..]].concat(),
            [&[3], &last.bytes[..]].concat(),
        ]
    }

    #[test]
    fn the_reader_survives_a_second_of_damage() {
        let (seeds, start) = (seeds(), Instant::now());
        let (mut random, mut runs) = (Random(1), 0);
        while start.elapsed() < Duration::from_secs(1) {
            let mut input = seeds[random.next() as usize % seeds.len()].clone();
            for _ in 0..random.next() % 4 {
                let at = random.next() as usize % input.len();
                match random.next() % 4 {
                    0 => input[at] ^= 1 << (random.next() % 8),
                    1 => input[at] = random.next() as u8,
                    2 => input.truncate(at.max(1)),
                    _ => input.insert(at, random.next() as u8),
                }
            }
            read_segment(&input);
            runs += 1;
        }
        assert!(runs > 100, "only {runs} runs");
    }
}
