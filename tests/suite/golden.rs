//! Golden files: the expected reports of a suite.
//!
//! A file is a sequence of blocks. `[name]` starts a case; a line `e0 vec=0xe err=0x2 ...` holds the
//! keys `e0.vec`, `e0.err`, ...; `end finished` the key `end`. Lines that start with `#` say what the
//! oracles said and are for readers.

use super::{Report, Suite};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

/// Where a suite's golden file is.
pub fn path(suite: &Suite) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("golden/system")
        .join(format!("{}.txt", suite.name))
}

/// The expected report of each case, by name.
pub fn parse(text: &str) -> BTreeMap<String, Report> {
    let mut cases: BTreeMap<String, Report> = BTreeMap::new();
    let mut name = String::new();
    for line in text.lines().map(str::trim) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(next) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            name = next.to_owned();
            cases.entry(name.clone()).or_default();
            continue;
        }
        let report = cases
            .get_mut(&name)
            .unwrap_or_else(|| panic!("golden line outside a case: {line}"));
        let (prefix, rest) = line.split_once(' ').unwrap_or((line, ""));
        if prefix == "end" {
            report.push(("end".to_owned(), rest.to_owned()));
            continue;
        }
        for pair in rest.split_whitespace() {
            let (key, value) = pair
                .split_once('=')
                .unwrap_or_else(|| panic!("golden word without '=': {line}"));
            report.push((format!("{prefix}.{key}"), value.to_owned()));
        }
    }
    cases
}

/// A block of a golden file.
pub fn block(name: &str, report: &Report, notes: &[String]) -> String {
    let mut text = format!("[{name}]\n");
    let mut prefix = "";
    for (key, value) in report {
        let Some((first, rest)) = key.split_once('.') else {
            let _ = write!(text, "{key} {value}");
            prefix = key;
            continue;
        };
        if first != prefix {
            let _ = write!(text, "\n{first}");
            prefix = first;
        }
        let _ = write!(text, " {rest}={value}");
    }
    text.push('\n');
    for note in notes {
        let _ = writeln!(text, "# {note}");
    }
    text.push('\n');
    text
}

/// The keys in which two reports differ: (key, expected, actual), `-` for a missing one.
pub fn differences(expected: &Report, actual: &Report) -> Vec<(String, String, String)> {
    let find = |report: &Report, key: &str| {
        report
            .iter()
            .find(|(k, _)| k == key)
            .map_or_else(|| "-".to_owned(), |(_, value)| value.clone())
    };
    let mut keys: Vec<&String> = expected.iter().map(|(key, _)| key).collect();
    keys.extend(
        actual
            .iter()
            .map(|(key, _)| key)
            .filter(|key| !expected.iter().any(|(k, _)| k == *key)),
    );
    keys.into_iter()
        .map(|key| (key.clone(), find(expected, key), find(actual, key)))
        .filter(|(_, expected, actual)| expected != actual)
        .collect()
}
