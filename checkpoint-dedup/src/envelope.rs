//! What stands around every small object: magic, version, length, body, checksum.
//!
//! ```text
//!  0  8  magic           20  n  body
//!  8  4  version         20+n  32  BLAKE3 of all before
//! 12  8  n
//! ```

use crate::error::FormatError;
use crate::wire::{Input, Output};

const HEADER: usize = 20;
const CHECKSUM: usize = 32;

/// A kind of object: its magic, its newest version, and its name in messages.
pub(crate) struct Kind {
    pub(crate) magic: [u8; 8],
    pub(crate) version: u32,
    pub(crate) name: &'static str,
}

pub(crate) const CONFIG: Kind = Kind {
    magic: *b"SBCONFIG",
    version: 1,
    name: "configuration",
};
pub(crate) const PACK: Kind = Kind {
    magic: *b"SBPACK\r\n",
    version: 1,
    name: "pack",
};
pub(crate) const INDEX: Kind = Kind {
    magic: *b"SBINDEX\n",
    version: 1,
    name: "index segment",
};
pub(crate) const START: Kind = Kind {
    magic: *b"SBSTART\n",
    version: 1,
    name: "recording",
};
pub(crate) const END: Kind = Kind {
    magic: *b"SBEND\r\n\0",
    version: 1,
    name: "end of recording",
};
pub(crate) const CHECKPOINT: Kind = Kind {
    magic: *b"SBCKPT\r\n",
    version: 1,
    name: "checkpoint manifest",
};
pub(crate) const LOG: Kind = Kind {
    magic: *b"SBLOG\r\n\0",
    version: 1,
    name: "log segment",
};
pub(crate) const CONDEMNED: Kind = Kind {
    magic: *b"SBCOND\r\n",
    version: 1,
    name: "list of condemned packs",
};
/// An entry of the catalogue.
pub(crate) const FACTS: Kind = Kind {
    magic: *b"SBFACT\r\n",
    version: 1,
    name: "catalogue entry",
};
pub(crate) const LOCK: Kind = Kind {
    magic: *b"SBLOCK\r\n",
    version: 1,
    name: "lock",
};

/// Wraps a body.
pub(crate) fn seal(kind: &Kind, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER + body.len() + CHECKSUM);
    out.extend_from_slice(&kind.magic);
    out.put_u32(kind.version);
    out.put_u64(body.len() as u64);
    out.extend_from_slice(body);
    let checksum = blake3::hash(&out);
    out.extend_from_slice(checksum.as_bytes());
    out
}

/// Unwraps a body. Magic and version are judged before the checksum, so that an object of a newer
/// program is named as such.
pub(crate) fn open<'a>(kind: &Kind, bytes: &'a [u8]) -> Result<&'a [u8], FormatError> {
    let mut input = Input::new(bytes);
    check_head(kind, &mut input)?;
    let length = input.u64()?;
    if length != (input.remaining() as u64).wrapping_sub(CHECKSUM as u64) {
        return Err(input.malformed("length"));
    }
    let body = input.take(length as usize)?;
    let (sealed, checksum) = bytes.split_at(HEADER + body.len());
    if blake3::hash(sealed).as_bytes() != checksum {
        return Err(FormatError::Checksum);
    }
    Ok(body)
}

/// Reads magic and version and judges them.
pub(crate) fn check_head(kind: &Kind, input: &mut Input<'_>) -> Result<(), FormatError> {
    let actual = input.array()?;
    if actual != kind.magic {
        return Err(FormatError::Magic {
            expected: kind.name,
            actual,
        });
    }
    let version = input.u32()?;
    if version == 0 || version > kind.version {
        return Err(FormatError::Version {
            kind: kind.name,
            version,
            newest: kind.version,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_byte_and_every_cut_is_found() {
        let sealed = seal(&LOG, b"some body");
        assert_eq!(open(&LOG, &sealed).unwrap(), b"some body");
        for i in 0..sealed.len() {
            let mut bad = sealed.clone();
            bad[i] ^= 0x10;
            assert!(open(&LOG, &bad).is_err(), "byte {i}");
            assert!(open(&LOG, &sealed[..i]).is_err(), "cut {i}");
        }
    }

    #[test]
    fn a_newer_version_is_named_with_what_to_do() {
        let mut sealed = seal(&LOG, b"");
        sealed[8] = 9;
        let message = open(&LOG, &sealed).unwrap_err().to_string();
        assert!(
            message.contains("version 9") && message.contains("newer sbctl"),
            "{message}"
        );
    }
}
