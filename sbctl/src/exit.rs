//! How the program ends.

use crate::interrupt::Interrupted;
use kvm_recorder::RecordError;
use machine::vcpu::VcpuError;
use std::process::ExitCode;

/// What a command came to; each has its exit code. 2 is a usage error, which the parser reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// 0: done.
    Done,
    /// 1: it was tried and failed.
    Failed,
    /// 3: a divergence, damage, or an interval that could not be verified.
    Unverified,
    /// 130: Ctrl-C ended it.
    Interrupted,
}

/// What was asked for makes no sense, though it parses.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Usage(pub(crate) String);

const USAGE: u8 = 2;

impl Exit {
    /// The exit code.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Unverified => 3,
            Self::Interrupted => 130,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// The exit code of an error: that of the first cause that has one of its own.
pub(crate) fn code_of(error: &anyhow::Error) -> u8 {
    let codes = error.chain().filter_map(|cause| {
        if cause.is::<Usage>() {
            return Some(USAGE);
        }
        if cause.is::<Interrupted>() {
            return Some(Exit::Interrupted.code());
        }
        let diverged = matches!(
            cause.downcast_ref::<RecordError>(),
            Some(RecordError::Vcpu(VcpuError::Diverged(_)))
        );
        if diverged {
            return Some(Exit::Unverified.code());
        }
        let store = cause.downcast_ref::<checkpoint_dedup::Error>();
        if matches!(store, Some(checkpoint_dedup::Error::Interrupted)) {
            return Some(Exit::Interrupted.code());
        }
        store
            .filter(|error| error.is_damage())
            .map(|_| Exit::Unverified.code())
    });
    codes.into_iter().next().unwrap_or(Exit::Failed.code())
}

/// An error and its causes, each once: some name their own cause.
pub(crate) fn words(error: &anyhow::Error) -> String {
    let mut words = String::new();
    for cause in error.chain().map(ToString::to_string) {
        match words.as_str() {
            "" => words = cause,
            before if before.ends_with(&cause) => {}
            _ => words = format!("{words}: {cause}"),
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use checkpoint_dedup::{Error, FormatError};

    #[test]
    fn a_cause_is_told_once() {
        let cause = || std::io::Error::other("no space");
        let told = anyhow::Error::new(cause()).context("cannot write x: no space");
        assert_eq!(words(&told), "cannot write x: no space");
        let untold = anyhow::Error::new(cause()).context("cannot write x");
        assert_eq!(
            words(&untold.context("recording")),
            "recording: cannot write x: no space"
        );
    }

    #[test]
    fn errors_have_the_documented_codes() {
        let damaged = Error::Damaged {
            path: "packs/ab".into(),
            source: FormatError::Checksum,
        };
        let diverged = RecordError::Vcpu(VcpuError::Diverged("x".into()));
        let rows = [
            (anyhow::Error::new(diverged), 3),
            (anyhow::Error::new(Usage("no".into())), 2),
            (anyhow::Error::new(Interrupted), 130),
            (anyhow::Error::new(damaged).context("reading"), 3),
            (anyhow::Error::new(Error::Interrupted), 130),
            (anyhow::Error::new(Error::Refused("x".into())), 1),
            (anyhow::anyhow!("anything"), 1),
        ];
        for (error, code) in rows {
            assert_eq!(code_of(&error), code, "{error:#}");
        }
    }
}
