//! TOML itself: every syntax error that is not merely the echo of another.

use toml::de::DeTable;

use super::problem::{Report, quoted};

/// Parses as much as can be parsed; errors go to the report.
pub(super) fn parse<'t>(text: &'t str, report: &mut Report<'_>) -> DeTable<'t> {
    let (document, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        let span = error.span().unwrap_or_default();
        let line_start =
            text.get(..span.start).and_then(|before| before.rfind('\n')).map_or(0, |feed| feed + 1);
        let line = text.get(line_start..).and_then(|rest| rest.lines().next()).unwrap_or_default().trim();
        let written = text.get(span.clone()).unwrap_or_default();
        let in_header = line.starts_with('[');
        let message = error.message();
        let (what, help) = match message {
            "duplicate key" if in_header => twice(written),
            "duplicate key" => (
                format!("the key {} is given twice", quoted(written)),
                "keep one of them; if the second is another tunnel's, begin it with `[[tunnel]]`".to_owned(),
            ),
            _ => (format!("syntax error: {}", said(message)), hint(message, written).to_owned()),
        };
        // Where a value ends, or which table a key belongs to, cannot be known any more.
        if in_header || !(message == "duplicate key" || is_local(message)) {
            report.doubt_from(span.start);
        }
        if message == "duplicate key" && !in_header {
            report.wrong(span, what, help);
        } else {
            report.syntax(span, what, help);
        }
    }
    document.into_inner()
}

fn twice(table: &str) -> (String, String) {
    let help = match table {
        "tunnel" => "write `[[tunnel]]`, in double brackets, for every tunnel".to_owned(),
        _ => "put the keys of both under one of them".to_owned(),
    };
    (format!("the table {} is begun twice", quoted(table)), help)
}

/// Errors within one value on one line.
fn is_local(message: &str) -> bool {
    ["string values must be quoted", "invalid basic string", "invalid literal string", "invalid integer"]
        .iter()
        .chain(&["invalid boolean", "invalid float", "invalid datetime", "invalid escape", "missing escape"])
        .any(|start| message.starts_with(start))
}

/// The parser's words in ours, where ours are plainer.
fn said(message: &str) -> &str {
    match message {
        "string values must be quoted, expected literal string" => "a string must be in quotes",
        "key with no value, expected `=`" => "a key without a value",
        "invalid basic string, expected `\"`" => "the closing quote is missing",
        "invalid literal string, expected `'`" => "the closing quote is missing",
        "invalid multi-line basic string, expected `\"`" => "the closing \"\"\" is missing",
        "unclosed array, expected `]`" => "the list is not closed",
        other if other.contains("escape") => "a backslash begins an escape, and this is none",
        other => other,
    }
}

fn hint<'h>(message: &str, written: &str) -> &'h str {
    if message.starts_with("string values") && written.is_empty() {
        "write a value after the `=`"
    } else if message.starts_with("string values") {
        "write \"…\" around it, unless it is a number, true or false"
    } else if message.starts_with("key with no value") {
        "write `KEY = VALUE`"
    } else if message.contains("escape") {
        "write \\\\ for a backslash"
    } else if message.contains("inline table") {
        "such a table is written { key = \"value\" }: look for a missing `,` or `}` here or before"
    } else if message.contains("array") && !message.contains("table") {
        "a list is written [\"one\", \"two\"]: look for a missing `,` or `]` here or before"
    } else if message.contains("string") {
        "a string is written \"…\", on one line"
    } else if message.contains("table") {
        "a table is begun with `[defaults]` or `[[tunnel]]`, alone on its line"
    } else {
        "a line is `KEY = VALUE`, `[defaults]`, `[[tunnel]]` or a `# comment`"
    }
}
