//! Values of the file, read as what their key wants, or reported.

use std::fmt;
use std::time::Duration;

use toml::Spanned;
use toml::de::DeValue;

use super::duration;
use super::problem::{Report, quoted};

/// A value with its place in the file.
pub(super) type Value<'t> = Spanned<DeValue<'t>>;

/// Why a text is not what its key wants.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wrong {
    /// What is wrong, to follow `KEY: `.
    pub what: String,
    /// What would be right.
    pub help: String,
}

impl Wrong {
    pub fn new(what: impl Into<String>, help: impl Into<String>) -> Self {
        Self { what: what.into(), help: help.into() }
    }
}

/// A value, the key it was given for, and where to report that it does not fit.
pub(super) struct Given<'a, 't> {
    /// The key, as it stands before the `=`.
    pub key: &'static str,
    /// The table of the tunnel that it stands in, with a dot behind; else nothing.
    pub table: &'static str,
    /// What it takes, in words.
    pub form: &'a dyn fmt::Display,
    pub value: &'a Value<'a>,
    pub report: &'a mut Report<'t>,
}

impl Given<'_, '_> {
    /// `true` or `false`.
    pub fn switch(&mut self) -> Option<bool> {
        match self.value.get_ref() {
            DeValue::Boolean(switch) => Some(*switch),
            other => {
                let what = format!("{} is neither true nor false", described(other));
                self.wrong(Wrong::new(what, "write true or false, without quotes"))
            }
        }
    }

    /// A whole number between two bounds, both included.
    pub fn count(&mut self, least: u16, most: u16) -> Option<u16> {
        let name = self.key;
        let wrong = match self.value.get_ref() {
            DeValue::Integer(written) => match i128::from_str_radix(written.as_str(), written.radix()) {
                Ok(count) if count < i128::from(least) => format!("{written} is too small"),
                Ok(count) if count <= i128::from(most) => return u16::try_from(count).ok(),
                _ => format!("{written} is too large"),
            },
            DeValue::String(text) if text.parse::<u16>().is_ok_and(|n| least <= n && n <= most) => {
                let what = format!("{} is a string", described(self.value.get_ref()));
                return self.wrong(Wrong::new(what, format!("write `{name} = {text}`, without quotes")));
            }
            other => format!("{} is not a whole number", described(other)),
        };
        self.wrong(Wrong::new(wrong, format!("write a whole number from {least} to {most}")))
    }

    /// A duration with its unit, between two bounds, both included.
    pub fn duration(&mut self, least: Duration, most: Duration) -> Option<Duration> {
        let read = match self.value.get_ref() {
            DeValue::String(text) => duration::parse(text, least, most),
            DeValue::Integer(number) => Err(duration::without_unit(number.as_str())),
            DeValue::Float(number) => Err(duration::without_unit(number.as_str())),
            other => Err(Wrong::new(
                format!("{} is not a duration", described(other)),
                "write a number with its unit, such as \"30s\", \"5m\" or \"1h 30m\"",
            )),
        };
        read.or_else(|wrong| self.wrong(wrong).ok_or(())).ok()
    }

    /// A text that `parse` understands.
    pub fn text<T>(&mut self, parse: impl FnOnce(&str) -> Result<T, Wrong>) -> Option<T> {
        self.text_at(self.value, parse)
    }

    /// The same, with its place.
    pub fn placed<T>(&mut self, parse: impl FnOnce(&str) -> Result<T, Wrong>) -> Option<Spanned<T>> {
        Some(Spanned::new(self.value.span(), self.text(parse)?))
    }

    /// One text, or a list of at least one, none of them twice. Those that are wrong are reported and left out.
    pub fn texts<T: PartialEq>(
        &mut self,
        parse: impl Fn(&str) -> Result<T, Wrong>,
    ) -> Option<Vec<Spanned<T>>> {
        let values = self.one_or_more(self.value);
        if values.is_empty() {
            return self.wrong(Wrong::new("the list is empty", "name at least one"));
        }
        let mut read: Vec<Spanned<T>> = Vec::new();
        for value in values {
            match self.text_at(value, &parse) {
                Some(text) if read.iter().any(|other| *other.get_ref() == text) => {
                    let what = format!("{} is in the list twice", described(value.get_ref()));
                    self.wrong_at::<()>(value, Wrong::new(what, "keep one of them"));
                }
                Some(text) => read.push(Spanned::new(value.span(), text)),
                None => {}
            }
        }
        Some(read)
    }

    /// The values of a list, or the one value that stands in place of a list.
    pub fn one_or_more<'v>(&self, value: &'v Value<'v>) -> &'v [Value<'v>] {
        match value.get_ref() {
            DeValue::Array(list) => list.as_ref(),
            _ => std::slice::from_ref(value),
        }
    }

    /// The text of one value among those of the key.
    pub fn text_at<T>(
        &mut self,
        value: &Value<'_>,
        parse: impl FnOnce(&str) -> Result<T, Wrong>,
    ) -> Option<T> {
        let read = match value.get_ref() {
            DeValue::String(text) => parse(text),
            other => {
                let number = match other {
                    DeValue::Integer(number) => Some(number.to_string()),
                    DeValue::Float(number) => Some(number.as_str().to_owned()),
                    _ => None,
                };
                // Quotes alone do not make a listen address of a port.
                let help = match number.map(|number| (parse(&number), number)) {
                    Some((Ok(_), number)) => format!("write it in quotes: \"{number}\""),
                    Some((Err(wrong), _)) => wrong.help,
                    None => format!("`{}` takes {}", self.key, self.form),
                };
                Err(Wrong::new(format!("{} is not a string", described(other)), help))
            }
        };
        read.or_else(|wrong| self.wrong_at(value, wrong).ok_or(())).ok()
    }

    /// Reports the value; always `None`.
    pub fn wrong<T>(&mut self, wrong: Wrong) -> Option<T> {
        self.wrong_at(self.value, wrong)
    }

    /// Reports one value among those of the key; always `None`.
    pub fn wrong_at<T>(&mut self, value: &Value<'_>, Wrong { what, help }: Wrong) -> Option<T> {
        self.report.wrong(value.span(), format!("{}{}: {what}", self.table, self.key), help);
        None
    }
}

/// A value for the text of an error.
pub(super) fn described(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => quoted(text),
        DeValue::Integer(number) => quoted(&number.to_string()),
        DeValue::Float(number) => quoted(number.as_str()),
        DeValue::Boolean(switch) => format!("`{switch}`"),
        DeValue::Datetime(_) => "a date".to_owned(),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}
