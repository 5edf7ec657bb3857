//! Whatever stands in a file: it is read, or refused with places inside it, and nothing panics.

use std::fs;

use autossm::config::{self, Position};
use proptest::prelude::*;

use crate::{GOOD, parse, root};

fn example() -> String {
    fs::read_to_string(root().join("config.example.toml")).unwrap()
}

/// Every problem lies within the text, in order, on one line, and has a help.
fn holds_together(text: &str) -> Result<(), TestCaseError> {
    let Err(problems) = parse(text) else { return Ok(()) };
    prop_assert!(!problems.list.is_empty());
    let lines: Vec<&str> = text.strip_prefix('\u{feff}').unwrap_or(text).split('\n').collect();
    let mut last = Position { line: 1, column: 1 };
    for problem in &problems.list {
        let position = problem.position.expect("a place in the text");
        prop_assert!(position >= last && position.line <= lines.len(), "{:?}", position);
        prop_assert!(position.column <= lines[position.line - 1].chars().count() + 1, "{:?}", position);
        prop_assert!(!problem.help.is_empty() && !problem.what.contains('\n'), "{:?}", problem);
        last = position;
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_change_of_a_good_file_is_read_or_refused(
        edits in proptest::collection::vec(
            (any::<prop::sample::Index>(), 0usize..20, "[\\[\\]{}=\"'#.,:\\\\a-z0-9\n é\\PC]{0,8}"), 1..6),
    ) {
        let mut text: Vec<char> = example().chars().collect();
        for (index, cut, paste) in edits {
            let start = index.index(text.len() + 1);
            let end = (start + cut).min(text.len());
            text.splice(start..end, paste.chars());
        }
        holds_together(&text.into_iter().collect::<String>())?;
    }

    /// Values of the wrong kind in the right places, which random characters seldom are.
    #[test]
    fn any_value_of_any_key_is_read_or_refused(
        key in prop::sample::select(config::key_names().collect::<Vec<_>>()),
        value in prop::sample::select(vec![
            "0", "-1", "1", "70000", "0x10", "1e3", "nan", "true", "1979-05-27", "[]", "[[]]", "{}", "\"\"", "\"x\"",
            "\"1s\"", "\"off\"", "\"::\"", "\"unix:\"", "[\"a\", 1, {}]", "{ tag = 1 }", "{ tag = \"a=b\" }", "'''\n'''",
            "{ a.b = 1 }", "\"\\u0000\"", "\"ws://\"", "\"wss://[::1]:99999\"", "\"arn:::::\"", "\"https://[\"",
        ]),
        in_defaults in any::<bool>(),
    ) {
        let kept: String = GOOD.lines().filter(|line| !line.starts_with(key)).map(|line| format!("{line}\n")).collect();
        let line = format!("{key} = {value}\n");
        let text = if in_defaults { format!("[defaults]\n{line}{kept}") } else { format!("{kept}{line}") };
        holds_together(&text)?;
    }
}
