//! The other texts of a tunnel: its name, its destination, its session document, its plugin.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::time::Duration;

use toml::de::DeValue;

use super::duration;
use super::keys::nearest;
use super::problem::quoted;
use super::value::{Given, Wrong, described};
use super::{GatewayMode, Rotate};

/// A systemd instance is called by it, and a folder.
pub(super) fn name(text: &str) -> Result<String, Wrong> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let (what, help) = if text.is_empty() {
        ("the name is empty".to_owned(), "write 1 to 48 characters of a-z, 0-9 and -".to_owned())
    } else if text.chars().all(allowed) && text.len() > 48 {
        (format!("the name has {} characters", text.len()), "a name has at most 48".to_owned())
    } else if let Some(character) = text.chars().find(|c| !allowed(*c)) {
        let better: String =
            text.to_lowercase().chars().map(|c| if allowed(c) { c } else { '-' }).take(48).collect();
        let what = format!("{} contains {}", quoted(text), quoted(character.encode_utf8(&mut [0; 4])));
        let hint = if name(&better).is_ok() { format!(": \"{better}\"") } else { String::new() };
        (what, format!("a name is made of a-z, 0-9 and -{hint}"))
    } else if text.starts_with('-') {
        // `autossm run -x` would be an option.
        (format!("{} begins with `-`", quoted(text)), "begin with a letter or a digit".to_owned())
    } else {
        return Ok(text.to_owned());
    };
    Err(Wrong::new(what, help))
}

/// `hold` or `observe`.
pub(super) fn gateway(text: &str) -> Result<GatewayMode, Wrong> {
    match text {
        "hold" => Ok(GatewayMode::Hold),
        "observe" => Ok(GatewayMode::Observe),
        _ => {
            let help = match nearest(text, ["hold", "observe"]) {
                Some(mode) => format!("did you mean \"{mode}\"? it is \"hold\" or \"observe\""),
                None => "write \"hold\" (connections survive) or \"observe\" (TLS is left alone)".to_owned(),
            };
            Err(Wrong::new(format!("{} is not a gateway mode", quoted(text)), help))
        }
    }
}

/// A name or an address, as the agent will resolve it.
pub(super) fn remote_host(text: &str) -> Result<String, Wrong> {
    let label = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let is_name =
        !text.is_empty() && text.len() <= 253 && text.chars().all(label) && !text.starts_with(['-', '.']);
    if is_name || text.parse::<Ipv6Addr>().is_ok() {
        return Ok(text.to_owned());
    }
    let help = match text.rsplit_once(':') {
        _ if text.contains("://") => "write the host alone, without scheme, port and path".to_owned(),
        Some((host, port)) if remote_host(host).is_ok() && port.parse::<u16>().is_ok() => {
            format!("write remote_host = \"{host}\" and remote_port = {port}")
        }
        _ => "write a host's name or address, or leave it out for the target itself".to_owned(),
    };
    Err(Wrong::new(format!("{} is not a host", quoted(text)), help))
}

/// As StartSession takes it: a document's name or ARN.
pub(super) fn document(text: &str) -> Result<String, Wrong> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.:/".contains(&byte);
    if (3..=128).contains(&text.len()) && text.bytes().all(allowed) {
        return Ok(text.to_owned());
    }
    Err(Wrong::new(
        format!("{} is not a session document name", quoted(text)),
        "a document's name or ARN has 3 to 128 letters, digits and characters of _-.:/",
    ))
}

/// A table of texts or lists of texts.
pub(super) fn parameters(given: &mut Given<'_, '_>) -> Option<BTreeMap<String, Vec<String>>> {
    let Some(table) = given.value.get_ref().as_table() else {
        let what = format!("{} is not a table", described(given.value.get_ref()));
        return given.wrong(Wrong::new(what, "write a table of strings: { host = \"db.internal\" }"));
    };
    let mut parameters = BTreeMap::new();
    for (name, value) in table {
        let values = given.one_or_more(value).iter();
        let texts = values.filter_map(|value| given.text_at(value, |text| Ok(text.to_owned())));
        parameters.insert(name.get_ref().to_string(), texts.collect());
    }
    Some(parameters)
}

/// What StartSession takes as a reason.
pub(super) fn reason(text: &str) -> Result<String, Wrong> {
    if (1..=256).contains(&text.chars().count()) && !text.contains(char::is_control) {
        return Ok(text.to_owned());
    }
    Err(Wrong::new(
        format!("{} cannot be a session's reason", quoted(text)),
        "a reason is one line of 1 to 256 characters",
    ))
}

/// `off` or a duration.
pub(super) fn duration_or_off(
    given: &mut Given<'_, '_>,
    least: Duration,
    most: Duration,
) -> Option<Option<Duration>> {
    duration_or(given, least, most, &[("off", None)], Some)
}

/// `auto`, `off` or an age.
pub(super) fn rotate(given: &mut Given<'_, '_>, least: Duration, most: Duration) -> Option<Rotate> {
    duration_or(given, least, most, &[("off", Rotate::Off), ("auto", Rotate::Auto)], Rotate::At)
}

/// One of some words, or a duration.
fn duration_or<T: Copy>(
    given: &mut Given<'_, '_>,
    least: Duration,
    most: Duration,
    words: &[(&str, T)],
    duration: fn(Duration) -> T,
) -> Option<T> {
    let written = match given.value.get_ref() {
        DeValue::String(text) => text,
        DeValue::Boolean(false) => {
            return given.wrong(Wrong::new("`false` is not a duration", "write \"off\""));
        }
        _ => return given.duration(least, most).map(duration),
    };
    if let Some((_, value)) = words.iter().find(|(word, _)| *word == written) {
        return Some(*value);
    }
    let or_words: String = words.iter().map(|(word, _)| format!(", or \"{word}\"")).collect();
    let read = duration::parse(written, least, most)
        .map_err(|wrong| Wrong::new(wrong.what, format!("{}{or_words}", wrong.help)));
    read.map(duration).or_else(|wrong| given.wrong(wrong).ok_or(())).ok()
}

/// A name to look for, or a whole path: the daemon's working directory is nobody's choice.
pub(super) fn plugin(text: &str) -> Result<String, Wrong> {
    let relative = text.contains('/') && !text.starts_with('/');
    if !text.trim().is_empty() && !relative && !text.contains('\0') && !text.ends_with('/') {
        return Ok(text.to_owned());
    }
    let fault = if relative { "is a relative path" } else { "is not a program" };
    Err(Wrong::new(
        format!("{} {fault}", quoted(text)),
        "write \"session-manager-plugin\", or a path that begins with /",
    ))
}

/// A whole path of a file.
pub(super) fn file(text: &str) -> Result<PathBuf, Wrong> {
    if text.starts_with('/') && !text.ends_with('/') && !text.contains('\0') {
        return Ok(PathBuf::from(text));
    }
    Err(Wrong::new(format!("{} is not an absolute path", quoted(text)), "write a path that begins with /"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_folders_and_systemd_instances() {
        for text in ["a", "billing-db", "0", &"x".repeat(48), "a--b-"] {
            assert_eq!(name(text).unwrap(), text);
        }
        for (text, what, help) in [
            ("", "the name is empty", "write 1 to 48 characters of a-z, 0-9 and -"),
            ("Billing", "`Billing` contains `B`", "a name is made of a-z, 0-9 and -: \"billing\""),
            ("a b/c", "`a b/c` contains ` `", "a name is made of a-z, 0-9 and -: \"a-b-c\""),
            ("é", "`é` contains `é`", "a name is made of a-z, 0-9 and -"),
            (".", "`.` contains `.`", "a name is made of a-z, 0-9 and -"),
            ("-a", "`-a` begins with `-`", "begin with a letter or a digit"),
            (&"x".repeat(49), "the name has 49 characters", "a name has at most 48"),
        ] {
            assert_eq!(name(text).unwrap_err(), Wrong::new(what, help), "{text}");
        }
    }

    #[test]
    fn hosts_are_names_or_addresses_alone() {
        for text in ["db.internal", "10.0.0.7", "fd00::7", "my_db", "localhost"] {
            assert_eq!(remote_host(text).unwrap(), text);
        }
        let help = |text| remote_host(text).unwrap_err().help;
        assert_eq!(help("db.internal:5432"), "write remote_host = \"db.internal\" and remote_port = 5432");
        assert_eq!(help("https://db.internal"), "write the host alone, without scheme, port and path");
        for text in ["", " ", "a b", "[::1]", "-x", "db.internal:x", ":5"] {
            assert!(remote_host(text).is_err(), "{text}");
        }
    }

    #[test]
    fn modes_are_corrected() {
        assert_eq!(gateway("observe").unwrap(), GatewayMode::Observe);
        assert!(gateway("observed").unwrap_err().help.starts_with("did you mean \"observe\"?"));
        assert!(gateway("Hold").unwrap_err().help.starts_with("did you mean \"hold\"?"));
        assert!(gateway("").unwrap_err().help.starts_with("write \"hold\""));
    }

    #[test]
    fn documents_reasons_plugins_and_files() {
        assert!(document("AWS-StartPortForwardingSession").is_ok());
        assert!(document("x").is_err() && document("a b c").is_err());
        assert!(reason(&"é".repeat(256)).is_ok() && reason("ticket 1").is_ok());
        assert!(reason("").is_err() && reason("a\nb").is_err() && reason(&"x".repeat(257)).is_err());
        assert!(plugin("session-manager-plugin").is_ok() && plugin("/opt/smp").is_ok());
        assert!(plugin("").is_err() && plugin("bin/smp").is_err() && plugin("/opt/").is_err());
        assert!(file("/etc/ca.pem").is_ok());
        assert!(file("ca.pem").is_err() && file("/etc/").is_err() && file("").is_err());
    }
}
