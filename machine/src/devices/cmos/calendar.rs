//! The proleptic Gregorian calendar.

/// A civil date and time in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Civil {
    pub(super) year: i64,
    /// 1 to 12.
    pub(super) month: u8,
    /// 1 to 31.
    pub(super) day: u8,
    pub(super) hour: u8,
    pub(super) minute: u8,
    pub(super) second: u8,
    /// 1 is Sunday.
    pub(super) weekday: u8,
}

pub(super) const SECONDS_PER_DAY: i64 = 86_400;

/// Days from 0000-03-01 to 1970-01-01.
const EPOCH_DAYS: i64 = 719_468;
const DAYS_PER_ERA: i64 = 146_097;

/// Days since 1970-01-01. Years are counted from March, so that leap days end them.
fn days(year: i64, month: u8, day: u8) -> i64 {
    let march_month = (i64::from(month) + 9) % 12;
    let march_year = year - i64::from(month <= 2);
    let era = march_year.div_euclid(400);
    let year_of_era = march_year.rem_euclid(400);
    let day_of_year = (153 * march_month + 2) / 5 + i64::from(day) - 1;
    era * DAYS_PER_ERA + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year
        - EPOCH_DAYS
}

impl Civil {
    /// From seconds since 1970-01-01T00:00:00Z.
    pub(super) fn from_unix(seconds: i64) -> Self {
        let of_day = seconds.rem_euclid(SECONDS_PER_DAY);
        let day_number = seconds.div_euclid(SECONDS_PER_DAY);
        let since_march_0 = day_number + EPOCH_DAYS;
        let era = since_march_0.div_euclid(DAYS_PER_ERA);
        let of_era = since_march_0.rem_euclid(DAYS_PER_ERA);
        let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let march_month = (5 * of_year + 2) / 153;
        let month = (march_month + 2) % 12 + 1;
        Self {
            year: era * 400 + year_of_era + i64::from(month <= 2),
            month: month as u8,
            day: (of_year - (153 * march_month + 2) / 5 + 1) as u8,
            hour: (of_day / 3600) as u8,
            minute: (of_day / 60 % 60) as u8,
            second: (of_day % 60) as u8,
            weekday: ((day_number + 4).rem_euclid(7) + 1) as u8,
        }
    }

    /// Seconds since 1970-01-01T00:00:00Z; the weekday does not matter.
    pub(super) fn to_unix(self) -> i64 {
        days(self.year, self.month, self.day) * SECONDS_PER_DAY
            + i64::from(self.hour) * 3600
            + i64::from(self.minute) * 60
            + i64::from(self.second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_dates() {
        let leap = Civil::from_unix(951_782_400);
        assert_eq!((leap.year, leap.month, leap.day), (2000, 2, 29));
        assert_eq!(leap.weekday, 3);
        let start = Civil::from_unix(1_767_225_599);
        assert_eq!((start.year, start.month, start.day), (2025, 12, 31));
        assert_eq!((start.hour, start.minute, start.second), (23, 59, 59));
    }

    #[test]
    fn every_day_of_ten_thousand_years_round_trips() {
        let mut expected = (1, 1);
        for day in days(0, 1, 1)..days(10_000, 1, 1) {
            let civil = Civil::from_unix(day * SECONDS_PER_DAY);
            assert_eq!(civil.to_unix(), day * SECONDS_PER_DAY);
            assert_eq!((civil.month, civil.day), expected);
            let next = Civil::from_unix((day + 1) * SECONDS_PER_DAY);
            expected = if next.month == civil.month {
                (civil.month, civil.day + 1)
            } else {
                (civil.month % 12 + 1, 1)
            };
        }
    }
}
