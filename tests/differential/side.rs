//! The two sides of a comparison behind one interface.

use super::case::Case;
use super::compare::Final;
use super::guest::Guest;
use super::image::Images;
use super::layout::IMAGE_BYTES;
use super::native::{NativeCpu, NativeError};
use super::registers::Outcome;
use machine::vcpu::Vcpu;

/// Something that executes batches of cases.
pub trait Side {
    /// Starts a batch; may go on in the background.
    fn begin(&mut self, cases: &[Case], images: &Images);

    /// Waits until the batch is done.
    ///
    /// # Errors
    /// [`NativeError`] when the host CPU cannot be used.
    fn finish(&mut self) -> Result<(), NativeError>;

    /// Whether a case executes an instruction that the model lacks or that no sequence may contain:
    /// what it writes over its code can be anything. Only virtual CPUs can tell.
    fn leaves_model(&mut self, case: &Case, images: &Images) -> bool {
        let _ = (case, images);
        false
    }

    /// The end of a case of the batch.
    ///
    /// # Errors
    /// In words, what kept the case from an end that can be compared; never the fault of the case.
    fn end(&self, index: usize) -> Result<(Outcome, &[u8; IMAGE_BYTES]), String>;
}

impl Side for NativeCpu {
    fn begin(&mut self, cases: &[Case], _: &Images) {
        for (index, case) in cases.iter().enumerate() {
            self.place(index, &case.start, case.image, |code| case.fill_code(code));
        }
        self.start(cases.len());
    }

    fn finish(&mut self) -> Result<(), NativeError> {
        self.wait()
    }

    fn end(&self, index: usize) -> Result<(Outcome, &[u8; IMAGE_BYTES]), String> {
        Ok((self.outcome(index), self.memory(index)))
    }
}

type StoredEnd = (Result<Outcome, String>, Box<[u8; IMAGE_BYTES]>);

/// A guest together with the ends of its last batch.
pub struct GuestSide<V> {
    guest: Guest<V>,
    ends: Vec<StoredEnd>,
    /// The end whose memory is the guest's now; if none, that is `other`.
    latest: Option<usize>,
    other: Box<[u8; IMAGE_BYTES]>,
}

impl<V: Vcpu> GuestSide<V> {
    /// A side that runs cases in `guest`.
    pub fn new(guest: Guest<V>) -> Self {
        Self {
            guest,
            ends: Vec::new(),
            latest: None,
            other: Box::new([0; IMAGE_BYTES]),
        }
    }
}

impl<V: Vcpu> Side for GuestSide<V> {
    fn begin(&mut self, cases: &[Case], images: &Images) {
        for (index, case) in cases.iter().enumerate() {
            if self.ends.len() <= index {
                let empty = (Err(String::new()), Box::new([0; IMAGE_BYTES]));
                self.ends.push(empty);
            }
            let now = match self.latest {
                Some(latest) => &self.ends[latest].1,
                None => &self.other,
            };
            let reset = self.guest.reset(case, images, now);
            let (outcome, memory) = &mut self.ends[index];
            let run = reset.and_then(|()| self.guest.run(case, memory));
            self.latest = Some(index);
            *outcome = run.map_err(|e| e.to_string());
        }
    }

    fn finish(&mut self) -> Result<(), NativeError> {
        Ok(())
    }

    fn leaves_model(&mut self, case: &Case, images: &Images) -> bool {
        let now = match self.latest.take() {
            Some(latest) => &self.ends[latest].1,
            None => &self.other,
        };
        let reset = self.guest.reset(case, images, now);
        reset.is_ok() && self.guest.leaves_model(case, &mut self.other)
    }

    fn end(&self, index: usize) -> Result<(Outcome, &[u8; IMAGE_BYTES]), String> {
        let (outcome, memory) = &self.ends[index];
        outcome.clone().map(|outcome| (outcome, &**memory))
    }
}

/// The end of a case as [`super::compare::difference`] takes it.
pub(super) fn as_final<'a>(end: &'a (Outcome, &'a [u8; IMAGE_BYTES])) -> Final<'a> {
    Final {
        outcome: &end.0,
        memory: end.1,
    }
}
