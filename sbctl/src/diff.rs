//! `sbctl diff N K M`: what differs between two checkpoints of a recording.

use crate::environment::{Environment, recording_name};
use crate::exit::Exit;
use crate::quantity::Grouped;
use crate::recording::{RAM_SPACE, Source};
use anyhow::Result;
use checkpoint_dedup::{Frame, PAGE_BYTES, RecordingName};
use clap::Args;
use machine::units::Gfn;
use serde::Serialize;
use std::collections::BTreeSet;
use std::fmt;
use tcg_sim::replay::register_differences;

/// Options of `sbctl diff`.
#[derive(Debug, Args)]
pub(crate) struct DiffArguments {
    /// The recording
    #[arg(value_name = "NAME", value_parser = recording_name)]
    name: RecordingName,
    /// One checkpoint
    #[arg(value_name = "K")]
    first: u64,
    /// The other
    #[arg(value_name = "M")]
    second: u64,
    /// Every page that differs, not only how many
    #[arg(long)]
    pages: bool,
}

/// What differs.
#[derive(Debug, Serialize)]
struct Difference {
    recording: String,
    checkpoints: [u64; 2],
    registers: Vec<Register>,
    devices: Vec<String>,
    pages: Vec<Page>,
    changed_bytes: u64,
    #[serde(skip)]
    list_pages: bool,
}

/// A register that differs.
#[derive(Debug, Serialize)]
struct Register {
    name: String,
    /// Hexadecimal, since registers are wider than the numbers of JSON.
    values: [String; 2],
}

/// A page that differs.
#[derive(Debug, Serialize)]
struct Page {
    address: u64,
    changed_bytes: u64,
    first_offset: u64,
}

/// Compares two checkpoints.
pub(crate) fn run(arguments: DiffArguments, environment: &Environment) -> Result<Exit> {
    let repository = environment.open()?;
    let source = Source::open(&repository, &arguments.name)?;
    let checkpoints = [arguments.first, arguments.second];
    let states = [
        source.checkpoint(arguments.first)?,
        source.checkpoint(arguments.second)?,
    ];
    let registers = register_differences(&states[0].cpu, &states[1].cpu);
    let registers = registers.into_iter().map(|register| Register {
        name: register.name,
        values: [register.expected, register.actual].map(|value| format!("{value:#x}")),
    });
    let other = |name: &str| states[1].devices.iter().find(|device| device.name == name);
    let devices = states[0].devices.iter();
    let devices = devices.filter(|device| other(&device.name) != Some(device));
    let pages = pages(&source, checkpoints)?;
    let difference = Difference {
        recording: arguments.name.to_string(),
        checkpoints,
        registers: registers.collect(),
        devices: devices.map(|device| device.name.clone()).collect(),
        changed_bytes: pages.iter().map(|page| page.changed_bytes).sum(),
        pages,
        list_pages: arguments.pages,
    };
    environment.finish(&difference, &difference)?;
    Ok(Exit::Done)
}

/// The pages that differ: among those that changed on the way from one checkpoint to the other.
fn pages(source: &Source, [first, second]: [u64; 2]) -> Result<Vec<Page>> {
    let mut changed: BTreeSet<Gfn> = BTreeSet::new();
    for number in first.min(second)..first.max(second) {
        changed.extend(source.changed(number)?);
    }
    let stored = [source.stored(first)?, source.stored(second)?];
    let spaces = [stored[0].space(RAM_SPACE)?, stored[1].space(RAM_SPACE)?];
    let mut content = [[0; PAGE_BYTES]; 2];
    let mut pages = Vec::new();
    for gfn in changed {
        let frame = Frame(u32::try_from(gfn.0)?);
        for (space, content) in spaces.iter().zip(&mut content) {
            space.read(frame, content)?;
        }
        let bytes = content[0].iter().zip(&content[1]);
        let mut different = bytes.enumerate().filter(|(_, (a, b))| a != b);
        if let Some((first_offset, _)) = different.next() {
            pages.push(Page {
                address: gfn.base().0,
                changed_bytes: 1 + different.count() as u64,
                first_offset: first_offset as u64,
            });
        }
    }
    Ok(pages)
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [first, second] = self.checkpoints;
        writeln!(
            f,
            "recording {}: checkpoint {first} to {second}: {} registers, {} pages ({} bytes)",
            self.recording,
            self.registers.len(),
            Grouped(self.pages.len() as u64),
            Grouped(self.changed_bytes),
        )?;
        for Register { name, values } in &self.registers {
            writeln!(f, "  {name:<14} {} -> {}", values[0], values[1])?;
        }
        for device in &self.devices {
            writeln!(f, "  device {device} differs")?;
        }
        for page in self.pages.iter().filter(|_| self.list_pages) {
            writeln!(
                f,
                "  page {:#x}: {} bytes, the first at {:#x}",
                page.address, page.changed_bytes, page.first_offset
            )?;
        }
        Ok(())
    }
}
