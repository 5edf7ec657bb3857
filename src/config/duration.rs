//! Durations: a number with its unit, within bounds.

use std::time::Duration;

use super::problem::quoted;
use super::value::Wrong;

/// Reads `30s`, `5m`, `1h 30m`, `500ms`; `least` and `most` are allowed.
pub(super) fn parse(text: &str, least: Duration, most: Duration) -> Result<Duration, Wrong> {
    if !text.trim().is_empty() && text.trim().chars().all(|c| c.is_ascii_digit() || c == '.') {
        return Err(without_unit(text.trim()));
    }
    let Ok(duration) = humantime::parse_duration(text) else {
        return Err(Wrong::new(
            format!("{} is not a duration", quoted(text)),
            "write a number with its unit (ms, s, m, h, d), such as \"30s\", \"5m\" or \"1h 30m\"",
        ));
    };
    let excess = if duration < least {
        "short"
    } else if duration > most {
        "long"
    } else {
        return Ok(duration);
    };
    Err(Wrong::new(
        format!("{} is too {excess}", quoted(text)),
        format!("write a duration from \"{}\" to \"{}\"", shown(least), shown(most)),
    ))
}

/// A number where a duration is meant: 30 what?
pub(super) fn without_unit(number: &str) -> Wrong {
    Wrong::new(
        format!("{} has no unit", quoted(number)),
        format!("write \"{number}s\" for seconds, \"{number}m\" for minutes"),
    )
}

/// As it would stand in the file.
pub(super) fn shown(duration: Duration) -> String {
    humantime::format_duration(duration).to_string().replace("days", "d").replace("day", "d")
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn both_bounds_are_allowed() {
        for (text, seconds) in [("0s", 0), ("1h", 3600), ("30s", 30), ("1m 30s", 90), ("0.5h", 1800)] {
            assert_eq!(parse(text, Duration::ZERO, HOUR).unwrap().as_secs(), seconds, "{text}");
        }
        assert_eq!(parse("61m", Duration::ZERO, HOUR).unwrap_err().what, "`61m` is too long");
        assert_eq!(parse("1s", HOUR, HOUR).unwrap_err().what, "`1s` is too short");
    }

    #[test]
    fn a_number_alone_is_no_duration() {
        for text in ["30", " 30 ", "0", "1.5"] {
            let wrong = parse(text, Duration::ZERO, HOUR).unwrap_err();
            assert_eq!(wrong.what, format!("`{}` has no unit", text.trim()));
        }
        for text in ["", " ", "soon", "-5s", "5 parsecs", "99999999999999999999s"] {
            assert!(parse(text, Duration::ZERO, HOUR).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_shown_can_be_read_back() {
        for seconds in [0, 1, 90, 3600, 86_400, 30 * 86_400] {
            let duration = Duration::from_secs(seconds);
            assert_eq!(parse(&shown(duration), Duration::ZERO, Duration::MAX).unwrap(), duration);
        }
    }
}
