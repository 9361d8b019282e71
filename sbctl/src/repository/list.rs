//! `sbctl ls`: the recordings.

use super::utc::Utc;
use crate::environment::Environment;
use crate::exit::Exit;
use anyhow::Result;
use checkpoint_dedup::RecordingInfo;
use serde::Serialize;
use std::fmt;

#[derive(Debug, Serialize)]
struct Listing {
    recordings: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    name: String,
    id: String,
    /// finished, running or dead.
    state: &'static str,
    created_unix_ns: u64,
    first_checkpoint: Option<u32>,
    last_checkpoint: Option<u32>,
    logs: u32,
}

impl From<RecordingInfo> for Row {
    fn from(info: RecordingInfo) -> Self {
        Self {
            name: info.name.to_string(),
            id: info.id.to_string(),
            state: info.state.as_str(),
            created_unix_ns: info.created_unix_ns,
            first_checkpoint: info.first.map(|number| number.0),
            last_checkpoint: info.last.map(|number| number.0),
            logs: info.logs,
        }
    }
}

/// Lists the recordings.
pub(crate) fn run(environment: &Environment) -> Result<Exit> {
    let recordings = environment.open()?.recordings()?;
    let listing = Listing {
        recordings: recordings.into_iter().map(Row::from).collect(),
    };
    environment.finish(&listing, &listing)?;
    Ok(Exit::Done)
}

impl fmt::Display for Listing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.recordings.is_empty() {
            return writeln!(f, "no recordings");
        }
        writeln!(
            f,
            "{:<24} {:<9} {:<19} {:>13} {:>8}",
            "name", "state", "created (UTC)", "checkpoints", "logs"
        )?;
        for row in &self.recordings {
            let range = match (row.first_checkpoint, row.last_checkpoint) {
                (Some(first), Some(last)) => format!("{first}..{last}"),
                _ => "none".to_owned(),
            };
            writeln!(
                f,
                "{:<24} {:<9} {:<19} {range:>13} {:>8}",
                row.name,
                row.state,
                Utc(row.created_unix_ns).to_string(),
                row.logs
            )?;
        }
        Ok(())
    }
}
