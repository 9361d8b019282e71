//! Quantities on the command line: sizes, durations, counts.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// What is wrong with a quantity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum QuantityError {
    #[error("not a number with one of the units {units}")]
    Form { units: &'static str },
    #[error("too large")]
    TooLarge,
}

/// Splits a decimal number from the unit behind it and multiplies with what `factor` says.
fn scaled(
    text: &str,
    units: &'static str,
    factor: impl Fn(&str) -> Option<u64>,
) -> Result<u64, QuantityError> {
    let form = || QuantityError::Form { units };
    let split = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    if number.is_empty() {
        return Err(form());
    }
    let factor = factor(unit).ok_or_else(form)?;
    let number: u64 = number.parse().map_err(|_| QuantityError::TooLarge)?;
    number.checked_mul(factor).ok_or(QuantityError::TooLarge)
}

/// Bytes: `512M`, `2G`, `65536`. Units are powers of 1024.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ByteSize(pub(crate) u64);

impl FromStr for ByteSize {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        scaled(text, "K, M, G", |unit| match unit {
            "" => Some(1),
            "K" | "KiB" => Some(1 << 10),
            "M" | "MiB" => Some(1 << 20),
            "G" | "GiB" => Some(1 << 30),
            _ => None,
        })
        .map(Self)
    }
}

/// A count: `500M`, `2000000`. Units are powers of 1000.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Count(pub(crate) u64);

impl FromStr for Count {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        scaled(text, "K, M, G", |unit| match unit {
            "" => Some(1),
            "K" | "k" => Some(1_000),
            "M" => Some(1_000_000),
            "G" => Some(1_000_000_000),
            _ => None,
        })
        .map(Self)
    }
}

/// A duration: `30s`, `250ms`, `5m`, `1h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span(pub(crate) Duration);

impl FromStr for Span {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        scaled(text, "ns, us, ms, s, m, h", |unit| match unit {
            "ns" => Some(1),
            "us" => Some(1_000),
            "ms" => Some(1_000_000),
            "s" => Some(1_000_000_000),
            "m" => Some(60_000_000_000),
            "h" => Some(3_600_000_000_000),
            _ => None,
        })
        .map(|nanos| Self(Duration::from_nanos(nanos)))
    }
}

/// A number with its thousands set apart, as people read it.
pub(crate) struct Grouped(pub(crate) u64);

impl fmt::Display for Grouped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.0.to_string();
        let head = digits.len() % 3;
        let (head, tail) = digits.split_at(head);
        f.write_str(head)?;
        for (index, group) in tail.as_bytes().chunks(3).enumerate() {
            if index > 0 || !head.is_empty() {
                f.write_str(",")?;
            }
            f.write_str(std::str::from_utf8(group).expect("digits are ASCII"))?;
        }
        Ok(())
    }
}

/// Bytes, as people read them: three digits and a binary unit.
pub(crate) struct Bytes(pub(crate) u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut value = self.0 as f64;
        let mut units = ["KiB", "MiB", "GiB", "TiB"].into_iter();
        let Some(mut unit) = units.next().filter(|_| self.0 >= 1024) else {
            return write!(f, "{} B", self.0);
        };
        value /= 1024.0;
        while value >= 1024.0
            && let Some(next) = units.next()
        {
            (value, unit) = (value / 1024.0, next);
        }
        match value {
            100.0.. => write!(f, "{value:.0} {unit}"),
            10.0.. => write!(f, "{value:.1} {unit}"),
            _ => write!(f, "{value:.2} {unit}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_with_their_units() {
        assert_eq!("512M".parse(), Ok(ByteSize(512 << 20)));
        assert_eq!("4096".parse(), Ok(ByteSize(4096)));
        assert_eq!("2GiB".parse(), Ok(ByteSize(2 << 30)));
        assert_eq!("500M".parse(), Ok(Count(500_000_000)));
        assert_eq!("90s".parse(), Ok(Span(Duration::from_secs(90))));
        assert_eq!("250ms".parse(), Ok(Span(Duration::from_millis(250))));
    }

    #[test]
    fn what_is_no_quantity_is_refused() {
        for text in ["", "M", "-1", "1.5G", "12x", "1 G"] {
            assert!(
                matches!(text.parse::<ByteSize>(), Err(QuantityError::Form { .. })),
                "{text:?}"
            );
        }
        assert!("5".parse::<Span>().is_err(), "a duration needs its unit");
        assert_eq!(
            "99999999999G".parse::<ByteSize>(),
            Err(QuantityError::TooLarge)
        );
        assert_eq!(
            "99999999999999999999".parse::<Count>(),
            Err(QuantityError::TooLarge)
        );
    }

    #[test]
    fn bytes_have_three_digits_and_a_unit() {
        for (bytes, text) in [
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (10_240, "10.0 KiB"),
            (512 << 20, "512 MiB"),
            (u64::MAX, "16777216 TiB"),
        ] {
            assert_eq!(Bytes(bytes).to_string(), text);
        }
    }

    #[test]
    fn digits_are_grouped() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (1234567, "1,234,567"),
        ] {
            assert_eq!(Grouped(number).to_string(), text);
        }
    }
}
