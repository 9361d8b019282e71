//! What a run came to.

use crate::ending::Ending;
use crate::exit::Exit;
use crate::quantity::Grouped;
use anyhow::{Context, Result};
use kvm_recorder::Summary;
use machine::checkpoint::{Checkpoint, CheckpointSink, StoreError};
use machine::ram::{PageBytes, Ram};
use machine::saved::Blob;
use machine::units::Gfn;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tcg_sim::EngineCounters;
use tcg_sim::selfcheck::Compared;

/// How and when a guest ended.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    end: &'static str,
    #[serde(skip)]
    sentence: &'static str,
    #[serde(skip)]
    succeeded: bool,
    instructions: u64,
    guest_time_ns: u64,
    host_time_ns: u64,
    /// CPU time of the thread that ran the guest.
    guest_thread_ns: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    state_hash: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    compared_windows: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    compared_instructions: Option<u64>,
    /// What the engine counted.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    engine: BTreeMap<&'static str, u64>,
    /// Instructions that the engine executed in Rust.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    engine_executed: BTreeMap<String, u64>,
}

impl Report {
    pub(crate) fn new(summary: &Summary, guest_thread: Duration) -> Self {
        let ending = Ending::from(summary.reason);
        Self {
            end: ending.code,
            sentence: ending.sentence,
            succeeded: ending.orderly,
            instructions: summary.steps.map_or(0, |steps| steps.0),
            guest_time_ns: summary.guest_time.0,
            host_time_ns: summary.host_time.as_nanos() as u64,
            guest_thread_ns: guest_thread.as_nanos() as u64,
            state_hash: None,
            compared_windows: None,
            compared_instructions: None,
            engine: BTreeMap::new(),
            engine_executed: BTreeMap::new(),
        }
    }

    /// Whether the guest ended as it should.
    pub(crate) fn exit(&self) -> Exit {
        match self.succeeded {
            true => Exit::Done,
            false => Exit::Failed,
        }
    }

    /// Adds how much was executed in other ways and came to the same.
    pub(crate) fn set_compared(&mut self, compared: Option<Compared>) {
        self.compared_windows = compared.map(|compared| compared.windows);
        self.compared_instructions = compared.map(|compared| compared.steps);
    }

    /// Adds what the engine counted.
    pub(crate) fn set_engine(&mut self, counters: &EngineCounters) {
        self.engine = counters.rows().into_iter().collect();
        self.engine_executed = counters.executed_by_mnemonic().into_iter().collect();
    }

    /// Adds the hash of the final state.
    pub(crate) fn set_state_hash(&mut self, hash: String) {
        self.state_hash = Some(hash);
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host_seconds = self.host_time_ns as f64 / 1e9;
        write!(
            f,
            "sbctl: {} after {} instructions, {host_seconds:.2} s ({:.2} s of guest time, {:.0} million \
             instructions per second)",
            self.sentence,
            Grouped(self.instructions),
            self.guest_time_ns as f64 / 1e9,
            self.instructions as f64 / 1e6 / host_seconds.max(1e-9),
        )?;
        if let (Some(windows), Some(steps)) = (self.compared_windows, self.compared_instructions) {
            write!(
                f,
                "\nsbctl: {} instructions in {} windows came to the same state in one-instruction blocks \
                 and from a cold start",
                Grouped(steps),
                Grouped(windows),
            )?;
        }
        Ok(())
    }
}

/// The engine's counters as a table.
pub(crate) struct EngineTable<'a>(pub(crate) &'a EngineCounters);

impl fmt::Display for EngineTable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, count) in self.0.rows() {
            writeln!(f, "engine: {name:20} {:>16}", Grouped(count).to_string())?;
        }
        for (mnemonic, count) in self.0.executed_by_mnemonic() {
            writeln!(
                f,
                "engine: in rust: {mnemonic:11} {:>16}",
                Grouped(count).to_string()
            )?;
        }
        Ok(())
    }
}

/// Keeps the last checkpoint of a run, without its pages.
#[derive(Clone, Default)]
pub(crate) struct FinalState(Arc<Mutex<Option<Checkpoint>>>);

impl CheckpointSink for FinalState {
    fn begin(&mut self, checkpoint: &Checkpoint) -> Result<(), StoreError> {
        let mut last = self.0.lock().expect("no panic under the lock");
        *last = Some(checkpoint.clone());
        Ok(())
    }
    fn page(&mut self, _: Gfn, _: &PageBytes) -> Result<(), StoreError> {
        Ok(())
    }
    fn content(&mut self, _: [u8; 32], _: &PageBytes) -> Result<(), StoreError> {
        Ok(())
    }
    fn publish(&mut self, _: Option<&[u8]>) -> Result<(), StoreError> {
        Ok(())
    }
}

impl FinalState {
    /// BLAKE3 of the vCPU's state, the devices and RAM, in hexadecimal.
    pub(crate) fn hash(&self, ram: &Ram) -> Result<String> {
        let last = self.0.lock().expect("no panic under the lock");
        let checkpoint = last.as_ref().context("the run left no final state")?;
        let mut hasher = blake3::Hasher::new();
        hasher.update(&checkpoint.cpu.save().to_blob());
        for device in &checkpoint.devices {
            hasher.update(&device.bytes);
        }
        for gfn in 0..ram.frames() {
            hasher.update(&ram.page(Gfn(gfn)));
        }
        Ok(hasher.finalize().to_hex().to_string())
    }
}
