//! PURE. `--parameters` in its spellings: JSON, `key=value,…`, `key=[a,b],…` and `key=a,b,…`.

use std::collections::BTreeMap;

use serde_json::Value;

/// Each with its values.
pub(super) type Parameters = BTreeMap<String, Vec<String>>;

/// Reads either spelling.
///
/// # Errors
/// What is wrong with it, in words.
pub(super) fn parse(text: &str) -> Result<Parameters, String> {
    if text.trim_start().starts_with('{') {
        let value = serde_json::from_str(text).map_err(|e| format!("--parameters is not JSON: {e}"))?;
        return of_json(&value);
    }
    let mut reader = Shorthand { rest: text.trim() };
    let mut parameters = Parameters::new();
    while !reader.rest.is_empty() {
        let (name, values) = reader.pair()?;
        parameters.insert(name, values);
    }
    Ok(parameters)
}

/// A JSON object of texts or lists of texts; numbers are taken for texts, as people write them.
///
/// # Errors
/// Which value is none of these.
pub(super) fn of_json(value: &Value) -> Result<Parameters, String> {
    let text = |name: &str, value: &Value| match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(_) | Value::Bool(_) => Ok(value.to_string()),
        _ => Err(format!("the parameter `{name}` is not a text or a list of texts")),
    };
    let object = value.as_object().ok_or("the parameters are not an object")?;
    let one = |(name, value): (&String, &Value)| {
        let values = match value {
            Value::Array(list) => list.iter().map(|value| text(name, value)).collect::<Result<_, _>>()?,
            value => vec![text(name, value)?],
        };
        Ok((name.clone(), values))
    };
    object.iter().map(one).collect()
}

/// The AWS CLI's shorthand: `key=value` with commas between, a value in quotes, or a list in brackets.
struct Shorthand<'a> {
    rest: &'a str,
}

impl Shorthand<'_> {
    fn pair(&mut self) -> Result<(String, Vec<String>), String> {
        let Some(name) = key(self.rest) else {
            let near: String = self.rest.chars().take(30).collect();
            return Err(format!("--parameters: expected NAME=VALUE at `{near}`"));
        };
        let name = name.to_owned();
        self.skip(name.len() + 1);
        let mut values = Vec::new();
        if self.rest.starts_with('[') {
            self.skip(1);
            while !self.rest.starts_with(']') {
                values.push(self.value(&[',', ']'])?);
                if self.rest.is_empty() {
                    return Err(format!("--parameters: the list of `{name}` is not closed"));
                }
                self.skip(usize::from(self.rest.starts_with(',')));
            }
            self.skip(1);
        } else {
            values.push(self.value(&[','])?);
            // What has no name of its own is one more value.
            while let Some(next) =
                self.rest.strip_prefix(',').filter(|next| !next.is_empty() && key(next).is_none())
            {
                self.rest = next;
                values.push(self.value(&[','])?);
            }
        }
        match self.rest.strip_prefix(',') {
            Some(rest) => self.rest = rest.trim_start(),
            None if self.rest.is_empty() => (),
            None => return Err(format!("--parameters: expected a comma after `{name}`")),
        }
        Ok((name, values))
    }

    /// One value, up to any of `ends`.
    fn value(&mut self, ends: &[char]) -> Result<String, String> {
        self.rest = self.rest.trim_start();
        let Some(quote) = self.rest.chars().next().filter(|c| matches!(c, '"' | '\'')) else {
            let end = self.rest.find(ends).unwrap_or(self.rest.len());
            let value = self.rest.get(..end).unwrap_or_default().trim().to_owned();
            self.skip(end);
            return Ok(value);
        };
        let mut value = String::new();
        let mut characters = self.rest.char_indices().skip(1);
        while let Some((at, c)) = characters.next() {
            match c {
                '\\' => value.extend(characters.next().map(|(_, c)| c)),
                c if c == quote => {
                    self.skip(at + 1);
                    self.rest = self.rest.trim_start();
                    return Ok(value);
                }
                c => value.push(c),
            }
        }
        Err(format!("--parameters: the quote {quote} is not closed"))
    }

    fn skip(&mut self, bytes: usize) {
        self.rest = self.rest.get(bytes..).unwrap_or_default();
    }
}

/// The name at the beginning, if one is there.
fn key(text: &str) -> Option<&str> {
    let (name, _) = text.split_once('=')?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (!name.is_empty() && name.bytes().all(plain)).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn all_spellings_say_the_same() {
        let expected = Parameters::from([
            ("host".to_owned(), vec!["db.internal".to_owned()]),
            ("localPortNumber".to_owned(), vec!["15432".to_owned()]),
            ("portNumber".to_owned(), vec!["5432".to_owned()]),
        ]);
        for text in [
            r#"{"host":["db.internal"],"portNumber":["5432"],"localPortNumber":["15432"]}"#,
            r#" {"host":"db.internal","portNumber":5432,"localPortNumber":"15432"}"#,
            "host=db.internal,portNumber=5432,localPortNumber=15432",
            r#"host="db.internal",portNumber="5432",localPortNumber='15432'"#,
            "host=[db.internal],portNumber=[\"5432\"], localPortNumber=[15432]",
        ] {
            assert_eq!(parse(text).as_ref(), Ok(&expected), "{text}");
        }
        assert_eq!(parse("").unwrap(), Parameters::new());
    }

    #[test]
    fn a_value_without_a_name_is_one_more_of_the_last() {
        let values = parse("a=1,2,b=x").unwrap();
        assert_eq!(
            (&values["a"][..], &values["b"][..]),
            (&["1".to_owned(), "2".to_owned()][..], &["x".to_owned()][..])
        );
        assert_eq!(parse("a=[1,\"2,3\" , 4]").unwrap()["a"], ["1", "2,3", "4"]);
        assert_eq!(parse(r#"a="x\"y",b=="#).unwrap()["a"], ["x\"y"]);
    }

    #[test]
    fn what_cannot_be_read_is_said() {
        for (text, words) in [
            ("{", "--parameters is not JSON: "),
            (r#"{"host":[["x"]]}"#, "the parameter `host` is not a text"),
            (r#"{"host":null}"#, "the parameter `host` is not a text"),
            ("host", "--parameters: expected NAME=VALUE at `host`"),
            ("a=[1", "--parameters: the list of `a` is not closed"),
            ("a=\"1", "--parameters: the quote \" is not closed"),
            ("a=\"1\"x", "--parameters: expected a comma after `a`"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.starts_with(words), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[ab={}\\[\\],\"'\\\\ \\PC]{0,40}") {
            let _ = parse(&text);
        }
    }
}
