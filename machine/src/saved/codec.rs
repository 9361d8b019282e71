//! The encoding of saved state: little-endian integers, one after the other, without padding.

/// Why bytes are not a saved state.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes end too early.
    #[error("the saved state ends at byte {offset}, where {wanted} more bytes are due")]
    Truncated {
        /// Where the missing item starts.
        offset: usize,
        /// Its length.
        wanted: usize,
    },
    /// Not one of our blobs.
    #[error("not a machine state: the first eight bytes are {found:02x?}")]
    Magic {
        /// What is there instead of the magic.
        found: [u8; 8],
    },
    /// A blob of another kind.
    #[error("a saved state of kind {found} where kind {expected} is due")]
    Kind {
        /// Kind asked for.
        expected: u16,
        /// Kind found.
        found: u16,
    },
    /// Written by another version of this program.
    #[error(
        "saved state version {found}, where this program reads version {supported}: use the version \
         of SimuBoost that wrote it, or record again"
    )]
    Version {
        /// Version found.
        found: u16,
        /// The version that can be read.
        supported: u16,
    },
    /// Bytes are left over.
    #[error("{extra} bytes too many from byte {offset} of the saved state")]
    Trailing {
        /// First byte that has no meaning.
        offset: usize,
        /// How many.
        extra: usize,
    },
    /// CPU state with components that this program does not know, or without some that it needs.
    #[error(
        "CPU state components {found:#x}, where this program reads {expected:#x}: use the version of \
         SimuBoost that wrote it, or record again"
    )]
    Components {
        /// Bitmap found.
        found: u64,
        /// Bitmap of the components that this program holds.
        expected: u64,
    },
    /// A field with a value that it cannot have.
    #[error("byte {offset} of the saved state: impossible {what}")]
    Value {
        /// Where the field starts.
        offset: usize,
        /// Which field or type.
        what: &'static str,
    },
}

/// Reads items from the front.
#[derive(Debug)]
pub struct Decoder<'a> {
    bytes: &'a [u8],
    offset: usize,
    /// Where `bytes` starts within the whole, for messages.
    start: usize,
}

impl<'a> Decoder<'a> {
    /// Starts at the first byte.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self::at(0, bytes)
    }

    /// Starts at the first of `bytes`, which is at offset `start` of the whole.
    pub fn at(start: usize, bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            offset: 0,
            start,
        }
    }

    /// Offset of the next byte within the whole.
    pub fn offset(&self) -> usize {
        self.start + self.offset
    }

    /// The next `count` bytes.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`].
    pub fn bytes(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        let rest = &self.bytes[self.offset..];
        let taken = rest.get(..count).ok_or_else(|| DecodeError::Truncated {
            offset: self.offset(),
            wanted: count - rest.len(),
        })?;
        self.offset += count;
        Ok(taken)
    }

    /// Ends the decoding.
    ///
    /// # Errors
    /// [`DecodeError::Trailing`] if bytes are left.
    pub fn finish(self) -> Result<(), DecodeError> {
        match self.bytes.len() - self.offset {
            0 => Ok(()),
            extra => Err(DecodeError::Trailing {
                offset: self.offset(),
                extra,
            }),
        }
    }
}

/// A type with an encoding.
pub trait Code: Sized {
    /// Appends the encoding.
    fn encode(&self, into: &mut Vec<u8>);

    /// Reads one value.
    ///
    /// # Errors
    /// [`DecodeError`]; nothing is known about the decoder's offset then.
    fn decode(from: &mut Decoder<'_>) -> Result<Self, DecodeError>;
}

macro_rules! integers {
    ($($type:ty),*) => {$(
        impl Code for $type {
            fn encode(&self, into: &mut Vec<u8>) {
                into.extend_from_slice(&self.to_le_bytes());
            }
            fn decode(from: &mut Decoder<'_>) -> Result<Self, DecodeError> {
                let bytes = from.bytes(size_of::<$type>())?;
                Ok(<$type>::from_le_bytes(
                    bytes.try_into().expect("as many bytes as asked for"),
                ))
            }
        }
    )*};
}

integers!(u8, u16, u32, u64, u128, i64);

impl Code for bool {
    fn encode(&self, into: &mut Vec<u8>) {
        into.push(u8::from(*self));
    }
    fn decode(from: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        let offset = from.offset();
        match u8::decode(from)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(DecodeError::Value {
                offset,
                what: "truth value",
            }),
        }
    }
}

impl<T: Code> Code for Option<T> {
    fn encode(&self, into: &mut Vec<u8>) {
        self.is_some().encode(into);
        if let Some(value) = self {
            value.encode(into);
        }
    }
    fn decode(from: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        bool::decode(from)?.then(|| T::decode(from)).transpose()
    }
}

impl<T: Code, const N: usize> Code for [T; N] {
    fn encode(&self, into: &mut Vec<u8>) {
        self.iter().for_each(|item| item.encode(into));
    }
    fn decode(from: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        let items: Result<Vec<T>, _> = (0..N).map(|_| T::decode(from)).collect();
        Ok(items?
            .try_into()
            .unwrap_or_else(|_| unreachable!("exactly N items were decoded")))
    }
}

/// A count of items (u32), then the items.
impl<T: Code> Code for Vec<T> {
    fn encode(&self, into: &mut Vec<u8>) {
        let count = u32::try_from(self.len()).expect("saved lists have far less than 2^32 items");
        count.encode(into);
        self.iter().for_each(|item| item.encode(into));
    }
    fn decode(from: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        let count = u32::decode(from)?;
        // Grows as items are really there: a damaged count allocates nothing.
        (0..count).map(|_| T::decode(from)).collect()
    }
}

/// Declares a saved type: its fields are encoded in the order of declaration.
macro_rules! saved {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $type,)*
        }

        impl $crate::saved::codec::Code for $name {
            fn encode(&self, into: &mut Vec<u8>) {
                let Self { $($field),* } = self;
                $($crate::saved::codec::Code::encode($field, into);)*
            }
            fn decode(
                from: &mut $crate::saved::codec::Decoder<'_>,
            ) -> Result<Self, $crate::saved::codec::DecodeError> {
                Ok(Self { $($field: $crate::saved::codec::Code::decode(from)?,)* })
            }
        }
    };
}
pub(crate) use saved;
