//! PURE. From a call of StartSession to a `[[tunnel]]`.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::command::StartSession;
use crate::config::{self, Listen};

const TO_TARGET: &str = "AWS-StartPortForwardingSession";
const TO_REMOTE_HOST: &str = "AWS-StartPortForwardingSessionToRemoteHost";
/// Where AWS's own documents forward to if no port is given.
const DEFAULT_PORT: u16 = 80;

/// What is taken already.
#[derive(Debug, Default)]
pub(super) struct Taken {
    pub names: BTreeSet<String>,
    pub listens: Vec<Listen>,
}

/// The tunnel's text, which the configuration's own parser has accepted. `name` and `listen` replace what would be derived.
///
/// # Errors
/// Why there can be no such tunnel, in words.
pub(super) fn render(
    call: &StartSession,
    name: Option<&str>,
    listen: Option<&str>,
    taken: &mut Taken,
) -> Result<String, String> {
    let document = document(call)?;
    let target = call.target.as_deref().ok_or("there is no --target")?;
    let one = |name: &str| match call.parameters.get(name).map(Vec::as_slice) {
        None | Some([]) => Ok(None),
        Some([value]) => Ok(Some(value.as_str())),
        Some(_) => Err(format!("the parameter `{name}` has more than one value")),
    };
    let (host, port, local) = (one("host")?, one("portNumber")?, one("localPortNumber")?);
    let own = !matches!(document, TO_TARGET | TO_REMOTE_HOST);
    if document == TO_REMOTE_HOST && host.is_none() {
        return Err(format!("{TO_REMOTE_HOST} needs the parameter `host`"));
    }
    let mut notes: Vec<String> = call.left_out.iter().map(|line| format!("left out: {line}")).collect();
    let remote_port = match port {
        Some(text) => number("portNumber", text)?,
        None if own => {
            notes.push(
                "remote_port: the command does not say; the document decides, or write the port".to_owned(),
            );
            DEFAULT_PORT
        }
        None => {
            notes.push(format!("remote_port: the command does not say; {document} takes {DEFAULT_PORT}"));
            DEFAULT_PORT
        }
    };
    let local_port = match local {
        None | Some("0") => {
            let chosen = if remote_port < 1024 { 10_000 + remote_port } else { remote_port };
            if listen.is_none() {
                notes.push(
                    "listen: the command lets the plugin choose a port; a tunnel has one that stays"
                        .to_owned(),
                );
            }
            chosen
        }
        Some(text) => number("localPortNumber", text)?,
    };
    if local_port < 1024 && listen.is_none() {
        notes.push(
            "listen: a port below 1024 needs a capability that the service does not have; see install.md"
                .to_owned(),
        );
    }
    let listen = listen.map_or_else(|| format!("127.0.0.1:{local_port}"), str::to_owned);
    let name = match name {
        Some(name) => name.to_owned(),
        None => free(&derived(host.unwrap_or(target), remote_port), &taken.names),
    };

    let mut text = String::new();
    let mut key = |key: &str, value: toml::Value| {
        let _ = writeln!(text, "{key} = {value}");
    };
    key("name", name.as_str().into());
    key("listen", listen.as_str().into());
    key("target", target.into());
    if let Some(host) = host {
        key("remote_host", host.into());
    }
    key("remote_port", i64::from(remote_port).into());
    let optional = [
        ("region", &call.region),
        ("profile", &call.profile),
        ("endpoint_url", &call.endpoint_url),
        ("ca_file", &call.ca_file),
        ("reason", &call.reason),
    ];
    for (name, value) in optional {
        if let Some(value) = value {
            key(name, value.as_str().into());
        }
    }
    if own {
        key("document", document.into());
        // The usual ones are filled in by themselves.
        let others = call
            .parameters
            .iter()
            .filter(|(name, _)| !matches!(name.as_str(), "host" | "portNumber" | "localPortNumber"));
        let table: toml::Table = others.map(|(name, values)| (name.clone(), values.clone().into())).collect();
        if !table.is_empty() {
            key("parameters", toml::Value::Table(table));
        }
    } else if let Some(name) = call
        .parameters
        .keys()
        .find(|name| !matches!(name.as_str(), "host" | "portNumber" | "localPortNumber"))
    {
        return Err(format!("{document} has no parameter `{name}`"));
    }
    if call.region.is_none() {
        notes.push(
            "region: the command does not say; the profile or AWS_REGION of the service does".to_owned(),
        );
    }
    let tunnel = read(&format!("[[tunnel]]\n{text}"))?;
    if tunnel.listen.iter().any(|listen| taken.listens.iter().any(|other| other == listen)) {
        notes.push(format!("listen: {listen} is taken by another tunnel"));
    }
    taken.names.insert(tunnel.name);
    taken.listens.extend(tunnel.listen);
    let notes: String =
        notes.iter().map(|note| format!("# {}\n", note.replace(char::is_control, " "))).collect();
    Ok(format!("[[tunnel]]\n{notes}{text}"))
}

/// The document, if it is one for forwarding a port.
fn document(call: &StartSession) -> Result<&str, String> {
    let document = call.document.as_deref().unwrap_or_default();
    let what = match document {
        "" => "no --document-name, so it is a shell session",
        "SSM-SessionManagerRunShell" | "AWS-StartInteractiveCommand" | "AWS-StartNonInteractiveCommand" => {
            "a shell session"
        }
        "AWS-StartSSHSession" => {
            return Err("AWS-StartSSHSession carries one SSH connection over its standard input; for a tunnel to the SSH \
                        server use AWS-StartPortForwardingSession with portNumber 22"
                .to_owned());
        }
        "AWS-StartPortForwardingSessionToSocket" => {
            return Err(format!("{document} forwards to a socket, and a tunnel to a port"));
        }
        _ => return Ok(document),
    };
    Err(format!(
        "this is not port forwarding: {what}; autossm keeps tunnels up, such as those of {TO_TARGET}"
    ))
}

fn number(name: &str, text: &str) -> Result<u16, String> {
    let port = text.trim().parse().ok().filter(|port| *port > 0);
    port.ok_or_else(|| format!("the parameter `{name}` is `{text}`, which is no port"))
}

/// `billing-5432` for `billing.cluster-x.us-east-1.rds.amazonaws.com`, `10-1-2-3-5432` for an address.
fn derived(host: &str, port: u16) -> String {
    let is_address = host.parse::<std::net::IpAddr>().is_ok();
    let first = if is_address { host } else { host.split('.').next().unwrap_or(host) };
    let mut name = String::new();
    for c in first.to_ascii_lowercase().chars() {
        match c {
            'a'..='z' | '0'..='9' => name.push(c),
            _ if !name.is_empty() && !name.ends_with('-') => name.push('-'),
            _ => (),
        }
    }
    name.truncate(36);
    let name = name.trim_end_matches('-');
    if name.is_empty() { format!("tunnel-{port}") } else { format!("{name}-{port}") }
}

/// The name itself, or with a number that makes it one of its own.
fn free(name: &str, names: &BTreeSet<String>) -> String {
    let numbered = (2..).map(|number| format!("{name}-{number}"));
    std::iter::once(name.to_owned()).chain(numbered).find(|name| !names.contains(name)).unwrap_or_default()
}

/// With the configuration's own parser: what it refuses is not printed.
fn read(text: &str) -> Result<config::Tunnel, String> {
    match config::parse("import", text) {
        Ok(mut config) => config.tunnels.pop().ok_or_else(String::new),
        Err(problems) => {
            let problems = problems.list.iter().map(|problem| format!("{}; {}", problem.what, problem.help));
            Err(problems.collect::<Vec<_>>().join("\n"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn call(document: &str, parameters: &[(&str, &str)]) -> StartSession {
        StartSession {
            target: Some("i-0123456789abcdef0".to_owned()),
            document: Some(document.to_owned()),
            parameters: parameters
                .iter()
                .map(|(name, value)| ((*name).to_owned(), vec![(*value).to_owned()]))
                .collect(),
            ..StartSession::default()
        }
    }

    fn tunnel(call: &StartSession) -> (String, config::Tunnel) {
        let text = render(call, None, None, &mut Taken::default()).unwrap();
        let tunnel = read(&text).unwrap();
        (text, tunnel)
    }

    #[test]
    fn names_come_from_the_destination() {
        for (host, name) in [
            ("billing.cluster-x.us-east-1.rds.amazonaws.com", "billing-5432"),
            ("10.1.2.3", "10-1-2-3-5432"),
            ("fd00::1", "fd00-1-5432"),
            ("_Odd_Name_", "odd-name-5432"),
            ("_", "tunnel-5432"),
            (&"x".repeat(63), &format!("{}-5432", "x".repeat(36))),
        ] {
            let call =
                call(TO_REMOTE_HOST, &[("host", host), ("portNumber", "5432"), ("localPortNumber", "15432")]);
            let (_, tunnel) = tunnel(&call);
            assert_eq!((tunnel.name.as_str(), tunnel.remote_host.as_deref()), (name, Some(host)));
        }
        assert_eq!(tunnel(&call(TO_TARGET, &[("portNumber", "22")])).1.name, "i-0123456789abcdef0-22");
    }

    #[test]
    fn what_is_not_known_stands_in_comments() {
        let (text, tunnel) = tunnel(&call(TO_TARGET, &[]));
        assert_eq!((tunnel.remote_port, tunnel.listen[0].to_string().as_str()), (80, "127.0.0.1:10080"));
        for note in [
            "# remote_port: the command does not say; AWS-StartPortForwardingSession takes 80\n",
            "# listen: the command lets the plugin choose",
            "# region: ",
        ] {
            assert!(text.contains(note), "{text}");
        }
        let low = call(TO_TARGET, &[("portNumber", "443"), ("localPortNumber", "443")]);
        assert!(
            render(&low, None, None, &mut Taken::default()).unwrap().contains("# listen: a port below 1024")
        );
    }

    #[test]
    fn names_and_addresses_are_those_of_one_tunnel() {
        let (mut taken, call) =
            (Taken::default(), call(TO_TARGET, &[("portNumber", "5432"), ("localPortNumber", "5432")]));
        assert!(!render(&call, None, None, &mut taken).unwrap().contains("is taken by"));
        let second = render(&call, None, None, &mut taken).unwrap();
        assert!(
            second.contains("name = \"i-0123456789abcdef0-5432-2\"")
                && second.contains("127.0.0.1:5432 is taken by another tunnel")
        );
        let given = render(&call, Some("db"), Some("unix:/run/autossm/db/s"), &mut taken).unwrap();
        assert!(given.contains("name = \"db\"\nlisten = \"unix:/run/autossm/db/s\"\n"), "{given}");
    }

    #[test]
    fn a_document_of_ones_own_keeps_its_other_parameters() {
        let (text, tunnel) = tunnel(&call("Ops-Forward", &[("portNumber", "5432"), ("team", "data \"x\"")]));
        assert_eq!(tunnel.document.as_deref(), Some("Ops-Forward"));
        assert_eq!(tunnel.parameters["team"], ["data \"x\""], "{text}");
        assert!(!tunnel.parameters.contains_key("portNumber"));
    }

    #[test]
    fn what_is_no_tunnel_is_an_error_that_says_so() {
        let table = [
            (
                StartSession { document: None, ..call("", &[]) },
                "this is not port forwarding: no --document-name",
            ),
            (call("SSM-SessionManagerRunShell", &[]), "this is not port forwarding: a shell session"),
            (call("AWS-StartSSHSession", &[]), "AWS-StartSSHSession carries one SSH connection"),
            (
                call("AWS-StartPortForwardingSessionToSocket", &[]),
                "AWS-StartPortForwardingSessionToSocket forwards to a socket",
            ),
            (StartSession { target: None, ..call(TO_TARGET, &[]) }, "there is no --target"),
            (
                StartSession { target: Some("bastion".to_owned()), ..call(TO_TARGET, &[]) },
                "target: `bastion` is not a target id",
            ),
            (
                call(TO_REMOTE_HOST, &[]),
                "AWS-StartPortForwardingSessionToRemoteHost needs the parameter `host`",
            ),
            (call(TO_TARGET, &[("portNumber", "x")]), "the parameter `portNumber` is `x`, which is no port"),
            (call(TO_TARGET, &[("portNumber", "0")]), "the parameter `portNumber` is `0`"),
            (call(TO_TARGET, &[("team", "data")]), "AWS-StartPortForwardingSession has no parameter `team`"),
            (call(TO_REMOTE_HOST, &[("host", "a b")]), "remote_host: `a b` is not a host"),
        ];
        for (call, words) in table {
            let error = render(&call, None, None, &mut Taken::default()).unwrap_err();
            assert!(error.starts_with(words), "{error}");
        }
    }

    proptest! {
        /// Whatever stands in the command: what is printed is a configuration that says the same.
        #[test]
        fn what_is_printed_is_read_again(
            document in prop::sample::select(vec![TO_TARGET, TO_REMOTE_HOST, "Ops-Forward"]),
            host in "[a-zA-Z0-9._\"\\\\ -]{0,20}",
            [port, local] in [1u16.., 0u16..],
            extra in "[a-z\"'\\\\\n]{0,8}",
            reason in proptest::option::of("\\PC{0,30}"),
            left_out in "[a-z\n\r\"#\\[\\]=]{0,20}",
        ) {
            let mut given = call(document, &[]);
            let mut parameter = |name: &str, value: String| given.parameters.insert(name.to_owned(), vec![value]);
            parameter("portNumber", port.to_string());
            parameter("localPortNumber", local.to_string());
            if document != TO_TARGET {
                parameter("host", host.clone());
            }
            if document == "Ops-Forward" {
                parameter(&extra, extra.clone());
            }
            given.reason.clone_from(&reason);
            given.left_out.push(left_out);
            if let Ok(text) = render(&given, None, None, &mut Taken::default()) {
                let tunnel = read(&text).map_err(TestCaseError::fail)?;
                prop_assert_eq!(tunnel.remote_port, port);
                prop_assert_eq!(tunnel.remote_host, (document != TO_TARGET).then_some(host));
                prop_assert_eq!(tunnel.reason, reason);
                if document == "Ops-Forward" {
                    prop_assert_eq!(&tunnel.parameters[&extra][0], &extra);
                }
            }
        }
    }
}
