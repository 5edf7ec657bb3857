//! What is wrong with a file whose every value is right by itself: what is missing, what is there twice, and what
//! does not go together. Fills in the defaults.

use std::collections::BTreeMap;
use std::time::Duration;

use toml::Spanned;

use super::file::{File, Section};
use super::hook;
use super::keys;
use super::problem::{Report, quoted};
use super::{Config, GatewayMode, Identity, Listen, Rotate, Tunnel};

/// The configuration, whole if nothing was reported.
pub(super) fn check(file: File, report: &mut Report<'_>) -> Config {
    names("tunnel", file.tunnels.iter().filter_map(|tunnel| tunnel.name.as_ref()), report);
    names("hook", file.hooks.iter().filter_map(|hook| hook.name.as_ref()), report);
    tunnels_of_hooks(&file, report);
    addresses(&file, report);
    let File { defaults, tunnels, hooks } = file;
    let hooks = hooks.into_iter().filter_map(|hook| hook::whole(hook, report)).collect();
    let mut warnings = Vec::new();
    let tunnels = tunnels.into_iter().filter_map(|tunnel| {
        required(&tunnel, &defaults, report);
        companions(&tunnel, &defaults, report);
        warnings.extend(without_effect(&tunnel, &defaults));
        merged(tunnel, &defaults)
    });
    Config { tunnels: tunnels.collect(), hooks, warnings }
}

/// A keep-alive that somebody counts on, where none can be sent. One of `[defaults]` may be meant for other tunnels.
fn without_effect(tunnel: &Section, defaults: &Section) -> Option<String> {
    let keepalive = match tunnel.gateway {
        Some(_) => tunnel.keepalive,
        None => tunnel.keepalive.or(defaults.keepalive),
    };
    let observes = tunnel.gateway.or(defaults.gateway) == Some(GatewayMode::Observe);
    let name = tunnel.name.as_ref().filter(|_| observes && keepalive.flatten().is_some())?;
    Some(format!(
        "tunnel {}: `keepalive` has no effect with `gateway = \"observe\"`: the account's idle timeout ends a session that \
         nobody uses",
        quoted(name.get_ref())
    ))
}

fn names<'a>(of: &str, names: impl Iterator<Item = &'a Spanned<String>>, report: &mut Report<'_>) {
    let mut first = BTreeMap::new();
    for name in names {
        let line = report.line(&name.span());
        if let Some(first) = first.get(name.get_ref()) {
            let what =
                format!("name: {} is already the name of the {of} at line {first}", quoted(name.get_ref()));
            report.wrong(name.span(), what, format!("give each {of} a name of its own"));
        } else {
            first.insert(name.get_ref(), line);
        }
    }
}

/// A hook of a tunnel that there is not would be silent for ever.
fn tunnels_of_hooks(file: &File, report: &mut Report<'_>) {
    let names =
        || file.tunnels.iter().filter_map(|tunnel| tunnel.name.as_ref()).map(|name| name.get_ref().as_str());
    for tunnel in file.hooks.iter().flat_map(|hook| hook.tunnels.iter().flatten()) {
        let name = tunnel.get_ref();
        if !names().any(|known| known == name) {
            let help = match keys::nearest(name, names()) {
                Some(near) => format!("did you mean \"{near}\"?"),
                None => {
                    "write the name of a [[tunnel]] of this file, or leave `tunnels` out for all".to_owned()
                }
            };
            report.wrong(tunnel.span(), format!("hook.tunnels: there is no tunnel {}", quoted(name)), help);
        }
    }
}

/// Disabled tunnels too: each of them can be run by its name, beside all the others.
fn addresses(file: &File, report: &mut Report<'_>) {
    let mut seen: Vec<(&Spanned<Listen>, &Section)> = Vec::new();
    for tunnel in &file.tunnels {
        for listen in tunnel.listen.iter().flatten() {
            let taken = seen.iter().find(|(other, _)| other.get_ref().overlaps(listen.get_ref()));
            if let Some((other, owner)) = taken {
                let line = report.line(&other.span());
                let whose = match &owner.name {
                    _ if std::ptr::eq(*owner, tunnel) => "this tunnel".to_owned(),
                    Some(name) => format!("tunnel {}", quoted(name.get_ref())),
                    None => "another tunnel".to_owned(),
                };
                let (address, other) = (listen.get_ref(), other.get_ref());
                let what = if address == other {
                    format!("listen: `{address}` is taken by {whose}, at line {line}")
                } else {
                    format!("listen: `{address}` overlaps `{other}` of {whose}, at line {line}")
                };
                let help = match address {
                    Listen::Tcp(_) => "choose another port",
                    Listen::Unix(_) => "choose another path",
                };
                report.wrong(listen.span(), what, help);
            }
            seen.push((listen, tunnel));
        }
    }
}

fn required(tunnel: &Section, defaults: &Section, report: &mut Report<'_>) {
    for key in keys::KEYS.iter().filter(|key| matches!(key.default, keys::Default::Required)) {
        if !tunnel.given.contains(&key.name) && !defaults.given.contains(&key.name) {
            let whose = match &tunnel.name {
                Some(name) => format!("tunnel {}", quoted(name.get_ref())),
                None => "this tunnel".to_owned(),
            };
            let what = format!("{whose} has no `{}`", key.name);
            report.missing(tunnel.span.clone(), what, format!("add `{} = …`: {}", key.name, key.form));
        }
    }
}

/// Keys that mean nothing without another.
fn companions(tunnel: &Section, defaults: &Section, report: &mut Report<'_>) {
    let given = |key: &str| tunnel.given.contains(&key) || defaults.given.contains(&key);
    let external_id = tunnel.external_id.as_ref().or(defaults.external_id.as_ref());
    if let Some(external_id) = external_id.filter(|_| !given("role_arn")) {
        report.wrong(
            external_id.span(),
            "external_id: no role is assumed here",
            "add `role_arn`, or leave `external_id` out",
        );
    }
    let parameters = tunnel.parameters.as_ref().or(defaults.parameters.as_ref());
    if let Some(parameters) = parameters.filter(|_| !given("document")) {
        report.wrong(
            parameters.span(),
            "parameters: only a document of your own takes parameters",
            "add `document`; for AWS's own, `remote_host` and `remote_port` are all",
        );
    }
}

/// The tunnel's own values before the defaults before what is built in; `None` if a required one is missing.
fn merged(own: Section, defaults: &Section) -> Option<Tunnel> {
    /// The tunnel's own, or the file's default.
    macro_rules! pick {
        ($key:ident) => {
            own.$key.or_else(|| defaults.$key.clone())
        };
    }
    let seconds = Duration::from_secs;
    Some(Tunnel {
        name: own.name?.into_inner(),
        listen: own.listen?.into_iter().map(Spanned::into_inner).collect(),
        target: own.target?,
        remote_host: pick!(remote_host),
        remote_port: pick!(remote_port)?,
        enabled: pick!(enabled).unwrap_or(true),
        sessions: pick!(sessions).map_or(1, |sessions| u8::try_from(sessions).unwrap_or(u8::MAX)),
        gateway: pick!(gateway).unwrap_or(GatewayMode::Hold),
        identity: Identity {
            region: pick!(region),
            profile: pick!(profile),
            role_arn: pick!(role_arn),
            external_id: pick!(external_id).map(Spanned::into_inner),
            endpoint_url: pick!(endpoint_url),
            ca_file: pick!(ca_file),
        },
        stream_endpoint: pick!(stream_endpoint),
        kms_endpoint: pick!(kms_endpoint),
        document: pick!(document),
        parameters: pick!(parameters).map(Spanned::into_inner).unwrap_or_default(),
        reason: pick!(reason),
        hold: pick!(hold).unwrap_or(seconds(30)),
        max_held: pick!(max_held).map_or(512, usize::from),
        max_connections: pick!(max_connections).map_or(1024, usize::from),
        drain: pick!(drain).unwrap_or(seconds(600)),
        stop_grace: pick!(stop_grace).unwrap_or(seconds(5)),
        start_timeout: pick!(start_timeout).unwrap_or(seconds(30)),
        half_close_timeout: pick!(half_close_timeout).unwrap_or(seconds(5)),
        client_buffer: pick!(client_buffer).unwrap_or(4 << 20),
        stalled_client_timeout: pick!(stalled_client_timeout).unwrap_or(Some(seconds(300))),
        rotate: pick!(rotate).unwrap_or(Rotate::Auto),
        keepalive: pick!(keepalive).unwrap_or(Some(seconds(60))),
        probe: pick!(probe).flatten(),
        failover_after: pick!(failover_after).unwrap_or(seconds(5)),
        resume_for: pick!(resume_for).unwrap_or(seconds(600)),
        plugin: pick!(plugin).unwrap_or_else(|| "session-manager-plugin".to_owned()),
    })
}
