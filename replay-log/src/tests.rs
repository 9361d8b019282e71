//! Round trips, damage at every byte, and bytes that no writer wrote.

use crate::frame::{FrameHeader, FrameKind, FrameSeal, HEADER_BYTES};
use crate::*;
use machine::units::{Gfn, GuestPhys, Port, Position, Vector, VirtualNanos};
use proptest::prelude::*;

fn position() -> impl Strategy<Value = Position> {
    (any::<u64>(), prop_oneof![Just(0), any::<u64>()]).prop_map(|(steps, rep_iterations)| {
        Position {
            rep_iterations,
            ..Position::at(steps)
        }
    })
}

fn fingerprint() -> impl Strategy<Value = Fingerprint> {
    prop_oneof![
        (any::<u64>(), any::<[u8; 16]>()).prop_map(|(gfn, hash)| Fingerprint::Page {
            gfn: Gfn(gfn),
            hash
        }),
        (any::<u64>(), any::<[u8; 16]>()).prop_map(|(gfn, hash)| Fingerprint::Table {
            gfn: Gfn(gfn),
            hash
        }),
        (any::<u64>(), any::<u64>()).prop_map(|(address, value)| Fingerprint::Word {
            address: GuestPhys(address),
            value
        }),
    ]
}

fn event_position() -> impl Strategy<Value = EventPosition> {
    let io = any::<u64>().prop_map(IoSteps);
    prop_oneof![
        position().prop_map(EventPosition::Count),
        Just(EventPosition::Follows),
        io.clone().prop_map(EventPosition::AfterIo),
        io.clone().prop_map(EventPosition::Window),
        (
            io,
            any::<[u64; 16]>(),
            any::<u64>(),
            any::<[u8; 16]>(),
            prop::collection::vec(fingerprint(), 0..4)
        )
            .prop_map(|(io_steps, gpr, rflags, state, memory)| {
                EventPosition::Landmark(Box::new(Landmark {
                    io_steps,
                    gpr,
                    rflags,
                    state,
                    memory,
                }))
            }),
    ]
}

fn check() -> impl Strategy<Value = Check> {
    (any::<u64>(), any::<u64>(), any::<u64>()).prop_map(|(rip, rcx, registers)| Check {
        rip,
        rcx,
        registers,
    })
}

fn source() -> impl Strategy<Value = ReadSource> {
    prop_oneof![
        (any::<u16>(), prop_oneof![Just(1u8), Just(2), Just(4)]).prop_map(|(port, size)| {
            ReadSource::Port {
                port: Port(port),
                size,
            }
        }),
        (any::<u64>(), 1..=8u8).prop_map(|(address, size)| ReadSource::Mmio {
            address: GuestPhys(address),
            size
        }),
        Just(ReadSource::Timestamp),
    ]
}

fn content() -> impl Strategy<Value = Content> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..64).prop_map(Content::Inline),
        (any::<[u8; 32]>(), 0..=4096u16, any::<u16>()).prop_map(|(id, offset, bytes)| {
            Content::Page {
                id: ContentId(id),
                offset,
                bytes: bytes % (4097 - offset),
            }
        }),
    ]
}

fn effect() -> impl Strategy<Value = Effect> {
    prop_oneof![
        any::<u8>().prop_map(|vector| Effect::Interrupt(Vector(vector))),
        (any::<u64>(), content()).prop_map(|(to, content)| Effect::Write {
            to: GuestPhys(to),
            content
        }),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    let vcpu = any::<u16>().prop_map(VcpuId);
    prop_oneof![
        (vcpu.clone(), source(), any::<u64>(), any::<u64>()).prop_map(
            |(vcpu, source, rip, value)| {
                Event::Read(Read {
                    vcpu,
                    source,
                    rip,
                    value,
                })
            }
        ),
        (vcpu, event_position(), check(), effect()).prop_map(|(vcpu, at, check, effect)| {
            Event::Async(Async {
                vcpu,
                at,
                check,
                effect,
            })
        }),
    ]
}

fn end() -> impl Strategy<Value = End> {
    let reason = prop_oneof![
        Just(EndReason::Checkpoint),
        Just(EndReason::PoweredOff),
        Just(EndReason::Reset),
        Just(EndReason::Shutdown),
        Just(EndReason::Stopped),
        Just(EndReason::Idle),
    ];
    (
        any::<u16>(),
        event_position(),
        check(),
        reason,
        any::<u64>(),
    )
        .prop_map(|(vcpu, at, check, reason, time)| End {
            vcpu: VcpuId(vcpu),
            at,
            check,
            reason,
            time: VirtualNanos(time),
        })
}

fn header() -> impl Strategy<Value = Header> {
    let positions = prop_oneof![
        position().prop_map(|start| PositionKind::Count { start }),
        Just(PositionKind::Landmark)
    ];
    (any::<[u8; 16]>(), any::<u64>(), positions).prop_map(|(id, interval, positions)| Header {
        recording: RecordingId(id),
        interval,
        positions,
    })
}

/// Writes a segment, closing a frame after every `per_frame` events.
fn written(header: &Header, events: &[Event], end: &End, per_frame: usize) -> Vec<u8> {
    let mut writer = SegmentWriter::new(Vec::new(), header).unwrap();
    for (index, event) in events.iter().enumerate() {
        writer.push(event).unwrap();
        if (index + 1).is_multiple_of(per_frame) {
            writer.flush().unwrap();
        }
    }
    let (bytes, summary) = writer.finish(end).unwrap();
    assert_eq!(summary.events, events.len() as u64);
    assert_eq!(summary.written_bytes, bytes.len() as u64);
    bytes
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        header in header(),
        events in prop::collection::vec(event(), 0..40),
        end in end(),
        per_frame in 1..20usize,
    ) {
        let bytes = written(&header, &events, &end, per_frame);
        let segment = Segment::read(&bytes).unwrap();
        prop_assert_eq!(segment, Segment { header, events, end: Some(end), tail: Tail::Complete });
    }

    #[test]
    fn bytes_that_no_writer_wrote_do_no_harm(
        mut bytes in prop::collection::vec(any::<u8>(), 0..400),
        with_header in any::<bool>(),
        header in header(),
    ) {
        if with_header {
            bytes.splice(..0, header.encode());
        }
        if let Ok(segment) = Segment::read(&bytes) {
            prop_assert!(segment.end.is_none());
            prop_assert!(segment.tail != Tail::Complete);
        }
    }

    #[test]
    fn events_that_no_writer_wrote_do_no_harm(
        raw in prop::collection::vec(any::<u8>(), 0..400),
        header in header(),
        is_end in any::<bool>(),
        count in 0..3u32,
    ) {
        let bytes = sealed(&header, &raw, is_end, count, raw.len() as u32);
        let segment = Segment::read(&bytes).unwrap();
        prop_assert!(segment.end.is_none() || is_end);
    }
}

/// A segment of one frame whose checksums hold, whatever is in it.
fn sealed(header: &Header, raw: &[u8], is_end: bool, events: u32, raw_bytes: u32) -> Vec<u8> {
    let stored = zstd::bulk::compress(raw, 1).unwrap();
    let kind = if is_end {
        FrameKind::End
    } else {
        FrameKind::Events
    };
    let frame = FrameHeader {
        kind,
        stored_bytes: stored.len() as u32,
        raw_bytes,
        events,
    };
    let mut bytes = header.encode().to_vec();
    let seal = FrameSeal {
        header: header.encode(),
        index: 0,
    };
    bytes.extend_from_slice(&frame.encode(&stored, &seal));
    bytes.extend_from_slice(&stored);
    bytes
}

pub(crate) fn sample() -> (Header, Vec<Event>, End) {
    let header = Header {
        recording: RecordingId([7; 16]),
        interval: 3,
        positions: PositionKind::Count {
            start: Position::at(1000),
        },
    };
    let at = |steps| EventPosition::Count(Position::at(steps));
    let check = Check {
        rip: 0xffff_ffff_8100_0000,
        rcx: 5,
        registers: 0x0123_4567_89ab_cdef,
    };
    let read = |value| {
        Event::Read(Read {
            vcpu: VcpuId(0),
            source: ReadSource::Port {
                port: Port(0x3fd),
                size: 1,
            },
            rip: 0xffff_ffff_8100_0010,
            value,
        })
    };
    let event = |steps, effect| {
        Event::Async(Async {
            vcpu: VcpuId(0),
            at: at(steps),
            check,
            effect,
        })
    };
    let events = vec![
        read(0x60),
        event(1200, Effect::Interrupt(Vector(0x30))),
        event(
            1200,
            Effect::Write {
                to: GuestPhys(0x1234),
                content: Content::Inline(vec![1, 2, 3]),
            },
        ),
        read(0x61),
        event(
            1300,
            Effect::Write {
                to: GuestPhys(0x2000),
                content: Content::Page {
                    id: ContentId([9; 32]),
                    offset: 0,
                    bytes: 4096,
                },
            },
        ),
    ];
    let end = End {
        vcpu: VcpuId(0),
        at: at(2000),
        check,
        reason: EndReason::Checkpoint,
        time: VirtualNanos(2000),
    };
    (header, events, end)
}

#[test]
fn a_cut_at_every_byte_keeps_whole_frames_and_is_reported() {
    let (header, events, end) = sample();
    let bytes = written(&header, &events, &end, 2);
    for length in 0..bytes.len() {
        match Segment::read(&bytes[..length]) {
            Err(error) => {
                assert_eq!(error, OpenError::TooShort(length));
                assert!(length < HEADER_BYTES);
            }
            Ok(segment) => {
                assert!(events.starts_with(&segment.events), "cut at {length}");
                assert_eq!(segment.end, None);
                let Tail::Cut {
                    at_byte,
                    lost_bytes,
                    ..
                } = segment.tail
                else {
                    panic!("a cut at {length} went unnoticed");
                };
                assert_eq!(at_byte + lost_bytes, length as u64);
            }
        }
    }
}

#[test]
fn a_flipped_bit_in_every_byte_is_noticed_and_what_came_before_is_kept() {
    let (header, events, end) = sample();
    let good = written(&header, &events, &end, 2);
    for at in 0..good.len() * 8 {
        let mut bytes = good.clone();
        bytes[at / 8] ^= 1 << (at % 8);
        match Segment::read(&bytes) {
            Err(_) => assert!(at / 8 < HEADER_BYTES, "bit {at}"),
            Ok(segment) => {
                assert!(events.starts_with(&segment.events), "bit {at}");
                assert_eq!(segment.end, None, "bit {at}");
                let Tail::Cut { at_byte, .. } = segment.tail else {
                    panic!("flipped bit {at} went unnoticed");
                };
                assert!(at_byte <= at as u64 / 8, "bit {at}");
            }
        }
    }
}

#[test]
fn a_frame_of_another_segment_or_place_is_refused() {
    let (header, events, end) = sample();
    let bytes = written(&header, &events, &end, 100);
    let other = Header {
        interval: 4,
        ..header
    };
    let mut moved = other.encode().to_vec();
    moved.extend_from_slice(&bytes[HEADER_BYTES..]);
    let segment = Segment::read(&moved).unwrap();
    assert_eq!((segment.events.len(), segment.end), (0, None));
    // The first frame once more after itself.
    let first = HEADER_BYTES..frame_end(&bytes, HEADER_BYTES);
    let mut twice = bytes[..first.end].to_vec();
    twice.extend_from_slice(&bytes[first.start..]);
    let segment = Segment::read(&twice).unwrap();
    assert_eq!((segment.events.len(), segment.end), (events.len(), None));
}

fn frame_end(bytes: &[u8], at: usize) -> usize {
    let stored = u32::from_le_bytes(bytes[at + 4..at + 8].try_into().unwrap());
    at + 32 + stored as usize
}

#[test]
fn bytes_after_the_end_are_noticed() {
    let (header, events, end) = sample();
    let mut bytes = written(&header, &events, &end, 100);
    bytes.push(0);
    let segment = Segment::read(&bytes).unwrap();
    assert_eq!((segment.events, segment.end), (events, None));
    assert!(matches!(segment.tail, Tail::Cut { lost_bytes: 1, .. }));
}

#[test]
fn other_versions_and_other_files_are_refused_with_a_reason() {
    let (header, ..) = sample();
    let mut bytes = header.encode().to_vec();
    bytes[8] = 2;
    let error = Segment::read(&bytes).unwrap_err();
    assert_eq!(error, OpenError::Version(2));
    assert!(error.to_string().contains("version 2"));
    bytes[0] = b'X';
    assert_eq!(Segment::read(&bytes).unwrap_err(), OpenError::Magic);
}

#[test]
fn a_frame_that_promises_too_much_is_refused_before_it_is_unpacked() {
    let (header, ..) = sample();
    let bytes = sealed(&header, &vec![0; 17 << 20], false, 1, 17 << 20);
    let segment = Segment::read(&bytes).unwrap();
    assert!(matches!(
        segment.tail,
        Tail::Cut {
            reason: "frame over the size limit",
            ..
        }
    ));
}

#[test]
fn what_does_not_fit_an_event_is_refused_and_the_segment_stays_whole() {
    let (header, events, end) = sample();
    let mut writer = SegmentWriter::new(Vec::new(), &header).unwrap();
    writer.push(&events[0]).unwrap();
    let mut large = events[2].clone();
    if let Event::Async(event) = &mut large {
        event.effect = Effect::Write {
            to: GuestPhys(0),
            content: Content::Inline(vec![0; Content::INLINE_MAX + 1]),
        };
    }
    assert!(matches!(
        writer.push(&large),
        Err(WriteError::ContentTooLarge { .. })
    ));
    let (bytes, _) = writer.finish(&end).unwrap();
    assert_eq!(Segment::read(&bytes).unwrap().events, events[..1]);
}

/// The bytes that `docs/format/replay-log.md` shows. If this fails, the format has changed: raise
/// the version.
#[test]
fn the_format_is_the_documented_one() {
    let (header, events, end) = sample();
    let bytes = header.encode();
    let expected = "53425245504c4f4701000000000000000707070707070707070707070707070703000000\
                    00000000e8030000000000000000000000000000";
    assert_eq!(hex(&bytes[..56]), expected);
    let mut encoder = codec::Encoder::default();
    encoder.event(&events[0]);
    encoder.event(&events[1]);
    encoder.end(&end);
    assert_eq!(
        hex(&encoder.bytes),
        "0100dfffffef0ffd030160040000e012001f05efcdab8967452301300000c00c000005efcdab896745230100d00f"
    );
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
