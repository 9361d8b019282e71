//! One thing that was tried.

use serde::Serialize;
use serde_json::{Map, Value};
use std::fmt;

/// How it went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Status {
    /// As it should be.
    Ok,
    /// It works, but there is something better.
    Limited,
    /// It does not work.
    No,
    /// Not tried.
    Skipped,
}

/// What was tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Group {
    Kvm,
    Host,
    Rounds,
}

impl Group {
    pub(super) const ALL: [Self; 3] = [Self::Kvm, Self::Host, Self::Rounds];

    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Kvm => "KVM",
            Self::Host => "This host",
            Self::Rounds => "A built-in guest, recorded and verified",
        }
    }
}

/// One thing that was tried.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Check {
    pub(super) id: &'static str,
    pub(super) group: Group,
    pub(super) status: Status,
    /// What was found, in a sentence.
    pub(super) finding: String,
    /// What would make it better.
    pub(super) advice: Option<String>,
    /// Numbers and names behind the finding.
    pub(super) measured: Map<String, Value>,
}

impl Check {
    fn new(group: Group, id: &'static str, status: Status, finding: impl Into<String>) -> Self {
        Self {
            id,
            group,
            status,
            finding: finding.into(),
            advice: None,
            measured: Map::new(),
        }
    }

    pub(super) fn ok(group: Group, id: &'static str, finding: impl Into<String>) -> Self {
        Self::new(group, id, Status::Ok, finding)
    }

    pub(super) fn limited(group: Group, id: &'static str, finding: impl Into<String>) -> Self {
        Self::new(group, id, Status::Limited, finding)
    }

    pub(super) fn no(group: Group, id: &'static str, finding: impl Into<String>) -> Self {
        Self::new(group, id, Status::No, finding)
    }

    pub(super) fn skipped(group: Group, id: &'static str, finding: impl Into<String>) -> Self {
        Self::new(group, id, Status::Skipped, finding)
    }

    #[must_use]
    pub(super) fn advise(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }

    #[must_use]
    pub(super) fn measured(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.measured.insert(name.to_owned(), value.into());
        self
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let status = match self.status {
            Status::Ok => "ok",
            Status::Limited => "limited",
            Status::No => "NO",
            Status::Skipped => "-",
        };
        let Self { id, finding, .. } = self;
        writeln!(f, "  {status:<8} {id:<16} {finding}")?;
        match &self.advice {
            Some(advice) => writeln!(f, "{:27} -> {advice}", ""),
            None => Ok(()),
        }
    }
}
