//! RFC 3339 timestamps as producers write them. They are checked and kept as text, with all their digits.

use jiff::civil::Date;
use jiff::{Span, ToSpan as _};

const MINUTES_OF_A_DAY: i16 = 24 * 60;

/// Says whether a text is a timestamp by the grammar of RFC 3339, section 5.6, and its restrictions in section 5.7.
pub fn is_rfc3339(text: &str) -> bool {
    parse(text).is_some()
}

fn parse(text: &str) -> Option<()> {
    let mut rest = Rest(text.as_bytes());
    let (year, month, day) = (rest.digits(4)?, rest.after(b'-')?.digits(2)?, rest.after(b'-')?.digits(2)?);
    rest.one_of(b"Tt")?;
    let (hour, minute, second) = (rest.digits(2)?, rest.after(b':')?.digits(2)?, rest.after(b':')?.digits(2)?);
    if let Some(fraction) = rest.after(b'.') {
        fraction.digits(1)?;
        while fraction.digits(1).is_some() {}
    }
    let offset = match rest.one_of(b"Zz+-")? {
        sign @ (b'+' | b'-') => {
            let (hours, minutes) = (rest.digits(2)?, rest.after(b':')?.digits(2)?);
            let offset = (hours <= 23 && minutes <= 59).then_some(60 * hours + minutes)?;
            if sign == b'-' { -offset } else { offset }
        }
        _ => 0,
    };
    let date = Date::new(year, i8::try_from(month).ok()?, i8::try_from(day).ok()?).ok()?;
    let is_time = hour <= 23 && minute <= 59 && (second <= 59 || second == 60 && is_leap(date, 60 * hour + minute - offset)?);
    (rest.0.is_empty() && is_time).then_some(())
}

/// Says whether a leap second may follow this minute of UTC: only the last minute of a month. `minute` counts from the beginning of `date`,
/// and may be on the day before or after.
fn is_leap(date: Date, minute: i16) -> Option<bool> {
    let day: Span = i64::from(minute.div_euclid(MINUTES_OF_A_DAY)).days();
    let date = date.checked_add(day).ok()?;
    Some(minute.rem_euclid(MINUTES_OF_A_DAY) == MINUTES_OF_A_DAY - 1 && date == date.last_of_month())
}

/// The bytes that are still to be read.
struct Rest<'a>(&'a [u8]);

impl Rest<'_> {
    /// Reads a number of exactly this many digits.
    fn digits(&mut self, count: usize) -> Option<i16> {
        let (digits, rest) = self.0.split_at_checked(count)?;
        let digits = std::str::from_utf8(digits).ok().filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))?;
        self.0 = rest;
        digits.parse().ok()
    }

    /// Reads one of these bytes.
    fn one_of(&mut self, bytes: &[u8]) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        bytes.contains(first).then(|| self.0 = rest)?;
        Some(*first)
    }

    /// Reads this byte, and returns what follows it.
    fn after(&mut self, byte: u8) -> Option<&mut Self> {
        self.one_of(&[byte])?;
        Some(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timestamp_is_rfc_3339_and_all_of_it() {
        for good in [
            // The examples of section 5.8.
            "1985-04-12T23:20:50.52Z",
            "1996-12-19T16:39:57-08:00",
            "1990-12-31T23:59:60Z",
            "1990-12-31T15:59:60-08:00",
            "1937-01-01T12:00:27.87+00:20",
            "0000-01-01T00:00:00Z",
            "9999-12-31T23:59:59Z",
            "9999-12-31T23:59:59.999999999999-23:59",
            "2018-04-05t17:31:00z",
            "2018-04-05T17:31:00.123456789012Z",
            "2018-04-05T17:31:00.000000000000000000000000000000Z",
            "2024-02-29T00:00:00+00:00",
            "2018-04-05T17:31:00-00:00",
            "2018-04-05T17:31:00+23:59",
            "2017-01-01T05:29:60+05:30",
            "2012-06-30T23:59:60.5Z",
        ] {
            assert!(is_rfc3339(good), "{good}");
        }
        for bad in [
            "",
            "yesterday",
            "2018-04-05",
            "17:31:00Z",
            // No offset, or one that RFC 3339 doesn't have.
            "2018-04-05T17:31:00",
            "2018-04-05T17:31:00+02",
            "2018-04-05T17:31:00+0200",
            "2018-04-05T17:31:00+24:00",
            "2018-04-05T17:31:00+02:60",
            "2018-04-05T17:31:00+02:00:00",
            "2018-04-05T17:31:00Z[Europe/Berlin]",
            "2018-04-05T17:31:00 Z",
            "2018-04-05T17:31:00\u{2212}02:00",
            // Other forms of ISO 8601.
            "2018-W14-4T17:31:00Z",
            "2018-095T17:31:00Z",
            "20180405T173100Z",
            "2018-04-05T173100Z",
            "2018-04-05T17:31Z",
            "2018-04-05T17Z",
            "2018-04-05T17:31:00,5Z",
            "2018-04-05T17:31:00.Z",
            "2018-04-05T17:31.5Z",
            "2018-04-05T24:00:00Z",
            "2018-04-05 17:31:00Z",
            "+2018-04-05T17:31:00Z",
            "12018-04-05T17:31:00Z",
            "-001-04-05T17:31:00Z",
            "18-04-05T17:31:00Z",
            // No such day or time.
            "2018-00-05T17:31:00Z",
            "2018-13-05T17:31:00Z",
            "2018-04-00T17:31:00Z",
            "2018-04-31T17:31:00Z",
            "2023-02-29T17:31:00Z",
            "1900-02-29T17:31:00Z",
            "2018-04-05T17:60:00Z",
            "2018-04-05T17:31:61Z",
            // A leap second is the last of a month, in UTC.
            "2018-04-05T17:31:60Z",
            "2018-04-05T23:59:60Z",
            "1990-12-31T23:59:60-08:00",
            "1990-12-30T23:59:60Z",
            // Surroundings and other digits.
            " 2018-04-05T17:31:00Z",
            "2018-04-05T17:31:00Z\n",
            "2018-04-05T17:31:00ZZ",
            "2018-4-5T17:31:00Z",
            "2018-04-05T17:31:0\u{665}Z",
            "2018-04-05T+7:31:00Z",
        ] {
            assert!(!is_rfc3339(bad), "{bad}");
        }
    }
}
