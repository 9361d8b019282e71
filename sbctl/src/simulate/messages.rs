//! What the supervisor and a worker process tell each other, one line of JSON a message. The end of
//! the supervisor's messages without [`Command::Last`] means that the supervisor is gone.

use serde::{Deserialize, Serialize};

/// To the worker process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Command {
    /// Simulate this interval.
    Simulate(u64),
    /// There are no more intervals: end when all are done.
    Last,
    /// End now; intervals under way are given up.
    Cancel,
}

/// From the worker process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Event {
    /// An interval is under way.
    Started(u64),
    /// An interval's result is stored.
    Finished(Finished),
}

/// An interval's result is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Finished {
    pub(super) interval: u64,
    pub(super) verified: bool,
    pub(super) steps: u64,
    pub(super) trace_bytes: u64,
    pub(super) host_ns: u64,
}

/// A message as a line.
pub(super) fn line(message: &impl Serialize) -> String {
    serde_json::to_string(message).expect("messages are plain data") + "\n"
}
