//! Sizes of memory: a whole number of KiB or MiB, within bounds.

use super::problem::quoted;
use super::value::Wrong;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// Reads `256KiB`, `4MiB`, also with a space before the unit; `least` and `most` (bytes) are allowed.
pub(super) fn parse(text: &str, least: usize, most: usize) -> Result<usize, Wrong> {
    let text = text.trim();
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let unit = match unit.trim_start() {
        "KiB" => KIB,
        "MiB" => MIB,
        "" if digits > 0 => {
            return Err(Wrong::new(
                format!("{} has no unit", quoted(text)),
                "write a number with its unit, such as \"256KiB\" or \"4MiB\"",
            ));
        }
        _ => return Err(not_a_size(text)),
    };
    let size = number.parse::<usize>().map_err(|_| not_a_size(text))?.saturating_mul(unit);
    let excess = if size < least {
        "small"
    } else if size > most {
        "large"
    } else {
        return Ok(size);
    };
    Err(Wrong::new(
        format!("{} is too {excess}", quoted(text)),
        format!("write a size from \"{}\" to \"{}\"", shown(least), shown(most)),
    ))
}

fn not_a_size(text: &str) -> Wrong {
    Wrong::new(
        format!("{} is not a size", quoted(text)),
        "write a whole number of KiB or MiB, such as \"4MiB\"",
    )
}

fn shown(size: usize) -> String {
    if size.is_multiple_of(MIB) { format!("{}MiB", size / MIB) } else { format!("{}KiB", size / KIB) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<usize, Wrong> {
        parse(text, 64 * KIB, 64 * MIB)
    }

    #[test]
    fn sizes_are_read() {
        for (text, size) in
            [("4MiB", 4 * MIB), ("64KiB", 64 * KIB), (" 256 KiB ", 256 * KIB), ("64MiB", 64 * MIB)]
        {
            assert_eq!(read(text), Ok(size), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_says_why() {
        for (text, what) in [
            ("4", "has no unit"),
            ("4MB", "is not a size"),
            ("1.5MiB", "is not a size"),
            ("MiB", "is not a size"),
            ("", "is not a size"),
            ("-1MiB", "is not a size"),
            ("99999999999999999999999MiB", "is not a size"),
            ("99999999999999999MiB", "is too large"),
            ("65MiB", "is too large"),
            ("63KiB", "is too small"),
        ] {
            assert!(read(text).unwrap_err().what.contains(what), "{text}");
        }
        assert_eq!(read("1GiB").unwrap_err().help, "write a whole number of KiB or MiB, such as \"4MiB\"");
        assert_eq!(read("1KiB").unwrap_err().help, "write a size from \"64KiB\" to \"64MiB\"");
    }
}
