//! What a recording says about itself: JSON that the store keeps with its start.

use anyhow::{Context, Result, bail};
use machine::cpuid::CpuidTable;
use machine::saved::Blob;
use machine::saved::cpuid::SavedCpuid;
use serde::{Deserialize, Serialize};

/// What executed the guest while it was recorded: the evidence that a verified interval has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Accelerator {
    /// The translating engine.
    Engine,
    /// Hardware, through KVM.
    Kvm,
}

/// How positions were logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum PositionsKind {
    /// Exact counts.
    Count,
    /// Landmarks.
    Landmark,
}

impl Accelerator {
    /// In a sentence.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Engine => "the engine",
            Self::Kvm => "KVM",
        }
    }
}

impl PositionsKind {
    /// In a sentence.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Count => "count",
            Self::Landmark => "landmark",
        }
    }
}

/// How long intervals were meant to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum IntervalLength {
    /// In guest time.
    #[serde(rename = "ns")]
    Time(u64),
    /// In instructions.
    #[serde(rename = "insns")]
    Insns(u64),
}

/// What a recording says about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Note {
    pub(crate) version: u32,
    pub(crate) program: String,
    pub(crate) accel: Accelerator,
    pub(crate) clock: String,
    pub(crate) positions: PositionsKind,
    pub(crate) interval: IntervalLength,
    pub(crate) memory_bytes: u64,
    pub(crate) kernel: String,
    pub(crate) initrd: Option<String>,
    pub(crate) command_line: String,
    /// The CPUID table's blob, in hexadecimal.
    pub(crate) cpuid: String,
    /// Which processor recorded, `host.rs`. Absent in recordings of earlier builds.
    #[serde(default)]
    pub(crate) host: Option<serde_json::Value>,
    /// What the guest read of a time stamp counter that the processor held still. Absent where it did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) frozen_tsc: Option<u64>,
}

impl Note {
    /// The version that this build writes, and the newest that it reads.
    pub(crate) const VERSION: u32 = 1;

    /// The bytes that the store keeps.
    pub(crate) fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a note is plain data")
    }

    /// Reads a note.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let not_ours =
            "this is no recording of a guest: it has no note that says what was recorded";
        let Version { version } = serde_json::from_slice(bytes).context(not_ours)?;
        if version != Self::VERSION {
            bail!(
                "the recording's note has version {version}, this build reads version {}",
                Self::VERSION
            );
        }
        serde_json::from_slice(bytes).context("the recording's note is malformed")
    }

    /// How the CPUID table is written here.
    pub(crate) fn cpuid_text(table: &CpuidTable) -> String {
        let blob = table.save().to_blob();
        blob.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The CPUID table that the guest saw.
    pub(crate) fn cpuid(&self) -> Result<CpuidTable> {
        let digits = self.cpuid.as_bytes();
        let bytes: Option<Vec<u8>> = digits.chunks(2).map(hexadecimal_byte).collect();
        let bytes = bytes.context("the CPUID table of the recording is not hexadecimal")?;
        let saved = SavedCpuid::from_blob(&bytes).context("the recording's CPUID table")?;
        CpuidTable::restore(&saved).context("the recording's CPUID table")
    }
}

fn hexadecimal_byte(digits: &[u8]) -> Option<u8> {
    let text = std::str::from_utf8(digits).ok()?;
    (digits.len() == 2)
        .then(|| u8::from_str_radix(text, 16).ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note() -> Note {
        Note {
            version: Note::VERSION,
            program: "sbctl".into(),
            accel: Accelerator::Engine,
            clock: "insn".into(),
            positions: PositionsKind::Count,
            interval: IntervalLength::Time(5),
            memory_bytes: 4096,
            kernel: "k".into(),
            initrd: None,
            command_line: String::new(),
            cpuid: Note::cpuid_text(&CpuidTable::x86_64_v2()),
            host: Some(serde_json::json!({"version": 9})),
            frozen_tsc: Some(7),
        }
    }

    #[test]
    fn notes_survive_and_carry_the_cpuid_table() {
        let note = note();
        let again = Note::decode(&note.encode()).unwrap();
        assert_eq!(again, note);
        assert_eq!(again.cpuid().unwrap(), CpuidTable::x86_64_v2());
    }

    #[test]
    fn other_notes_are_refused() {
        let newer = br#"{"version": 2, "anything": true}"#;
        let error = Note::decode(newer).unwrap_err().to_string();
        assert!(error.contains("version 2"), "{error}");
        for bad in [&b""[..], b"{}", b"text", br#"{"version": 1}"#] {
            assert!(Note::decode(bad).is_err());
        }
        for cpuid in ["", "0", "zz", "00"] {
            let mut note = note();
            note.cpuid = cpuid.into();
            assert!(note.cpuid().is_err(), "{cpuid:?}");
        }
    }
}
