//! One tunnel at the service: its target and agent, its document, the account's timeouts.

use std::time::Duration;

use futures_util::future::join;

use super::account::Account;
use super::finding::Finding;
use super::{Running, status};
use crate::aws::agent::shortcoming;
use crate::aws::errors::Refusal;
use crate::aws::sdk::{Inquiry, SeenDocument, SeenNode};
use crate::aws::target::start_request;
use crate::cli::paint::age;
use crate::config::{GatewayMode, Rotate, Target, Tunnel};
use crate::control::protocol::Phase;

/// The service's own, where the account does not say.
const IDLE: Duration = Duration::from_secs(20 * 60);

/// Looks at one tunnel with what is known of its account.
pub(super) async fn checks(tunnel: &Tunnel, account: &Account, running: &Running) -> Vec<Finding> {
    let (Some(inquiry), None) = (&account.inquiry, account.blocked) else {
        let why = account.blocked.unwrap_or("nothing can be asked");
        return vec![Finding::skipped("target", format!("{}: not looked at: {why}", tunnel.target))];
    };
    let (mut found, document) = join(targets(tunnel, inquiry, running), document(tunnel, inquiry)).await;
    found.push(document);
    found.push(timeouts(tunnel, account.preferences.as_ref()));
    found
}

async fn targets(tunnel: &Tunnel, inquiry: &Inquiry, running: &Running) -> Vec<Finding> {
    const CHECK: &str = "target";
    let nodes = match inquiry.nodes(&tunnel.target).await {
        Ok(nodes) => nodes,
        Err(refusal) if refusal.is_denied() => {
            let message = format!("{}: nodes may not be listed, so it is not known", tunnel.target);
            return vec![Finding::skipped(CHECK, message)];
        }
        Err(refusal) => {
            return vec![Finding::skipped(
                CHECK,
                format!("{}: not known: {}", tunnel.target, refusal.failure),
            )];
        }
    };
    let mut found = match &tunnel.target {
        Target::Tag { .. } => by_tag(tunnel, &nodes, inquiry),
        Target::Ids(ids) => by_id(tunnel, ids, &nodes, inquiry, running),
    };
    let online = nodes.iter().filter(|node| node.online);
    found.extend(online.filter_map(|node| agent(node, tunnel.remote_host.is_some())));
    found
}

fn by_tag(tunnel: &Tunnel, nodes: &[SeenNode], inquiry: &Inquiry) -> Vec<Finding> {
    let target = &tunnel.target;
    let online = nodes.iter().filter(|node| node.online).count();
    vec![match (nodes.len(), online) {
        (0, _) => Finding::failure(
            "target",
            format!("{target}: no managed node carries it in {}", inquiry.region()),
            "see whether the tag is right, the region and the account, and whether the node's agent is registered",
        ),
        (all, 0) => Finding::failure(
            "target",
            format!("{target}: nodes with it: {all}, none of them online"),
            "start the node, or its SSM agent",
        ),
        (all, online) => Finding::ok("target", format!("{target}: nodes with it: {all}, online: {online}")),
    }]
}

/// A node that is away is a failure only where there is no other one.
fn by_id(
    tunnel: &Tunnel,
    ids: &[String],
    nodes: &[SeenNode],
    inquiry: &Inquiry,
    running: &Running,
) -> Vec<Finding> {
    const CHECK: &str = "target";
    let served = |id: &String| {
        let sessions = status(running, &tunnel.name).map(|status| &status.sessions);
        sessions
            .into_iter()
            .flatten()
            .any(|session| session.phase == Phase::Ready && session.target.as_ref() == Some(id))
    };
    let node = |id: &String| nodes.iter().find(|node| node.id == *id);
    let some =
        ids.iter().any(|id| id.starts_with("ecs:") || served(id) || node(id).is_some_and(|n| n.online));
    let away = |message: String, remedy: &str| match some {
        true => Finding::warning(CHECK, message, remedy),
        false => Finding::failure(CHECK, message, remedy),
    };
    let one = |id: &String| match node(id) {
        _ if id.starts_with("ecs:") => Finding::skipped(CHECK, format!("{id}: containers are not listed")),
        Some(node) if node.online => {
            let version = node.agent_version.as_deref().unwrap_or("of unknown version");
            Finding::ok(CHECK, format!("{id} is online, agent {version}"))
        }
        _ if served(id) => Finding::ok(CHECK, format!("{id} has a session")),
        Some(_) => away(
            format!("{id} is not online: its agent has lost its connection"),
            "start the node, or its SSM agent; see whether the agent gets out to ssm and ssmmessages",
        ),
        None => away(
            format!("{id} is no managed node in {}", inquiry.region()),
            "see whether the id, the region and the account are right; its SSM agent has to run, with an instance profile that \
             has AmazonSSMManagedInstanceCore",
        ),
    };
    ids.iter().map(one).collect()
}

/// An agent that is too old; nothing where all is well.
fn agent(node: &SeenNode, remote_host: bool) -> Option<Finding> {
    let words = shortcoming(node.agent_version.as_deref()?, remote_host)?;
    let (what, remedy) = words.rsplit_once(": ").unwrap_or((&words, "update amazon-ssm-agent on it"));
    let message = format!("{}: {what}", node.id);
    // Nothing works at all where the agent cannot do what the tunnel is for.
    let useless = what.contains("cannot connect");
    Some(if useless {
        Finding::failure("agent", message, remedy)
    } else {
        Finding::warning("agent", message, remedy)
    })
}

async fn document(tunnel: &Tunnel, inquiry: &Inquiry) -> Finding {
    const CHECK: &str = "document";
    let name = start_request(tunnel, "", "").document;
    match inquiry.document(&name).await {
        Ok(Some(document)) if document.kind.is_empty() || document.kind == "Session" => {
            Finding::ok(CHECK, format!("{name} exists"))
        }
        Ok(Some(document)) => Finding::failure(
            CHECK,
            format!("{name} is no session document, but of type {}", document.kind),
            "name one of type Session in `document`",
        ),
        Ok(None) => Finding::failure(
            CHECK,
            format!("{name} does not exist in {}", inquiry.region()),
            "correct `document`, create it in this account and region, or have it shared with the account",
        ),
        Err(refusal) if refusal.is_denied() => {
            Finding::skipped(CHECK, format!("{name}: may not be read, so it is not known whether it exists"))
        }
        Err(refusal) => Finding::skipped(CHECK, format!("{name}: not known: {}", refusal.failure)),
    }
}

/// The account's against the tunnel's own.
fn timeouts(tunnel: &Tunnel, preferences: Option<&Result<Option<SeenDocument>, Refusal>>) -> Finding {
    const CHECK: &str = "timeouts";
    let preferences = match preferences {
        Some(Ok(preferences)) => preferences.as_ref(),
        Some(Err(refusal)) if refusal.is_denied() => {
            return Finding::skipped(CHECK, "the account's may not be read");
        }
        Some(Err(refusal)) => return Finding::skipped(CHECK, format!("not known: {}", refusal.failure)),
        None => return Finding::skipped(CHECK, "not known"),
    };
    let idle = preferences.and_then(|document| document.idle).unwrap_or(IDLE);
    let maximum = preferences.and_then(|document| document.maximum);
    let mut message = format!("the account ends idle sessions after {}", age(idle));
    match tunnel.keepalive {
        _ if tunnel.gateway == GatewayMode::Observe => {
            message += ", and with `gateway = \"observe\"` no keep-alives are sent: an idle tunnel gets a new session after that";
        }
        Some(keepalive) if keepalive >= idle => {
            let message = format!("{message}, but `keepalive` comes only every {}", age(keepalive));
            return Finding::warning(CHECK, message, "make `keepalive` shorter: \"1m\" is the default");
        }
        Some(keepalive) => message += &format!(", and `keepalive` comes every {}", age(keepalive)),
        None => message += ", and `keepalive` is off: an idle tunnel gets a new session after that",
    }
    let Some(maximum) = maximum else {
        return Finding::ok(CHECK, message + "; it has no maximum duration");
    };
    message += &format!("; it ends every session after {}", age(maximum));
    match tunnel.rotate {
        Rotate::Auto => Finding::ok(CHECK, message + ", and `rotate` is \"auto\""),
        Rotate::At(rotate) if rotate < maximum => {
            Finding::ok(CHECK, format!("{message}, and `rotate` is {}", age(rotate)))
        }
        Rotate::At(_) | Rotate::Off => Finding::warning(
            CHECK,
            message + ", with its open connections, and `rotate` does not come before that",
            "write `rotate = \"auto\"`, or a shorter time",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_becomes_of_an_idle_session_depends_on_the_gateway_too() {
        let said = |keys: &str| {
            let text = format!(
                "[[tunnel]]\nname = \"db\"\nlisten = \"127.0.0.1:15432\"\ntarget = \"i-0123456789abcdef0\"\n\
                 remote_port = 5432\n{keys}\n"
            );
            let tunnel = crate::config::parse("config.toml", &text).unwrap().tunnels.remove(0);
            format!("{:?}", timeouts(&tunnel, Some(&Ok(None))))
        };
        assert!(said("").contains("`keepalive` comes every 1m"), "{}", said(""));
        assert!(said("keepalive = \"off\"").contains("`keepalive` is off"));
        for keys in ["", "keepalive = \"30m\"", "keepalive = \"off\""] {
            let said = said(&format!("gateway = \"observe\"\n{keys}"));
            assert!(said.contains("no keep-alives are sent") && !said.contains("comes"), "{said}");
        }
    }
}
