//! The file's shape: `[defaults]`, `[[tunnel]]` and `[[hook]]`, read key by key, so that one error does not hide the next.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::hook::{self, HookSection};
use super::keys;
use super::problem::{Report, quoted};
use super::value::{Given, Value};
use super::{GatewayMode, Listen, Probe, Rotate, StreamEndpoint, Target};

/// What one `[[tunnel]]` or `[defaults]` gives; what is absent, or wrong and reported, is `None`.
#[derive(Default)]
pub(super) struct Section {
    /// Where it begins.
    pub span: Range<usize>,
    /// The keys that stand in it, right or wrong.
    pub given: Vec<&'static str>,
    pub name: Option<Spanned<String>>,
    pub enabled: Option<bool>,
    pub listen: Option<Vec<Spanned<Listen>>>,
    pub target: Option<Target>,
    pub remote_host: Option<String>,
    pub remote_port: Option<u16>,
    pub sessions: Option<u16>,
    pub gateway: Option<GatewayMode>,
    pub region: Option<String>,
    pub profile: Option<String>,
    pub role_arn: Option<String>,
    pub external_id: Option<Spanned<String>>,
    pub endpoint_url: Option<String>,
    pub ca_file: Option<PathBuf>,
    pub stream_endpoint: Option<StreamEndpoint>,
    pub kms_endpoint: Option<StreamEndpoint>,
    pub document: Option<String>,
    pub parameters: Option<Spanned<BTreeMap<String, Vec<String>>>>,
    pub reason: Option<String>,
    pub hold: Option<Duration>,
    pub max_held: Option<u16>,
    pub max_connections: Option<u16>,
    pub drain: Option<Duration>,
    pub stop_grace: Option<Duration>,
    pub start_timeout: Option<Duration>,
    pub half_close_timeout: Option<Duration>,
    pub client_buffer: Option<usize>,
    pub stalled_client_timeout: Option<Option<Duration>>,
    pub rotate: Option<Rotate>,
    pub keepalive: Option<Option<Duration>>,
    pub probe: Option<Option<Probe>>,
    pub failover_after: Option<Duration>,
    pub resume_for: Option<Duration>,
    pub plugin: Option<String>,
}

/// The whole file.
#[derive(Default)]
pub(super) struct File {
    pub defaults: Section,
    pub tunnels: Vec<Section>,
    pub hooks: Vec<HookSection>,
}

/// Which table a key stands in.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    Defaults,
    Tunnel,
    Hook,
}

/// Reads all that can be read; what cannot is in the report.
pub(super) fn read(document: &DeTable<'_>, report: &mut Report<'_>) -> File {
    let mut file = File::default();
    let mut tunnels_given = false;
    for (key, value) in document {
        match known_table(key, value, report) {
            Some(Place::Defaults) => defaults(value, &mut file, report),
            Some(Place::Tunnel) => {
                tunnels_given |= !value.get_ref().as_array().is_some_and(|list| list.is_empty());
                let add = |table: &DeTable<'_>, span, report: &mut Report<'_>| {
                    file.tunnels.push(section(table, span, Place::Tunnel, report));
                };
                list("tunnel", value, report, add);
            }
            Some(Place::Hook) => {
                let add = |table: &DeTable<'_>, span, report: &mut Report<'_>| {
                    file.hooks.push(hook::read(table, span, report));
                };
                list("hook", value, report, add);
            }
            None => {}
        }
    }
    if !tunnels_given {
        let help = "begin with `[[tunnel]]`, and give it `name`, `listen`, `target` and `remote_port`";
        report.missing(0..0, "there is no tunnel in this file", help);
    }
    file
}

fn defaults(value: &Value<'_>, file: &mut File, report: &mut Report<'_>) {
    if let Some(table) = value.get_ref().as_table() {
        file.defaults = section(table, value.span(), Place::Defaults, report);
    } else {
        let what = "`defaults` is one table, not a list or a value";
        report.wrong(value.span(), what, "write `[defaults]`, in single brackets");
    }
}

/// A list of tables. One table in single brackets is read as what it was meant to be.
fn list(
    what: &str,
    value: &Value<'_>,
    report: &mut Report<'_>,
    mut add: impl FnMut(&DeTable<'_>, Range<usize>, &mut Report<'_>),
) {
    if let DeValue::Array(list) = value.get_ref() {
        for value in list.iter() {
            match value.get_ref().as_table() {
                Some(table) => add(table, value.span(), report),
                None => {
                    let help = format!("write `[[{what}]]` with its keys beneath");
                    report.wrong(value.span(), format!("a {what} is a table"), help);
                }
            }
        }
        return;
    }
    let wrong = format!("`{what}` is a list of tables, one for each {what}");
    report.wrong(value.span(), wrong, format!("write `[[{what}]]`, in double brackets"));
    if let Some(table) = value.get_ref().as_table() {
        add(table, value.span(), report);
    }
}

fn section(table: &DeTable<'_>, span: Range<usize>, place: Place, report: &mut Report<'_>) -> Section {
    let mut section = Section { span, ..Section::default() };
    for (written, value) in table {
        let name = written.get_ref().as_ref();
        match keys::find(name) {
            Some(key) if place == Place::Tunnel || key.shared => {
                section.given.push(key.name);
                let mut given = Given { key: key.name, table: "", form: &key.form, value, report };
                key.read(&mut section, &mut given);
            }
            Some(key) => {
                let what = format!("`{}` is not allowed in [defaults]", key.name);
                report.wrong(written.span(), what, format!("give each [[tunnel]] its own `{}`", key.name));
            }
            None => section.given.extend(unknown(name, written.span(), place, report)),
        }
    }
    section
}

/// Reports an unknown key; the name of the one that was probably meant is returned, so that it is not missed as well.
fn unknown(name: &str, span: Range<usize>, place: Place, report: &mut Report<'_>) -> Option<&'static str> {
    if is_secret(name) {
        secret(name, span, report);
        return None;
    }
    let table = if place == Place::Tunnel { "[[tunnel]]" } else { "[defaults]" };
    let meant = keys::meant(name).filter(|key| place == Place::Tunnel || key.shared);
    let help = match meant {
        Some(key) => format!("did you mean `{}`? it takes {}", key.name, key.form),
        None => "no key has a name like this; config.example.toml shows all that there are".to_owned(),
    };
    report.wrong(span, format!("unknown key {} in {table}", quoted(name)), help);
    meant.map(|key| key.name)
}

/// Which table this is, or was meant to be; what has no right to stand at the file's top level is reported.
fn known_table(key: &Spanned<Cow<'_, str>>, value: &Value<'_>, report: &mut Report<'_>) -> Option<Place> {
    let name = key.get_ref().as_ref();
    match name {
        "defaults" => return Some(Place::Defaults),
        "tunnel" => return Some(Place::Tunnel),
        "hook" => return Some(Place::Hook),
        _ if is_secret(name) => {
            secret(name, key.span(), report);
            return None;
        }
        _ => {}
    }
    let is_table = match value.get_ref() {
        DeValue::Table(_) => true,
        DeValue::Array(list) => list.iter().any(|value| value.get_ref().is_table()),
        _ => false,
    };
    let (mut what, mut place) =
        (format!("unknown {} {}", if is_table { "table" } else { "key" }, quoted(name)), None);
    let help = if let Some(key) = keys::find(name) {
        what = format!("`{name}` is outside of any tunnel");
        match (key.shared, is_table) {
            (true, true) => format!("write `[tunnel.{name}]` beneath its [[tunnel]], or `[defaults.{name}]`"),
            (true, false) => "put it under [defaults] for all tunnels, or under one [[tunnel]]".to_owned(),
            (false, _) => "put it under its [[tunnel]]".to_owned(),
        }
    } else {
        match keys::nearest(name, ["defaults", "tunnel", "hook"]).filter(|_| is_table) {
            Some("tunnel") => {
                place = Some(Place::Tunnel);
                "did you mean `[[tunnel]]`?".to_owned()
            }
            Some("hook") => {
                place = Some(Place::Hook);
                "did you mean `[[hook]]`?".to_owned()
            }
            Some(_) => {
                place = Some(Place::Defaults);
                "did you mean `[defaults]`?".to_owned()
            }
            None => match keys::meant(name).filter(|_| !is_table) {
                Some(key) => format!("did you mean `{}`, in a [[tunnel]]?", key.name),
                None => {
                    "a file has `[defaults]`, a `[[tunnel]]` for each tunnel, and a `[[hook]]` for each hook"
                        .to_owned()
                }
            },
        }
    };
    report.wrong(key.span(), what, help);
    place
}

/// Credentials belong to the AWS SDK's chain; a configuration file is read, copied and pasted by too many.
pub(super) fn is_secret(name: &str) -> bool {
    let plain: String =
        name.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_lowercase();
    ["secret", "password", "passwd", "passphrase", "token", "accesskey", "credential", "privatekey", "apikey"]
        .iter()
        .any(|word| plain.contains(word))
}

pub(super) fn secret(name: &str, span: Range<usize>, report: &mut Report<'_>) {
    report.wrong(
        span,
        format!("{}: secrets do not belong in this file", quoted(name)),
        "take it out, and let the host's role or a `profile` of ~/.aws/config give the credentials (`role_arn` assumes a \
         role with them)",
    );
}
