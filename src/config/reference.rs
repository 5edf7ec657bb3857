//! The table of keys in words: for the reference in `docs/configuration.md`, and for what is said of a wrong key.

use std::fmt;

use super::duration::shown;
use super::keys::{Default, Form, KEYS};

/// The reference of all keys, as a table in Markdown.
pub fn reference() -> String {
    let mut text = String::from("| key | value | default | |\n|---|---|---|---|\n");
    for key in KEYS {
        let name = format!("`{}`{}", key.name, if key.shared { "" } else { " ¹" });
        text += &format!("| {name} | {} | {} | {} |\n", key.form, key.default, key.about);
    }
    text
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Switch(_) => f.write_str("`true` or `false`"),
            Self::Count(least, most, _) => write!(f, "a number, {least} to {most}"),
            Self::Duration(least, most, _) => {
                write!(f, "a duration, `{}` to `{}`", shown(*least), shown(*most))
            }
            Self::Other(words, _) => f.write_str(words),
        }
    }
}

impl fmt::Display for Default {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Required => f.write_str("**required**"),
            Self::Value(value) => write!(f, "`{value}`"),
            Self::Absent(words) => f.write_str(words),
        }
    }
}
