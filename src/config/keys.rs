//! Every key that a tunnel can have, in one table: what it takes, its default, what it is for, and where its value goes.
//!
//! A key whose value is a table has a table of keys of its own ([`super::probe`]), and so has a `[[hook]]`
//! ([`super::hook`]).
//!
//! The table decides what an unknown key is and which one was meant, what may stand in `[defaults]`, and what the
//! reference in `docs/configuration.md` says.

use std::ops::Range;
use std::time::Duration;

use toml::de::DeTable;

use super::file::{Section, is_secret, secret};
use super::problem::{Report, quoted};
use super::value::Given;
use super::{endpoint, identity, listen, probe, size, target, text};

/// One key of a `[[tunnel]]`, or of a table in it, which is read into an `S`.
pub(super) struct Key<S: 'static = Section> {
    /// As it is written in the file.
    pub name: &'static str,
    /// What it takes.
    pub form: Form<S>,
    /// What holds without it.
    pub default: Default,
    /// Whether it may stand in `[defaults]` too.
    pub shared: bool,
    /// What it is for, in Markdown.
    pub about: &'static str,
    /// What people call it elsewhere.
    also: &'static [&'static str],
}

/// What a key takes, and where the value is put.
pub(super) enum Form<S: 'static = Section> {
    /// `true` or `false`.
    Switch(fn(&mut S) -> &mut Option<bool>),
    /// A whole number, both bounds included.
    Count(u16, u16, fn(&mut S) -> &mut Option<u16>),
    /// A duration with its unit, both bounds included.
    Duration(Duration, Duration, fn(&mut S) -> &mut Option<Duration>),
    /// Anything else, in words.
    Other(&'static str, Read<S>),
}

type Read<S> = fn(&mut S, &mut Given<'_, '_>);

/// What holds where a key is not given.
pub(super) enum Default {
    /// It must be given.
    Required,
    /// This value, as it would stand in the file.
    Value(&'static str),
    /// Nothing; in words, what happens then.
    Absent(&'static str),
}

use Default::{Absent, Required, Value};
use Form::{Count, Other, Switch};

impl<S> Key<S> {
    pub(super) const fn new(
        name: &'static str,
        form: Form<S>,
        default: Default,
        about: &'static str,
    ) -> Self {
        Self { name, form, default, shared: true, about, also: &[] }
    }

    const fn of_one_tunnel(mut self) -> Self {
        self.shared = false;
        self
    }

    pub(super) const fn also(mut self, also: &'static [&'static str]) -> Self {
        self.also = also;
        self
    }

    /// Reads a value of this key into its place, or reports it.
    pub(super) fn read(&self, section: &mut S, given: &mut Given<'_, '_>) {
        match self.form {
            Switch(slot) => *slot(section) = given.switch(),
            Count(least, most, slot) => *slot(section) = given.count(least, most),
            Form::Duration(least, most, slot) => *slot(section) = given.duration(least, most),
            Other(_, read) => read(section, given),
        }
    }
}

/// A duration with bounds in milliseconds, and its field.
macro_rules! between {
    ($least:expr, $most:expr, $field:ident) => {
        Form::Duration(Duration::from_millis($least), Duration::from_millis($most), |section| {
            &mut section.$field
        })
    };
}

const SECOND: u64 = 1000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

type TunnelKey = Key<Section>;

/// Every key, in the order of the reference.
pub(super) static KEYS: &[TunnelKey] = &[
    TunnelKey::new(
        "name",
        Other("1 to 48 characters of `a-z`, `0-9` and `-`", |s, g| s.name = g.placed(text::name)),
        Required,
        "What the tunnel is called: in logs, in commands, and in `autossm@NAME.service`.",
    )
    .of_one_tunnel()
    .also(&["id", "tunnel", "label"]),
    TunnelKey::new(
        "listen",
        Other("`\"ADDRESS:PORT\"`, `\"unix:/PATH\"`, or a list of these", |s, g| s.listen = g.texts(listen::parse)),
        Required,
        "Where clients connect. Addresses of two tunnels may not overlap; a path has at most 107 bytes.",
    )
    .of_one_tunnel()
    .also(&["bind", "local", "local_port", "local_address", "address"]),
    TunnelKey::new(
        "target",
        Other(
            "`\"i-…\"`, `\"mi-…\"`, `\"ecs:CLUSTER_TASK_RUNTIME\"`, a list of these, or `{ tag = \"Key=Value\" }`",
            |s, g| s.target = target::read(g),
        ),
        Required,
        "The managed node that sessions are started with: of a list, the first that is connected; of a tag, any that \
         carries it and is online. Chosen anew for each session; those of a pool are spread (networks.md).",
    )
    .of_one_tunnel()
    .also(&["tag", "instance", "instance_id", "targets", "node"]),
    TunnelKey::new(
        "remote_host",
        Other("a host's name or address", |s, g| s.remote_host = g.text(text::remote_host)),
        Absent("the target itself"),
        "The destination, as the target's agent resolves it.",
    )
    .also(&["host", "destination"]),
    TunnelKey::new("remote_port", Count(1, 65535, |s| &mut s.remote_port), Required, "The destination's port.")
        .also(&["port", "port_number", "destination_port"]),
    TunnelKey::new(
        "enabled",
        Switch(|s| &mut s.enabled),
        Value("true"),
        "`false`: the tunnel runs only when it is named on the command line.",
    )
    .also(&["enable", "disabled"]),
    TunnelKey::new(
        "sessions",
        Count(1, 16, |s| &mut s.sessions),
        Value("1"),
        "Sessions kept at once. One moves at most about 0.6 MB/s upward, whatever the network.",
    ),
    TunnelKey::new(
        "gateway",
        Other("`\"hold\"` or `\"observe\"`", |s, g| s.gateway = g.text(text::gateway)),
        Value("\"hold\""),
        "`hold` ends the plugin's TLS on this host, so that open connections survive the hourly close; `observe` leaves \
         TLS alone, where more of them are cut.",
    )
    .also(&["mode"]),
    TunnelKey::new(
        "region",
        Other("a region's name", |s, g| s.region = g.text(identity::region)),
        Absent("as the AWS SDK finds it"),
        "The target's region.",
    )
    .also(&["aws_region"]),
    TunnelKey::new(
        "profile",
        Other("a profile's name", |s, g| s.profile = g.text(identity::profile)),
        Absent("the AWS SDK's default chain"),
        "A profile of `~/.aws/config`, where credentials belong that are not the host's own.",
    )
    .also(&["aws_profile"]),
    TunnelKey::new(
        "role_arn",
        Other("`\"arn:aws:iam::ACCOUNT:role/NAME\"`", |s, g| s.role_arn = g.text(identity::role_arn)),
        Absent("none"),
        "A role to assume with those credentials.",
    )
    .also(&["role", "assume_role"]),
    TunnelKey::new(
        "external_id",
        Other("2 to 1224 characters", |s, g| s.external_id = g.placed(identity::external_id)),
        Absent("none"),
        "Handed over when the role is assumed; only with `role_arn`.",
    ),
    TunnelKey::new(
        "endpoint_url",
        Other("`\"https://…\"`, on loopback also `\"http://…\"`", |s, g| {
            s.endpoint_url = g.text(endpoint::endpoint_url);
        }),
        Absent("AWS's own"),
        "The SSM API's address, for a VPC endpoint with a private name. Excludes FIPS and dual-stack names (networks.md).",
    )
    .also(&["endpoint", "ssm_endpoint", "url"]),
    TunnelKey::new(
        "stream_endpoint",
        Other("`\"wss://HOST[:PORT]\"`, on loopback also `\"ws://HOST:PORT\"`", |s, g| {
            s.stream_endpoint = g.text(endpoint::stream_endpoint);
        }),
        Absent("AWS's own"),
        "The address that data channels are opened to, for a VPC endpoint with a private name. TLS is verified against \
         this name.",
    ),
    TunnelKey::new(
        "kms_endpoint",
        Other("`\"https://HOST[:PORT]\"`, on loopback also `\"http://HOST:PORT\"`", |s, g| {
            s.kms_endpoint = g.text(endpoint::kms_endpoint);
        }),
        Absent("AWS's own"),
        "The address that KMS is called at for encrypted sessions, for a VPC endpoint with a private name. TLS is \
         verified against this name.",
    ),
    TunnelKey::new(
        "ca_file",
        Other("the path of a PEM file", |s, g| s.ca_file = g.text(text::file)),
        Absent("the system's alone"),
        "Certificate authorities trusted beside the system's, for the API and for data channels.",
    )
    .also(&["ca_bundle", "ca", "cacert"]),
    TunnelKey::new(
        "document",
        Other("a session document's name or ARN", |s, g| s.document = g.text(text::document)),
        Absent("AWS's for port forwarding"),
        "A session document of the account's own.",
    )
    .also(&["document_name"]),
    TunnelKey::new(
        "parameters",
        Other("a table of strings or lists of strings", |s, g| {
            s.parameters = text::parameters(g).map(|table| toml::Spanned::new(g.value.span(), table));
        }),
        Absent("none"),
        "The document's parameters, only with `document`. `portNumber`, `host` and `localPortNumber` are filled in where \
         they are not given.",
    ),
    TunnelKey::new(
        "reason",
        Other("1 to 256 characters", |s, g| s.reason = g.text(text::reason)),
        Absent("`autossm HOST TUNNEL`"),
        "Shown in the account's session history.",
    ),
    TunnelKey::new(
        "hold",
        between!(0, HOUR, hold),
        Value("\"30s\""),
        "How long a client waits for a session before its connection is closed.",
    )
    .also(&["timeout", "connect_timeout"]),
    TunnelKey::new("max_held", Count(0, 65535, |s| &mut s.max_held), Value("512"), "Clients waiting at once; one more is closed."),
    TunnelKey::new(
        "max_connections",
        Count(1, 65535, |s| &mut s.max_connections),
        Value("1024"),
        "Connections open at once, the waiting ones included; one more is closed.",
    ),
    TunnelKey::new(
        "drain",
        between!(0, 7 * DAY, drain),
        Value("\"10m\""),
        "How long connections of a session that was replaced may go on.",
    ),
    TunnelKey::new(
        "stop_grace",
        between!(0, 10 * SECOND, stop_grace),
        Value("\"5s\""),
        "How long open connections may go on when autossm stops.",
    )
    .also(&["grace", "grace_period"]),
    TunnelKey::new(
        "start_timeout",
        between!(0, 5 * MINUTE, start_timeout),
        Value("\"30s\""),
        "How long systemd is kept waiting for the first session when autossm starts. After it the service counts as \
         started, and its clients are held.",
    )
    .also(&["startup_timeout", "ready_timeout"]),
    TunnelKey::new(
        "half_close_timeout",
        between!(100, HOUR, half_close_timeout),
        Value("\"5s\""),
        "After a client has shut down its sending side: how long the destination may be silent before both sides are \
         closed. The plugin cannot pass on a half-close.",
    ),
    TunnelKey::new(
        "client_buffer",
        Other("a size, `64KiB` to `64MiB`", |s, g| {
            s.client_buffer = g.text(|text| size::parse(text, 64 << 10, 64 << 20));
        }),
        Value("\"4MiB\""),
        "What is kept in memory for one client that does not read; 64 MiB for all clients of a tunnel together. When it \
         is full the session is about to stand still, because the plugin has no room of its own for each client, and \
         new connections go to another session.",
    )
    .also(&["buffer", "buffer_size"]),
    TunnelKey::new(
        "stalled_client_timeout",
        Other("`\"off\"` or a duration, `1s` to `1d`", |s, g| {
            s.stalled_client_timeout =
                text::duration_or_off(g, Duration::from_secs(1), Duration::from_millis(DAY));
        }),
        Value("\"5m\""),
        "A client that has taken nothing for this long, while its `client_buffer` is full (or hardly anything is left of the \
         64 MiB), is closed. One that is in nobody's way, such as a pager in which somebody reads, is left alone.",
    ),
    TunnelKey::new(
        "rotate",
        Other("`\"auto\"`, `\"off\"` or a duration, `1s` to `30d`", |s, g| {
            s.rotate = text::rotate(g, Duration::from_secs(1), Duration::from_millis(30 * DAY));
        }),
        Value("\"auto\""),
        "A new session at this age, or up to a tenth of it earlier, ready before the old one drains. `auto`: before the \
         account's maximum session duration, if it has one.",
    )
    .also(&["max_age", "lifetime", "max_session_duration"]),
    TunnelKey::new(
        "keepalive",
        Other("`\"off\"` or a duration, `1s` to `1h`", |s, g| {
            s.keepalive = text::duration_or_off(g, Duration::from_secs(1), Duration::from_millis(HOUR));
        }),
        Value("\"1m\""),
        "When nothing has flowed for this long, an empty message goes to the agent: the account's idle timeout does not \
         run out, and an agent that is gone is noticed, within this time and 15 s. (Connections that its session was given \
         before wait for it, and are cut after `resume_for`.) The destination sees nothing of it. Choose at most half \
         the idle timeout. (A plugin that was built from source needs one every 10 s, and gets it in any case: agents end its \
         sessions otherwise.)",
    )
    .also(&["server_alive_interval", "idle_timeout", "heartbeat"]),
    TunnelKey::new(
        "probe",
        Other("a table, see below, or `\"off\"`", |s, g| s.probe = probe::read(g)),
        Value("\"off\""),
        "How the destination is looked after, beyond the connections that clients make.",
    )
    .also(&["health_check", "check"]),
    TunnelKey::new(
        "failover_after",
        between!(100, HOUR, failover_after),
        Value("\"5s\""),
        "When a data channel has been down for this long, or messages have been missing or the agent away, a second session is \
         started for new connections.",
    ),
    TunnelKey::new(
        "resume_for",
        between!(SECOND, DAY, resume_for),
        Value("\"10m\""),
        "When a data channel has been down for this long, its session is given up, with its open connections. An agent that \
         the service says is away is given up after 100 s already: it tries six times to come back, for 96 s at the most, and \
         never again.",
    ),
    TunnelKey::new(
        "plugin",
        Other("a program's name or path", |s, g| s.plugin = g.text(text::plugin)),
        Value("\"session-manager-plugin\""),
        "AWS's plugin. A name is looked for in `PATH`, then in `/usr/local/sessionmanagerplugin/bin`.",
    ),
];

/// A table of other keys than a tunnel's.
pub(super) struct Table<S: 'static> {
    /// Its keys.
    pub keys: &'static [Key<S>],
    /// What stands before a key in what is reported, with a dot behind.
    pub prefix: &'static str,
    /// One of them, with its article.
    pub one: &'static str,
}

/// The keys that stand in a table, and where.
pub(super) type Places = Vec<(&'static str, Range<usize>)>;

impl<S: std::default::Default> Table<S> {
    /// Reads what can be read; what cannot is in the report.
    pub(super) fn read(&self, table: &DeTable<'_>, report: &mut Report<'_>) -> (S, Places) {
        let (mut section, mut places) = (S::default(), Vec::new());
        for (written, value) in table {
            let name = written.get_ref().as_ref();
            match self.keys.iter().find(|key| key.name == name) {
                Some(key) => {
                    places.push((key.name, written.span()));
                    let mut given =
                        Given { key: key.name, table: self.prefix, form: &key.form, value, report };
                    key.read(&mut section, &mut given);
                }
                None if is_secret(name) => secret(name, written.span(), report),
                None => {
                    let help = match meant_in(self.keys, name) {
                        Some(key) => {
                            places.push((key.name, written.span()));
                            format!("did you mean `{}`? it takes {}", key.name, key.form)
                        }
                        None => {
                            let names: Vec<_> =
                                self.keys.iter().map(|key| format!("`{}`", key.name)).collect();
                            format!("{} has {}", self.one, names.join(", "))
                        }
                    };
                    let what = format!("unknown key {} in {}", quoted(name), self.one);
                    report.wrong(written.span(), what, help);
                }
            }
        }
        (section, places)
    }
}

/// The tunnel's key of this name.
pub(super) fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

/// The tunnel's key that was probably meant by this name.
pub(super) fn meant(name: &str) -> Option<&'static Key> {
    meant_in(KEYS, name)
}

/// The key of a table that was probably meant by this name.
pub(super) fn meant_in<S>(keys: &'static [Key<S>], name: &str) -> Option<&'static Key<S>> {
    let plain = plain(name);
    let alias = keys.iter().find(|key| key.also.iter().any(|other| self::plain(other) == plain));
    let nearest = || nearest(name, keys.iter().map(|key| key.name));
    alias.or_else(|| nearest().and_then(|near| keys.iter().find(|key| key.name == near)))
}

/// The name that is so like `name` that it was probably meant.
pub(super) fn nearest<'n>(name: &str, known: impl IntoIterator<Item = &'n str>) -> Option<&'n str> {
    let name = plain(&name.chars().take(64).collect::<String>());
    let near = |candidate: &'n str| {
        let distance = strsim::damerau_levenshtein(&name, &plain(candidate));
        (distance <= (candidate.len() / 3).clamp(1, 3)).then_some((distance, candidate))
    };
    known.into_iter().filter_map(near).min_by_key(|(distance, _)| *distance).map(|(_, candidate)| candidate)
}

/// `remotePort`, `remote-port` and `Remote_Port` are one.
fn plain(name: &str) -> String {
    name.chars().filter(|c| !matches!(c, '-' | '_')).flat_map(char::to_lowercase).collect()
}

/// Every key's name, in the order of the reference.
pub fn names() -> impl Iterator<Item = &'static str> {
    KEYS.iter().map(|key| key.name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;

    #[test]
    fn the_key_that_was_meant_is_found() {
        for (name, key) in [
            ("remotePort", "remote_port"),
            ("remote-host", "remote_host"),
            ("regoin", "region"),
            ("Region", "region"),
            ("port", "remote_port"),
            ("tag", "target"),
            ("max_conections", "max_connections"),
            ("endpoint", "endpoint_url"),
        ] {
            assert_eq!(meant(name).map(|key| key.name), Some(key), "{name}");
        }
        for name in ["", "colour", "x", &"z".repeat(5000)] {
            assert!(meant(name).is_none(), "{name}");
        }
    }

    /// What the table says of defaults is what holds: a file that writes it down means the same as one that does not.
    #[test]
    fn defaults_are_as_the_table_says() {
        let minimal =
            "[[tunnel]]\nname = \"a\"\nlisten = \"127.0.0.1:1\"\ntarget = \"i-12345678\"\nremote_port = 1\n";
        let config = parse("f", minimal).unwrap();
        let written = KEYS.iter().filter_map(|key| match key.default {
            Value(value) => Some(format!("{} = {value}\n", key.name)),
            _ => None,
        });
        let text = minimal.to_owned() + &written.collect::<String>();
        assert_eq!(parse("f", &text).unwrap(), config);
        assert!(text.contains("hold = \"30s\"") && text.contains("max_connections = 1024"));
    }

    #[test]
    fn names_are_unique_and_aliases_lead_to_one_key() {
        let names: Vec<&str> =
            KEYS.iter().flat_map(|key| key.also.iter().chain([&key.name]).copied()).collect();
        for name in &names {
            assert_eq!(names.iter().filter(|other| plain(other) == plain(name)).count(), 1, "{name}");
        }
    }
}
