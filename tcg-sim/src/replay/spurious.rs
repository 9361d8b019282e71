//! Page faults that hardware takes for a translation that it remembers (`exec/remembered`). They cannot be logged: where an
//! interval diverges, replay tries whether one explains it.

use super::{Interval, Limits, Outcome, ReplayError, ReplayVcpu, replay};
use crate::SpuriousFault;
use machine::checkpoint::CheckpointSource;
use machine::ram::Ram;
use std::sync::Arc;

/// How many are tried behind the last event that was found, and as many before it.
const TRIES: u64 = 4;

/// Replays an interval that diverges once more for each of some writes that may have faulted on hardware,
/// those behind the last event that was found first. Returns the number of one with which the interval verifies,
/// for [`ReplayVcpu::remember_translations`], and where it is.
///
/// `fresh` gives a vCPU on RAM as at the start of the interval.
///
/// # Errors
/// Those of [`replay`], and of `fresh`.
pub fn find_spurious_fault<V: ReplayVcpu, E: From<ReplayError>>(
    mut fresh: impl FnMut() -> Result<(V, Arc<Ram>), E>,
    interval: &Interval,
    source: &dyn CheckpointSource,
    limits: &Limits,
) -> Result<Option<(u64, SpuriousFault)>, E> {
    let mut attempt = |fault_at| -> Result<_, E> {
        let (mut vcpu, ram) = fresh()?;
        vcpu.remember_translations(fault_at);
        let report = replay(&mut vcpu, &ram, interval, source, limits)?;
        Ok((report, vcpu.spurious_faults()))
    };
    let (report, (met, _)) = attempt(None)?;
    if report.outcome == Outcome::Verified {
        return Ok(None);
    }
    let here = report.met_furthest;
    let behind = here..met.min(here + TRIES);
    let before = (here.saturating_sub(TRIES)..here).rev();
    for number in behind.chain(before) {
        let (report, (_, taken)) = attempt(Some(number))?;
        if let (Outcome::Verified, Some(fault)) = (report.outcome, taken) {
            return Ok(Some((number, fault)));
        }
    }
    Ok(None)
}
