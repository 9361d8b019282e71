//! The blob that says where in a recording a checkpoint is: version (u16), whether the position is
//! known (u16: 0 or 1), steps, REP iterations, virtual time in ns, RAM in bytes (u64 each),
//! little-endian.

use machine::checkpoint::Checkpoint;
use machine::units::{Position, Steps, VirtualNanos};

const VERSION: u16 = 1;
const BYTES: usize = 36;

/// What is wrong with the blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MomentError {
    #[error("the checkpoint's moment has {0} bytes, not {BYTES}")]
    Length(usize),
    #[error("the checkpoint's moment has version {0}; this build reads {VERSION}")]
    Version(u16),
    #[error("the checkpoint's moment is malformed")]
    Malformed,
}

/// Where in a recording a checkpoint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moment {
    pub(crate) position: Option<Position>,
    pub(crate) time: VirtualNanos,
    pub(crate) ram_bytes: u64,
}

impl Moment {
    pub(crate) fn of(checkpoint: &Checkpoint) -> Self {
        Self {
            position: checkpoint.position,
            time: checkpoint.time,
            ram_bytes: checkpoint.ram_bytes,
        }
    }

    pub(crate) fn encode(self) -> Vec<u8> {
        let Self {
            position,
            time,
            ram_bytes,
        } = self;
        let mut out = VERSION.to_le_bytes().to_vec();
        out.extend(u16::from(position.is_some()).to_le_bytes());
        let position = position.unwrap_or_default();
        for word in [position.steps.0, position.rep_iterations, time.0, ram_bytes] {
            out.extend(word.to_le_bytes());
        }
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, MomentError> {
        let bytes: &[u8; BYTES] = bytes
            .try_into()
            .map_err(|_| MomentError::Length(bytes.len()))?;
        let (head, words) = bytes.split_at(4);
        let half = |at: usize| u16::from_le_bytes([head[at], head[at + 1]]);
        if half(0) != VERSION {
            return Err(MomentError::Version(half(0)));
        }
        let (words, _) = words.as_chunks::<8>();
        let word = |index: usize| u64::from_le_bytes(words[index]);
        let position = Position {
            steps: Steps(word(0)),
            rep_iterations: word(1),
        };
        let position = match half(2) {
            0 if position == Position::default() => None,
            1 => Some(position),
            _ => return Err(MomentError::Malformed),
        };
        Ok(Self {
            position,
            time: VirtualNanos(word(2)),
            ram_bytes: word(3),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_survive_and_damage_does_not() {
        let position = Position {
            steps: Steps(0x1234_5678_9abc),
            rep_iterations: 7,
        };
        for position in [None, Some(position), Some(Position::default())] {
            let moment = Moment {
                position,
                time: VirtualNanos(99),
                ram_bytes: 4096,
            };
            let bytes = moment.encode();
            assert_eq!(Moment::decode(&bytes), Ok(moment));
            assert!(Moment::decode(&bytes[1..]).is_err());
        }
        let mut bytes = vec![0; BYTES];
        assert_eq!(Moment::decode(&bytes), Err(MomentError::Version(0)));
        bytes[0] = 1;
        bytes[4] = 1;
        assert_eq!(Moment::decode(&bytes), Err(MomentError::Malformed));
    }
}
