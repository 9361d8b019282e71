//! The processor that recorded: who made it, and what it does where the architecture leaves it open.
//! Part of a recording's note, with a version of its own (`docs/format/recording.md`).
//!
//! A note comes from wherever its recording does, so nothing of it is believed: what is longer than
//! any build writes is malformed, and only characters that a terminal shows are printed.

use crate::environment::visible;
use anyhow::{Result, bail};
use checkpoint_dedup::RecordingName;
use clap::Args;
use machine::conformance::{self, KINDS, Kind, Results, Unsteady};
use machine::cpuid::{Identity, vendor_of_host};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;

/// The version of the record.
const VERSION: u64 = 1;
/// Most results that a record may have, of whatever version of the measuring program, and the
/// longest name of one.
const MOST_RESULTS: usize = 64;
const LONGEST_NAME: usize = 32;
const VENDOR_BYTES: usize = 12;

/// The processor that a recording was made on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HostRecord {
    version: u64,
    vendor: String,
    family: u32,
    model: u32,
    stepping: u32,
    /// Of the program that measured `results`.
    results_version: u32,
    /// Results by the names of their kinds: 64 bits in hexadecimal.
    results: BTreeMap<String, String>,
}

/// What can be said of the processor that a recording was made on, next to this host's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "verdict", rename_all = "lowercase")]
pub(crate) enum HostMatch {
    /// It gives the same results.
    Same {
        /// In a few words.
        processor: String,
    },
    /// The recording does not say: it was made by an earlier build.
    Unknown,
    /// It differs, or there is no way to tell.
    Differs {
        /// In a few words; absent if the record cannot be read.
        processor: Option<String>,
        /// In what.
        differs: Vec<String>,
    },
}

/// Option of the commands that simulate.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct HostArguments {
    /// Simulate even if this host's processor differs from the one that recorded
    #[arg(long)]
    allow_host_mismatch: bool,
}

impl HostRecord {
    /// That of this host.
    ///
    /// # Errors
    /// Its processors do not give the same results twice.
    pub(crate) fn of_here() -> Result<Self, Unsteady> {
        let results = Results::of_host()?;
        let identity = Identity::of_host();
        let named = KINDS.iter().zip(results.numbers);
        Ok(Self {
            version: VERSION,
            vendor: String::from_utf8_lossy(&vendor_of_host()).into_owned(),
            family: identity.family(),
            model: identity.model(),
            stepping: identity.stepping(),
            results_version: conformance::VERSION,
            results: named
                .map(|(kind, number)| (kind.name.to_owned(), format!("{number:016x}")))
                .collect(),
        })
    }

    /// As it stands in a note.
    pub(crate) fn encode(&self) -> Value {
        serde_json::to_value(self).expect("a record is plain data")
    }

    /// Reads a record.
    ///
    /// # Errors
    /// Why it cannot be read, in words that hold nothing of the record but numbers.
    fn decode(value: &Value) -> Result<Self, String> {
        let malformed = || "the recording's record of its host is malformed".to_owned();
        let version = value.get("version").and_then(Value::as_u64);
        match version.ok_or_else(malformed)? {
            VERSION => {}
            version => {
                return Err(format!(
                    "the recording's record of its host has version {version}, this build reads \
                     version {VERSION}"
                ));
            }
        }
        let record = Self::deserialize(value).map_err(|_| malformed())?;
        match record.is_plausible() {
            true => Ok(record),
            false => Err(malformed()),
        }
    }

    fn is_plausible(&self) -> bool {
        let named = |name: &str| {
            name.len() <= LONGEST_NAME
                && name
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        };
        let number =
            |text: &str| text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        self.vendor.len() <= VENDOR_BYTES
            && self
                .vendor
                .bytes()
                .all(|byte| (b' '..=b'~').contains(&byte))
            && self.results.len() <= MOST_RESULTS
            && self
                .results
                .iter()
                .all(|(name, result)| named(name) && number(result))
    }

    /// Vendor, family, model and stepping.
    fn processor(&self) -> String {
        let Self {
            vendor,
            family,
            model,
            stepping,
            ..
        } = self;
        format!("{vendor} family {family} model {model} stepping {stepping}")
    }

    /// In what two processors differ.
    fn differing_from(&self, here: &Self) -> Vec<String> {
        let mut differs = Vec::new();
        if self.vendor != here.vendor {
            differs.push(format!(
                "the vendor: {} recorded, this is {}",
                self.vendor, here.vendor
            ));
        }
        if self.results_version == here.results_version {
            let other = |kind: &&Kind| self.results.get(kind.name) != here.results.get(kind.name);
            differs.extend(KINDS.iter().filter(other).map(|kind| kind.what.to_owned()));
        } else if self.processor() != here.processor() {
            differs.push(format!(
                "perhaps what the architecture leaves open: its results were measured by version \
                 {} of the measuring program and cannot be compared with those of version {}",
                self.results_version, here.results_version
            ));
        }
        differs
    }
}

impl HostMatch {
    /// Compares the record of a note with this host.
    pub(crate) fn of(record: Option<&Value>) -> Self {
        let Some(record) = record else {
            return Self::Unknown;
        };
        let unlike = |why| Self::Differs {
            processor: None,
            differs: vec![why],
        };
        match (HostRecord::decode(record), HostRecord::of_here()) {
            (Ok(record), Ok(here)) => Self::between(&record, &here),
            (Err(why), _) => unlike(why),
            (_, Err(unsteady)) => unlike(unsteady.to_string()),
        }
    }

    /// Whether a recording may be simulated here; says what is to be said on standard error.
    ///
    /// # Errors
    /// This host differs, and that was not allowed.
    pub(crate) fn admit(&self, name: &RecordingName, arguments: HostArguments) -> Result<()> {
        match self {
            Self::Same { .. } => {}
            Self::Unknown => eprintln!(
                "sbctl: an earlier build made recording {name} and did not note on which processor: \
                 if intervals do not verify, this host may differ"
            ),
            Self::Differs { .. } if arguments.allow_host_mismatch => eprintln!(
                "sbctl: recording {name} was made on another processor: {}\n\
                 intervals in which the guest meets these differences do not verify",
                visible(&self.to_string())
            ),
            Self::Differs { .. } => bail!(
                "recording {name} was made on another processor: {self}\n\
                 simulate it on a host like that one, or try with --allow-host-mismatch: intervals \
                 in which the guest meets these differences do not verify"
            ),
        }
        Ok(())
    }

    fn between(record: &HostRecord, here: &HostRecord) -> Self {
        let differs = record.differing_from(here);
        let processor = record.processor();
        match differs.is_empty() {
            true => Self::Same { processor },
            false => Self::Differs {
                processor: Some(processor),
                differs,
            },
        }
    }
}

impl fmt::Display for HostMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Same { processor } => {
                write!(f, "{processor}; this host gives the same results")
            }
            Self::Unknown => f.write_str("unknown: an earlier build recorded"),
            Self::Differs { processor, differs } => {
                let processor = processor.as_deref().unwrap_or("unknown");
                write!(f, "{processor}; this host differs in")?;
                differs
                    .iter()
                    .try_for_each(|what| write!(f, "\n    {what}"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn here() -> HostRecord {
        HostRecord::of_here().unwrap()
    }

    /// What differs between a changed record and this host.
    fn differs(value: &Value) -> Vec<String> {
        match HostMatch::of(Some(value)) {
            HostMatch::Differs { differs, .. } => differs,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn this_host_is_like_itself() {
        let value = here().encode();
        assert_eq!(HostRecord::decode(&value).unwrap(), here());
        let same = HostMatch::of(Some(&value));
        assert!(matches!(same, HostMatch::Same { .. }), "{same:?}");
        assert_eq!(HostMatch::of(None), HostMatch::Unknown);
    }

    #[test]
    fn what_differs_is_named() {
        let mut value = here().encode();
        value["vendor"] = "CentaurHauls".into();
        value["results"]["shifts"] = "0000000000000000".into();
        let differs = differs(&value);
        assert_eq!(differs.len(), 2);
        assert!(differs[0].contains("CentaurHauls"), "{differs:?}");
        assert!(differs[1].contains("SHLD"), "{differs:?}");
    }

    #[test]
    fn another_model_with_the_same_results_is_the_same() {
        let mut value = here().encode();
        value["model"] = 1.into();
        let same = HostMatch::of(Some(&value));
        assert!(matches!(same, HostMatch::Same { .. }), "{same:?}");
        // But not where the results cannot be compared.
        value["results_version"] = 2.into();
        assert!(differs(&value)[0].contains("version 2"));
        value["model"] = here().model.into();
        let same = HostMatch::of(Some(&value));
        assert!(matches!(same, HostMatch::Same { .. }), "{same:?}");
    }

    #[test]
    fn a_missing_result_differs() {
        let mut value = here().encode();
        let results = value["results"].as_object_mut().unwrap();
        results.remove("division");
        assert!(differs(&value)[0].contains("DIV"));
    }

    #[test]
    fn forged_records_are_refused_and_say_nothing_of_their_own() {
        let change = |what: &str, to: Value| {
            let mut value = here().encode();
            value[what] = to;
            value
        };
        let many: BTreeMap<String, &str> = (0..100_000)
            .map(|n| (format!("n{n}"), "0000000000000000"))
            .collect();
        let rows = [
            (json!(null), "malformed"),
            (json!([]), "malformed"),
            (json!({}), "malformed"),
            (json!({"version": 1}), "malformed"),
            (json!({"version": -1}), "malformed"),
            (
                json!({"version": 18446744073709551615_u64}),
                "has version 18446744073709551615",
            ),
            (change("version", 2.into()), "has version 2"),
            (change("vendor", "x".repeat(1 << 20).into()), "malformed"),
            (change("vendor", "\x1b[2Jx".into()), "malformed"),
            (change("vendor", 7.into()), "malformed"),
            (change("family", (1_u64 << 40).into()), "malformed"),
            (change("results", json!(many)), "malformed"),
            (
                change("results", json!({"shifts": "0".repeat(1 << 20)})),
                "malformed",
            ),
            (
                change("results", json!({"\x1b[2J": "0000000000000000"})),
                "malformed",
            ),
            (
                change("results", json!({"shifts": "x".repeat(16)})),
                "malformed",
            ),
        ];
        for (value, expected) in rows {
            let differs = differs(&value);
            assert_eq!(differs.len(), 1);
            assert!(differs[0].contains(expected), "{differs:?}");
            assert!(differs[0].len() < 200, "{differs:?}");
        }
    }
}
