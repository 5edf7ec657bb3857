//! Targets: whom a session is started with.

use std::fmt;

use super::Target;
use super::problem::quoted;
use super::value::{Given, Wrong};

const IDS: &str = "write \"i-0123456789abcdef0\", \"mi-0123456789abcdef0\", \"ecs:CLUSTER_TASK_RUNTIME\", a list of \
                   these, or { tag = \"Key=Value\" }";

/// Reads an id, a list of ids or `{ tag = "Key=Value" }`.
pub(super) fn read(given: &mut Given<'_, '_>) -> Option<Target> {
    let value = given.value;
    let Some(table) = value.get_ref().as_table() else {
        let ids = given.texts(id)?;
        return Some(Target::Ids(ids.into_iter().map(toml::Spanned::into_inner).collect()));
    };
    for key in table.keys().filter(|key| key.get_ref() != "tag") {
        let what = format!("target: unknown key {}", quoted(key.get_ref()));
        given.report.wrong(key.span(), what, "the only key here is `tag`: { tag = \"Key=Value\" }");
    }
    match table.get("tag") {
        Some(value) => given.text_at(value, tag),
        None => given.wrong(Wrong::new("a table without `tag`", IDS)),
    }
}

fn id(text: &str) -> Result<String, Wrong> {
    let known = if let Some(hex) = text.strip_prefix("mi-") {
        hex.len() == 17 && is_hex(hex)
    } else if let Some(hex) = text.strip_prefix("i-") {
        (hex.len() == 8 || hex.len() == 17) && is_hex(hex)
    } else {
        text.strip_prefix("ecs:").is_some_and(is_container)
    };
    if known {
        return Ok(text.to_owned());
    }
    let help = if text.starts_with("mi-") {
        "a managed node's id is `mi-` and 17 digits of 0-9 and a-f"
    } else if text.starts_with("i-") {
        "an instance's id is `i-` and 8 or 17 digits of 0-9 and a-f"
    } else if text.starts_with("ecs:") {
        "a container is \"ecs:CLUSTER_TASK_RUNTIME\": the cluster's name, the task's id and the container's runtime id"
    } else if text.contains('=') {
        "write { tag = \"Key=Value\" } for whatever node carries a tag"
    } else {
        IDS
    };
    Err(Wrong::new(format!("{} is not a target id", quoted(text)), help))
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// A cluster's name may have underscores itself; a task's id and a runtime id have none.
fn is_container(text: &str) -> bool {
    let mut parts = text.rsplitn(3, '_');
    let (Some(runtime), Some(task), Some(cluster)) = (parts.next(), parts.next(), parts.next()) else {
        return false;
    };
    let word = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let cluster_name = !cluster.is_empty()
        && cluster.len() <= 255
        && cluster.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
    cluster_name && word(task) && word(runtime) && text.len() <= 400
}

fn tag(text: &str) -> Result<Target, Wrong> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    if key.trim() != key || key.is_empty() || value.is_empty() {
        let what = format!("the tag {} is not of the form Key=Value", quoted(text));
        return Err(Wrong::new(
            what,
            "write the tag's key, `=` and its value, such as { tag = \"Role=bastion\" }",
        ));
    }
    if key.chars().count() > 128 || value.chars().count() > 256 {
        let what = format!("the tag {} is too long", quoted(text));
        return Err(Wrong::new(what, "a tag's key has at most 128 characters, its value 256"));
    }
    Ok(Target::Tag { key: key.to_owned(), value: value.to_owned() })
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ids(ids) => f.write_str(&ids.join(", ")),
            Self::Tag { key, value } => write!(f, "tag {key}={value}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_those_of_nodes_and_containers() {
        for text in [
            "i-0123456789abcdef0",
            "i-12345678",
            "mi-0123456789abcdef0",
            "ecs:prod_0123456789abcdef0123456789abcdef_0123456789abcdef0123456789abcdef-1234567890",
            "ecs:my_own_cluster_0123456789abcdef0123456789abcdef_abc-123",
        ] {
            assert_eq!(id(text).unwrap(), text);
        }
        for text in [
            "",
            "i-",
            "i-1234567",
            "i-123456789",
            "i-0123456789ABCDEF0",
            "i-0123456789abcdefg",
            "mi-12345678",
            "ecs:prod",
            "ecs:prod_task",
            "ecs:_task_runtime",
            "ecs:prod__runtime",
            "bastion",
            "I-12345678",
            " i-12345678",
        ] {
            assert!(id(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_tag_is_split_at_its_first_equals_sign() {
        let target = Target::Tag { key: "Role".to_owned(), value: "a=b".to_owned() };
        assert_eq!(target.to_string(), "tag Role=a=b");
        assert_eq!(tag("Role=a=b").unwrap(), target);
        for text in ["", "Role", "Role=", "=bastion", " Role=bastion"] {
            assert!(tag(text).is_err(), "{text}");
        }
    }
}
