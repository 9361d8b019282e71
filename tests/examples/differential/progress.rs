//! How far a run has come, as a file that a later run can go on from, and for the reader.

use anyhow::{Context, bail};
use simuboost_tests::differential::fuzzer::Tally;
use std::fmt::{self, Display};
use std::ops::Range;
use std::path::Path;

/// Name of the file in the directory of a run.
const FILE: &str = "progress";

/// A run so far.
pub(crate) struct Progress {
    pair: String,
    seeds: Range<u64>,
    /// First seed that has not been run.
    pub(crate) next: u64,
    /// Seconds spent by finished runs.
    pub(crate) seconds: u64,
    pub(crate) tally: Tally,
}

impl Progress {
    /// A run that has not begun.
    pub(crate) fn begin(pair: &str, seeds: Range<u64>) -> Self {
        Self {
            pair: pair.to_owned(),
            next: seeds.start,
            seeds,
            seconds: 0,
            tally: Tally::default(),
        }
    }

    /// Goes on from what `save` left in a directory, which must be of the same pair and seeds.
    pub(crate) fn resume(&mut self, directory: &Path) -> anyhow::Result<()> {
        let path = directory.join(FILE);
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("nothing to resume: {}", path.display()))?;
        let (mut pair, mut numbers) = ("", Vec::new());
        for line in text.lines() {
            match line.split_once(' ') {
                Some(("pair", name)) => pair = name,
                Some((name, value)) => numbers.push((name.to_owned(), value.parse()?)),
                None => bail!("{}: {line:?}", path.display()),
            }
        }
        let find = |wanted: &str| {
            let found = numbers.iter().find(|(name, _)| name == wanted);
            found
                .map(|(_, value)| *value)
                .with_context(|| format!("{} lacks {wanted}", path.display()))
        };
        if pair != self.pair || (find("from")?..find("to")?) != self.seeds {
            bail!("{} is of another run", path.display());
        }
        self.next = find("next")?;
        self.seconds = find("seconds")?;
        for (name, field) in counts(&mut self.tally) {
            *field = find(name)?;
        }
        for (name, value) in &numbers {
            if let Some(vector) = name.strip_prefix("vector-") {
                self.tally.vectors.insert(vector.parse()?, *value);
            }
        }
        Ok(())
    }

    /// Writes the file.
    pub(crate) fn save(&mut self, directory: &Path) -> anyhow::Result<()> {
        let mut text = format!(
            "pair {}\nfrom {}\nto {}\nnext {}\nseconds {}\n",
            self.pair, self.seeds.start, self.seeds.end, self.next, self.seconds
        );
        for (name, field) in counts(&mut self.tally) {
            text += &format!("{name} {field}\n");
        }
        for (vector, count) in &self.tally.vectors {
            text += &format!("vector-{vector} {count}\n");
        }
        let new = directory.join("progress.new");
        std::fs::write(&new, text)?;
        std::fs::rename(new, directory.join(FILE))?;
        Ok(())
    }
}

fn counts(tally: &mut Tally) -> [(&'static str, &mut u64); 8] {
    [
        ("sequences", &mut tally.sequences),
        ("instructions", &mut tally.instructions),
        ("completed", &mut tally.completed),
        ("undecided", &mut tally.undecided),
        ("outside", &mut tally.outside),
        ("refused", &mut tally.refused),
        ("unsteady", &mut tally.unsteady),
        ("differences", &mut tally.differences),
    ]
}

impl Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.seconds.max(1);
        writeln!(
            f,
            "{} on {}: seeds {}..{} of {:?}, {seconds} s, {}/s",
            self.pair,
            host(),
            self.seeds.start,
            self.next,
            self.seeds,
            self.tally.sequences / seconds
        )?;
        write!(f, "{}", self.tally)
    }
}

/// Vendor, family, model, stepping and name of the host CPU.
pub(crate) fn host() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        text.lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(key, _)| key.trim() == name)
            .map_or("?", |(_, value)| value.trim())
            .to_owned()
    };
    format!(
        "{} family {} model {} stepping {} ({})",
        field("vendor_id"),
        field("cpu family"),
        field("model"),
        field("stepping"),
        field("model name")
    )
}
