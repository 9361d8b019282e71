//! Which checkpoints and log segments of a series count.

use super::Part;
use crate::id::CheckpointNo;

/// What a listing of a series says.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Extent {
    /// The checkpoint whose map is complete in itself: 0, or where the last trim cut.
    pub(crate) base: CheckpointNo,
    /// The last checkpoint, if the recording has an end.
    pub(crate) end: Option<CheckpointNo>,
    /// The checkpoints from `base` to `end`, ascending.
    pub(crate) checkpoints: Vec<CheckpointNo>,
    /// The log segments between them, ascending.
    pub(crate) logs: Vec<CheckpointNo>,
}

impl Extent {
    pub(crate) fn of(parts: &[Part]) -> Self {
        let mut out = Self::default();
        for part in parts {
            match *part {
                Part::Base(number) => out.base = out.base.max(number),
                Part::End(number) => {
                    out.end = Some(out.end.map_or(number, |end| end.min(number)));
                }
                _ => {}
            }
        }
        for part in parts {
            match *part {
                Part::Checkpoint(number) if out.covers(number) => out.checkpoints.push(number),
                // Segment k leads to checkpoint k + 1, which must count as well.
                Part::Log(number) if out.covers(number) && out.end != Some(number) => {
                    out.logs.push(number);
                }
                _ => {}
            }
        }
        // The base stands in for its checkpoint even where the manifest itself is lost.
        if out.base.0 > 0 && !out.checkpoints.contains(&out.base) {
            out.checkpoints.push(out.base);
        }
        out.checkpoints.sort_unstable();
        out.logs.sort_unstable();
        out
    }

    fn covers(&self, number: CheckpointNo) -> bool {
        number >= self.base && self.end.is_none_or(|end| number <= end)
    }

    /// The object that holds a checkpoint.
    pub(crate) fn part(&self, number: CheckpointNo) -> Part {
        match number {
            n if n == self.base && n.0 > 0 => Part::Base(n),
            n => Part::Checkpoint(n),
        }
    }

    /// Whether a trim left this object behind.
    pub(crate) fn is_leftover(&self, part: Part) -> bool {
        match part {
            Part::Start => false,
            Part::End(number) => self.end != Some(number),
            Part::Base(number) => number != self.base,
            Part::Checkpoint(number) => !self.covers(number),
            Part::Log(number) => !self.covers(number) || self.end == Some(number),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trim_hides_what_it_has_not_removed_yet() {
        let n = CheckpointNo;
        let mut parts = vec![Part::Start];
        parts.extend((0..10).map(|i| Part::Checkpoint(n(i))));
        parts.extend((0..10).map(|i| Part::Log(n(i))));
        let all = Extent::of(&parts);
        assert_eq!((all.checkpoints.len(), all.logs.len()), (10, 10));
        parts.extend([Part::End(n(9)), Part::Base(n(3)), Part::End(n(6))]);
        let cut = Extent::of(&parts);
        assert_eq!(cut.checkpoints, [n(3), n(4), n(5), n(6)]);
        assert_eq!(cut.logs, [n(3), n(4), n(5)]);
        assert_eq!(cut.part(n(3)), Part::Base(n(3)));
        assert_eq!(cut.part(n(4)), Part::Checkpoint(n(4)));
        assert!(cut.is_leftover(Part::End(n(9))) && !cut.is_leftover(Part::End(n(6))));
        assert!(cut.is_leftover(Part::Log(n(6))) && cut.is_leftover(Part::Checkpoint(n(2))));
    }
}
