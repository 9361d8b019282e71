//! What makes results of two runs the same results.

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// The engine: its version, and a hash of the sources that decide what it does.
pub(crate) const ENGINE: &str =
    concat!(env!("CARGO_PKG_VERSION"), "-", env!("SBCTL_ENGINE_SOURCES"));

/// Which instruments.
#[derive(Clone, Debug, Args)]
pub(crate) struct InstrumentArguments {
    /// What is observed; may be given more than once [default: count]
    #[arg(long = "instrument", value_name = "WHAT", value_enum)]
    pub(crate) instruments: Vec<Instrument>,
}

/// What is observed of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Instrument {
    /// Nothing: only that the interval ends as recorded
    None,
    /// Instructions by privilege level, branches, memory reads and writes, deliveries
    Count,
    /// A stored trace of every access to memory
    Mem,
}

/// What makes results of two runs the same results, beside the recording and the interval.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Configuration {
    /// See [`ENGINE`].
    pub(crate) engine: String,
    /// Instruments, in order.
    pub(crate) instruments: BTreeSet<Instrument>,
    /// Whether the engine's other mode executed each interval too.
    pub(crate) paranoid: bool,
}

impl Configuration {
    pub(crate) fn new(arguments: &InstrumentArguments, paranoid: bool) -> Self {
        let mut instruments: BTreeSet<Instrument> = arguments.instruments.iter().copied().collect();
        if instruments.is_empty() {
            instruments.insert(Instrument::Count);
        }
        instruments.remove(&Instrument::None);
        Self {
            engine: ENGINE.into(),
            instruments,
            paranoid,
        }
    }

    /// Without instruments.
    pub(crate) fn bare(paranoid: bool) -> Self {
        let instruments = vec![Instrument::None];
        Self::new(&InstrumentArguments { instruments }, paranoid)
    }

    /// Whether an instrument is among them.
    pub(crate) fn has(&self, instrument: Instrument) -> bool {
        self.instruments.contains(&instrument)
    }

    /// The name of a folder for its results.
    pub(crate) fn key(&self) -> String {
        let names: Vec<String> = self.instruments.iter().map(|i| i.name()).collect();
        let instruments = match names.is_empty() {
            true => "plain".into(),
            false => names.join("+"),
        };
        let paranoid = if self.paranoid { "-paranoid" } else { "" };
        format!("engine-{}-{instruments}{paranoid}", self.engine)
    }

    /// The arguments with which a worker process has the same configuration.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let instruments = [Instrument::None];
        let instruments = instruments.iter().chain(&self.instruments);
        let mut arguments: Vec<String> = instruments
            .flat_map(|instrument| ["--instrument".into(), instrument.name()])
            .collect();
        if self.paranoid {
            arguments.push("--paranoid".into());
        }
        arguments
    }
}

impl Instrument {
    /// Its name on the command line.
    pub(crate) fn name(self) -> String {
        let value = self.to_possible_value().expect("no instrument is hidden");
        value.get_name().to_owned()
    }
}
