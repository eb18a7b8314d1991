//! Timestamps of RFC 3339.

/// Returns the nanoseconds since the Unix epoch; `None` for what is no timestamp, or is outside the years 1678 to 2261.
pub(crate) fn unix_ns(text: &str) -> Option<i64> {
    let bytes = text.as_bytes();
    let number = |from: usize, digits: usize| {
        let digits = bytes.get(from..from + digits)?;
        digits.iter().try_fold(0, |sum: i64, digit| digit.is_ascii_digit().then(|| sum * 10 + i64::from(digit - b'0')))
    };
    let is = |at: usize, allowed: &[u8]| bytes.get(at).is_some_and(|byte| allowed.contains(byte));
    let punctuated = is(4, b"-") && is(7, b"-") && is(10, b"Tt ") && is(13, b":") && is(16, b":");
    let (year, month, day) = (number(0, 4)?, number(5, 2)?, number(8, 2)?);
    let (hour, minute, second) = (number(11, 2)?, number(14, 2)?, number(17, 2)?);
    let within = (1..=12).contains(&month) && (1..=31).contains(&day) && hour < 24 && minute < 60 && second <= 60;
    if !punctuated || !within {
        return None;
    }
    let fraction_digits = if is(19, b".") { bytes[20..].iter().take_while(|byte| byte.is_ascii_digit()).count() } else { 0 };
    if is(19, b".") && fraction_digits == 0 {
        return None;
    }
    // Of more than nine digits the rest is less than a nanosecond.
    let nanoseconds = (0..9).fold(0, |sum, place| sum * 10 + if place < fraction_digits { i64::from(bytes[20 + place] - b'0') } else { 0 });
    let zone = 19 + if is(19, b".") { 1 + fraction_digits } else { 0 };
    let offset_minutes = match bytes.get(zone)? {
        b'Z' | b'z' if bytes.len() == zone + 1 => 0,
        sign @ (b'+' | b'-') if bytes.len() == zone + 6 && is(zone + 3, b":") => {
            let minutes = number(zone + 1, 2)? * 60 + number(zone + 4, 2)?;
            if *sign == b'+' { minutes } else { -minutes }
        }
        _ => return None,
    };
    let minutes = days_since_epoch(year, month, day) * 24 * 60 + hour * 60 + minute - offset_minutes;
    (minutes * 60 + second).checked_mul(1_000_000_000)?.checked_add(nanoseconds)
}

/// Counts days in years that begin in March, so that a leap day is the last of its year (Howard Hinnant, "days_from_civil").
fn days_since_epoch(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * month + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_count_from_the_unix_epoch() {
        for (text, nanoseconds) in [
            ("1970-01-01T00:00:00Z", 0),
            ("1970-01-01t00:00:01z", 1_000_000_000),
            ("1969-12-31T23:59:59.9Z", -100_000_000),
            ("2000-02-29 12:00:00Z", 951_825_600_000_000_000),
            ("2026-01-02T03:04:05.000000006789Z", 1_767_323_045_000_000_006),
            ("2026-01-02T03:04:05.5+05:30", 1_767_303_245_500_000_000),
            ("2026-01-02T03:04:05-00:01", 1_767_323_105_000_000_000),
            ("2016-12-31T23:59:60Z", 1_483_228_800_000_000_000),
        ] {
            assert_eq!(unix_ns(text), Some(nanoseconds), "{text}");
        }
    }

    #[test]
    fn a_text_that_is_not_a_timestamp_has_no_time() {
        for text in [
            "",
            "now",
            "2026-01-02",
            "2026-01-02T03:04:05",
            "2026-01-02T03:04Z",
            "2026-1-02T03:04:05Z",
            "2026-13-02T03:04:05Z",
            "2026-01-32T03:04:05Z",
            "2026-01-02T24:04:05Z",
            "2026-01-02T03:04:05Zx",
            "2026-01-02T03:04:05+0530",
            "2026-01-02T03:04:05.Z",
            "2026-01-02T03:04:05.5",
            "20é6-01-02T03:04:05Z",
            "9999-01-02T03:04:05Z",
            "0000-01-02T03:04:05Z",
        ] {
            assert_eq!(unix_ns(text), None, "{text}");
        }
    }
}
