//! `[tunnel.probe]`: how the destination is looked after.

use std::time::Duration;

use toml::Spanned;
use toml::de::DeValue;

use super::keys::Default::{Absent, Required, Value};
use super::keys::Form::{Count, Duration as Period, Other, Switch};
use super::keys::{Key, Places, Table, nearest};
use super::problem::quoted;
use super::value::{Given, Wrong, described};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

/// How a destination is probed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// What is asked, and what is a good answer.
    pub kind: ProbeKind,
    /// From the end of one probe to the next.
    pub interval: Duration,
    /// How long the destination has for its answer.
    pub timeout: Duration,
    /// So many good probes in a row: the destination is up.
    pub rise: u16,
    /// So many bad ones in a row: it is down.
    pub fall: u16,
}

/// What a probe asks, and what is a good answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeKind {
    /// Nothing is asked; a connection that is not refused is good.
    Tcp,
    /// The destination speaks first, and what it says contains `expect`.
    Banner {
        /// Empty: anything will do.
        expect: Vec<u8>,
    },
    /// A TLS handshake.
    Tls(Tls),
    /// `GET path`.
    Http {
        /// Over TLS.
        tls: Option<Tls>,
        /// Begins with `/`.
        path: String,
        /// The expected status; without it anything below 500.
        status: Option<u16>,
    },
    /// PostgreSQL's SSLRequest, which comes before any login.
    Postgres,
    /// `PING`, answered by a Redis that lets us in or asks for a password first.
    Redis,
    /// These bytes are sent, and the answer contains those.
    Custom {
        /// May be empty.
        send: Vec<u8>,
        /// Not empty.
        expect: Vec<u8>,
    },
}

/// How a destination's certificate is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tls {
    /// Not at all: only the handshake counts.
    Unverified,
    /// For `remote_host`, against the system's authorities and `ca_file`.
    Verified,
}

/// The words of `kind`, and which of the keys below each takes.
const KINDS: &[(&str, &[&str])] = &[
    ("tcp", &[]),
    ("banner", &["expect"]),
    ("tls", &["verify"]),
    ("http", &["path", "status"]),
    ("https", &["path", "status", "verify"]),
    ("postgres", &[]),
    ("redis", &[]),
    ("custom", &["send", "expect"]),
];
/// Keys that only some kinds take.
const OF_KINDS: &[&str] = &["path", "status", "verify", "send", "expect"];
/// The longest text to send or to expect.
const LONGEST: usize = 4096;

/// What the table gives; what is absent, or wrong and reported, is `None`.
#[derive(Default)]
pub(super) struct ProbeSection {
    given: Places,
    kind: Option<&'static str>,
    interval: Option<Duration>,
    timeout: Option<Duration>,
    rise: Option<u16>,
    fall: Option<u16>,
    path: Option<String>,
    status: Option<u16>,
    verify: Option<bool>,
    send: Option<Vec<u8>>,
    expect: Option<Vec<u8>>,
}

type ProbeKey = Key<ProbeSection>;

/// Every key, in the order of the reference.
pub(super) static PROBE_KEYS: &[ProbeKey] = &[
    ProbeKey::new(
        "kind",
        Other(
            "`\"tcp\"`, `\"banner\"`, `\"tls\"`, `\"http\"`, `\"https\"`, `\"postgres\"`, `\"redis\"` or `\"custom\"`",
            |s, g| s.kind = g.text(kind),
        ),
        Required,
        "What is asked, and what is a good answer.",
    )
    .also(&["type", "protocol"]),
    ProbeKey::new(
        "interval",
        Period(SECOND, HOUR, |s| &mut s.interval),
        Value("\"30s\""),
        "From the end of one probe to the next, or up to a tenth of it less.",
    )
    .also(&["period", "every"]),
    ProbeKey::new(
        "timeout",
        Period(Duration::from_millis(100), Duration::from_secs(60), |s| &mut s.timeout),
        Value("\"5s\""),
        "How long the destination has for its answer.",
    ),
    ProbeKey::new("rise", Count(1, 100, |s| &mut s.rise), Value("2"), "So many good probes in a row: the destination is up.")
        .also(&["healthy_threshold"]),
    ProbeKey::new("fall", Count(1, 100, |s| &mut s.fall), Value("3"), "So many bad ones in a row: it is down.")
        .also(&["unhealthy_threshold", "retries"]),
    ProbeKey::new(
        "path",
        Other("a path, with its query", |s, g| s.path = g.text(path)),
        Value("\"/\""),
        "Only `http` and `https`: what is asked for.",
    )
    .also(&["url", "uri"]),
    ProbeKey::new(
        "status",
        Count(100, 599, |s| &mut s.status),
        Absent("anything below 500"),
        "Only `http` and `https`: the expected status.",
    )
    .also(&["code"]),
    ProbeKey::new(
        "verify",
        Switch(|s| &mut s.verify),
        Value("false"),
        "Only `tls` and `https`: whether the certificate must be good, for `remote_host` and by the system's authorities or \
         `ca_file`.",
    )
    .also(&["insecure"]),
    ProbeKey::new(
        "send",
        Other("a string, or a list of bytes `[0, 255]`", |s, g| s.send = bytes(g)),
        Absent("nothing"),
        "Only `custom`: what is sent.",
    ),
    ProbeKey::new(
        "expect",
        Other("a string, or a list of bytes `[0, 255]`", |s, g| s.expect = bytes(g)),
        Absent("anything"),
        "Only `banner` and `custom`: what the answer has to contain; `custom` needs it.",
    )
    .also(&["receive"]),
];

const TABLE: Table<ProbeSection> = Table { keys: PROBE_KEYS, prefix: "probe.", one: "a probe" };

/// Reads the table, or `"off"`.
pub(super) fn read(given: &mut Given<'_, '_>) -> Option<Option<Probe>> {
    let value = given.value;
    let table = match value.get_ref() {
        DeValue::Table(table) => table,
        DeValue::String(text) if text == "off" => return Some(None),
        other => {
            let what = format!("{} is not a table", described(other));
            let help = "write `[tunnel.probe]` beneath the tunnel's other keys, and `kind = \"tcp\"` under it, or \"off\"";
            return given.wrong(Wrong::new(what, help));
        }
    };
    let (mut section, places) = TABLE.read(table, given.report);
    section.given = places;
    whole(section, given).map(Some)
}

/// What is missing, and what does not go together.
fn whole(section: ProbeSection, given: &mut Given<'_, '_>) -> Option<Probe> {
    let has = |key: &str| section.given.iter().any(|(name, _)| *name == key);
    if !has("kind") {
        let help = "add `kind = …`: \"tcp\", \"banner\", \"tls\", \"http\", \"https\", \"postgres\", \"redis\" or \"custom\"";
        given.report.missing(given.value.span(), "the probe has no `kind`", help);
    }
    let kind = section.kind?;
    let takes = KINDS.iter().find(|(word, _)| *word == kind).map_or(&[][..], |(_, keys)| keys);
    for (key, span) in &section.given {
        if OF_KINDS.contains(key) && !takes.contains(key) {
            let takers: Vec<_> =
                KINDS.iter().filter(|(_, keys)| keys.contains(key)).map(|(word, _)| quoted(word)).collect();
            let help = format!("leave it out; it is for {}", takers.join(" and "));
            given.report.wrong(
                span.clone(),
                format!("probe.{key}: a probe of the kind `{kind}` has none"),
                help,
            );
        }
    }
    if kind == "custom" && !has("expect") {
        let help = "add `expect = …`: what the answer has to contain";
        given.report.missing(given.value.span(), "the probe has no `expect`", help);
    }
    let tls = if section.verify == Some(true) { Tls::Verified } else { Tls::Unverified };
    let http = |tls| ProbeKind::Http {
        tls,
        path: section.path.clone().unwrap_or_else(|| "/".to_owned()),
        status: section.status,
    };
    let expect = section.expect.clone();
    let kind = match kind {
        "tcp" => ProbeKind::Tcp,
        "banner" => ProbeKind::Banner { expect: expect.unwrap_or_default() },
        "tls" => ProbeKind::Tls(tls),
        "http" => http(None),
        "https" => http(Some(tls)),
        "postgres" => ProbeKind::Postgres,
        "redis" => ProbeKind::Redis,
        _ => ProbeKind::Custom { send: section.send.unwrap_or_default(), expect: expect? },
    };
    Some(Probe {
        kind,
        interval: section.interval.unwrap_or(30 * SECOND),
        timeout: section.timeout.unwrap_or(5 * SECOND),
        rise: section.rise.unwrap_or(2),
        fall: section.fall.unwrap_or(3),
    })
}

fn kind(text: &str) -> Result<&'static str, Wrong> {
    let words = || KINDS.iter().map(|(word, _)| *word);
    if let Some(word) = words().find(|word| *word == text) {
        return Ok(word);
    }
    let all: Vec<_> = words().map(|word| format!("\"{word}\"")).collect();
    let help = match (text, nearest(text, words())) {
        ("mysql" | "mariadb", _) => {
            "there is none for it: to a MySQL server every probe is a failed login, and a hundred of them lock the \
             host out"
                .to_owned()
        }
        ("postgresql" | "pg", _) => "did you mean \"postgres\"?".to_owned(),
        (_, Some(near)) => format!("did you mean \"{near}\"?"),
        _ => format!("write one of {}", all.join(", ")),
    };
    Err(Wrong::new(format!("{} is no kind of probe", quoted(text)), help))
}

fn path(text: &str) -> Result<String, Wrong> {
    let plain = text.bytes().all(|byte| byte.is_ascii_graphic());
    if text.starts_with('/') && plain && text.len() <= 1024 {
        return Ok(text.to_owned());
    }
    Err(Wrong::new(
        format!("{} is not a path", quoted(text)),
        "write a path that begins with /, without spaces, such as \"/health\"",
    ))
}

/// A text, or a list of numbers from 0 to 255: not everything that is sent is a text.
fn bytes(given: &mut Given<'_, '_>) -> Option<Vec<u8>> {
    let read: Option<Vec<u8>> = match given.value.get_ref() {
        DeValue::String(text) => Some(text.as_bytes().to_vec()),
        DeValue::Array(list) => list.iter().map(byte).collect(),
        _ => None,
    };
    match read {
        Some(bytes) if (1..=LONGEST).contains(&bytes.len()) => Some(bytes),
        Some(bytes) => {
            let what = if bytes.is_empty() { "there is nothing in it" } else { "that is too long" };
            given.wrong(Wrong::new(what, "write 1 to 4096 bytes"))
        }
        None => given.wrong(Wrong::new(
            format!("{} is no string and no list of bytes", described(given.value.get_ref())),
            "write a string, such as \"PING\\r\\n\", or numbers from 0 to 255, such as [0x00, 0xff]",
        )),
    }
}

fn byte(value: &Spanned<DeValue<'_>>) -> Option<u8> {
    match value.get_ref() {
        DeValue::Integer(number) => u8::from_str_radix(number.as_str(), number.radix()).ok(),
        _ => None,
    }
}

/// The names of its keys, in the order of the reference.
pub fn key_names() -> impl Iterator<Item = &'static str> {
    PROBE_KEYS.iter().map(|key| key.name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;

    const TUNNEL: &str =
        "[[tunnel]]\nname = \"a\"\nlisten = \"127.0.0.1:1\"\ntarget = \"i-12345678\"\nremote_port = 1\n";

    fn probe(keys: &str) -> Option<Probe> {
        parse("f", &format!("{TUNNEL}{keys}")).unwrap().tunnels.remove(0).probe
    }

    #[test]
    fn every_kind_is_read() {
        let kind = |keys: &str| probe(&format!("[tunnel.probe]\n{keys}\n")).unwrap().kind;
        assert_eq!(kind("kind = \"tcp\""), ProbeKind::Tcp);
        assert_eq!(kind("kind = \"banner\""), ProbeKind::Banner { expect: Vec::new() });
        let ssh = ProbeKind::Banner { expect: b"SSH-2.0".to_vec() };
        assert_eq!(kind("kind = \"banner\"\nexpect = \"SSH-2.0\""), ssh);
        assert_eq!(kind("kind = \"tls\""), ProbeKind::Tls(Tls::Unverified));
        assert_eq!(kind("kind = \"tls\"\nverify = true"), ProbeKind::Tls(Tls::Verified));
        let http = |tls, path: &str, status| ProbeKind::Http { tls, path: path.into(), status };
        assert_eq!(kind("kind = \"http\""), http(None, "/", None));
        assert_eq!(kind("kind = \"http\"\npath = \"/x?y\"\nstatus = 204"), http(None, "/x?y", Some(204)));
        assert_eq!(kind("kind = \"https\""), http(Some(Tls::Unverified), "/", None));
        assert_eq!(kind("kind = \"postgres\""), ProbeKind::Postgres);
        assert_eq!(kind("kind = \"redis\""), ProbeKind::Redis);
        let custom = ProbeKind::Custom { send: b"\0\xff\n".to_vec(), expect: b"ok\r\n".to_vec() };
        assert_eq!(kind("kind = \"custom\"\nsend = [0, 0xff, 10]\nexpect = \"ok\\r\\n\""), custom);
    }

    #[test]
    fn defaults_are_as_the_table_says_and_a_tunnel_can_do_without() {
        let written: String = PROBE_KEYS
            .iter()
            .filter_map(|key| match key.default {
                Value(value) if !OF_KINDS.contains(&key.name) => Some(format!("{} = {value}\n", key.name)),
                _ => None,
            })
            .collect();
        assert!(written.contains("interval"));
        assert_eq!(
            probe(&format!("[tunnel.probe]\nkind = \"tcp\"\n{written}")),
            probe("probe.kind = \"tcp\"\n")
        );
        let shared = "[defaults.probe]\nkind = \"redis\"\n";
        assert_eq!(probe(shared).unwrap().kind, ProbeKind::Redis);
        assert_eq!(probe(&format!("probe = \"off\"\n{shared}")), None);
        assert_eq!(probe(&format!("probe = {{ kind = \"tcp\" }}\n{shared}")).unwrap().kind, ProbeKind::Tcp);
        assert_eq!(probe(""), None);
    }
}
