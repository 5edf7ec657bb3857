//! Whom a session is started with, and what it is asked for.

use std::time::Duration;

use crate::aws::api::{Api, Node, StartRequest};
use crate::config::{Target, Tunnel};
use crate::tunnel::failure::{Class, Failure};

/// Forwards to a port of the target itself.
const TO_TARGET: &str = "AWS-StartPortForwardingSession";
/// Forwards to a host that the target can reach.
const TO_REMOTE_HOST: &str = "AWS-StartPortForwardingSessionToRemoteHost";
/// The API's limit on a reason, in characters.
const REASON: usize = 256;

/// How old a list of nodes may be where all is well.
pub const REMEMBERED: Duration = Duration::from_secs(30);
/// How old it may be where a target of it was found to be away: whoever asks at the same time shares the answer.
pub const FRESH: Duration = Duration::from_millis(1500);

/// The request for a session of `tunnel` with `target`; `host` is this host's name.
pub fn start_request(tunnel: &Tunnel, target: &str, host: &str) -> StartRequest {
    let standard = if tunnel.remote_host.is_some() { TO_REMOTE_HOST } else { TO_TARGET };
    let document = tunnel.document.as_deref().unwrap_or(standard).to_owned();
    let mut parameters = tunnel.parameters.clone();
    let mut fill = |name: &str, value: String| {
        parameters.entry(name.to_owned()).or_insert_with(|| vec![value]);
    };
    fill("portNumber", tunnel.remote_port.to_string());
    // The plugin's own choice: two sessions of a tunnel live beside each other while one replaces the other.
    fill("localPortNumber", "0".to_owned());
    if let Some(remote_host) = &tunnel.remote_host {
        fill("host", remote_host.clone());
    }
    let reason = tunnel.reason.clone().unwrap_or_else(|| format!("autossm {host} {}", tunnel.name));
    StartRequest {
        target: target.to_owned(),
        document,
        parameters,
        reason: reason.chars().take(REASON).collect(),
    }
}

/// Those that a session may be started with, in the order of preference; the nodes of a tag from an answer of the service
/// that is at most `max_age` old, or from the last one there was if the service does not answer now: whether they are
/// connected, StartSession says anyway. There is at least one.
///
/// # Errors
/// A tag has no node that is online, or nodes cannot be listed.
pub async fn candidates(api: &dyn Api, target: &Target, max_age: Duration) -> Result<Vec<Node>, Failure> {
    let (key, value) = match target {
        Target::Ids(ids) => {
            return Ok(ids.iter().map(|id| Node { id: id.clone(), agent_version: None }).collect());
        }
        Target::Tag { key, value } => (key, value),
    };
    let nodes = match api.online_nodes(key, value, max_age).await {
        Ok(nodes) => nodes,
        Err(failure) => {
            let known = match failure.class {
                Class::Throttled | Class::Network => api.last_nodes(key, value),
                _ => Vec::new(),
            };
            if known.is_empty() {
                return Err(failure);
            }
            tracing::debug!(%failure, "the nodes of {key}={value} cannot be listed; those of the last list are asked");
            known
        }
    };
    if nodes.is_empty() {
        let text = format!("no managed node with tag {key}={value} is online in {}", api.region());
        return Err(Failure::new(Class::TargetNotConnected, text));
    }
    Ok(nodes)
}

/// This host's name, or `localhost` where it has none.
pub fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match name.trim() {
        "" => "localhost".to_owned(),
        name => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use futures_util::FutureExt;
    use futures_util::future::BoxFuture;

    use super::*;
    use crate::aws::api::{Resumption, StartedSession};
    use crate::config::{GatewayMode, Identity};

    fn tunnel() -> Tunnel {
        Tunnel {
            name: "billing-db".to_owned(),
            enabled: true,
            listen: Vec::new(),
            target: Target::Ids(vec!["i-1".to_owned()]),
            remote_host: None,
            remote_port: 5432,
            sessions: 1,
            gateway: GatewayMode::Hold,
            identity: Identity {
                region: None,
                profile: None,
                role_arn: None,
                external_id: None,
                endpoint_url: None,
                ca_file: None,
            },
            stream_endpoint: None,
            kms_endpoint: None,
            document: None,
            parameters: BTreeMap::new(),
            reason: None,
            hold: Duration::ZERO,
            max_held: 1,
            max_connections: 1,
            drain: Duration::ZERO,
            stop_grace: Duration::ZERO,
            start_timeout: Duration::ZERO,
            half_close_timeout: Duration::ZERO,
            client_buffer: 0,
            stalled_client_timeout: None,
            rotate: crate::config::Rotate::Off,
            keepalive: None,
            probe: None,
            failover_after: Duration::ZERO,
            resume_for: Duration::ZERO,
            plugin: String::new(),
        }
    }

    fn parameters(request: &StartRequest) -> String {
        request.parameters.iter().map(|(name, values)| format!("{name}={} ", values.join(","))).collect()
    }

    #[test]
    fn asks_for_the_right_document() {
        let own_port = start_request(&tunnel(), "i-1", "web-1");
        assert_eq!(own_port.document, "AWS-StartPortForwardingSession");
        assert_eq!(parameters(&own_port), "localPortNumber=0 portNumber=5432 ");
        assert_eq!(own_port.reason, "autossm web-1 billing-db");

        let remote = Tunnel { remote_host: Some("db.internal".to_owned()), ..tunnel() };
        let remote = start_request(&remote, "mi-2", "web-1");
        assert_eq!(
            (&*remote.document, &*remote.target),
            ("AWS-StartPortForwardingSessionToRemoteHost", "mi-2")
        );
        assert_eq!(parameters(&remote), "host=db.internal localPortNumber=0 portNumber=5432 ");
    }

    #[test]
    fn a_document_of_the_accounts_own_keeps_its_parameters() {
        let own = Tunnel {
            document: Some("Ops-Forward".to_owned()),
            parameters: BTreeMap::from([
                ("portNumber".to_owned(), vec!["6543".to_owned()]),
                ("team".to_owned(), vec!["data".to_owned()]),
            ]),
            reason: Some("ä".repeat(300)),
            ..tunnel()
        };
        let request = start_request(&own, "i-1", "web-1");
        assert_eq!(request.document, "Ops-Forward");
        assert_eq!(parameters(&request), "localPortNumber=0 portNumber=6543 team=data ");
        assert_eq!(request.reason, "ä".repeat(256));
    }

    /// An API that only lists nodes.
    struct Nodes(Vec<&'static str>);

    impl Api for Nodes {
        fn maximum_session_duration(&self) -> BoxFuture<'_, crate::tunnel::rotation::Limit> {
            unreachable!("no limit is asked for")
        }

        fn start_session<'a>(
            &'a self,
            _: &'a StartRequest,
        ) -> BoxFuture<'a, Result<StartedSession, Failure>> {
            unreachable!("no session is started")
        }
        fn resume_session<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Resumption, Failure>> {
            unreachable!("no session is resumed")
        }
        fn terminate_session<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<(), Failure>> {
            unreachable!("no session is terminated")
        }
        fn online_nodes<'a>(
            &'a self,
            _: &'a str,
            _: &'a str,
            _: Duration,
        ) -> BoxFuture<'a, Result<Vec<Node>, Failure>> {
            let node = |id: &&str| Node { id: (*id).to_owned(), agent_version: None };
            std::future::ready(Ok(self.0.iter().map(node).collect())).boxed()
        }
        fn last_nodes(&self, _: &str, _: &str) -> Vec<Node> {
            Vec::new()
        }
        fn credentials(&self) -> BoxFuture<'_, Result<aws_credential_types::Credentials, Failure>> {
            unreachable!("nothing is signed")
        }
        fn held_credentials(&self) -> Option<crate::aws::api::HeldCredentials> {
            None
        }
        fn region(&self) -> &str {
            "eu-west-1"
        }
        fn endpoint(&self) -> &str {
            "https://ssm.eu-west-1.amazonaws.com"
        }
    }

    #[tokio::test]
    async fn containers_and_ids_stay_as_they_are_and_in_their_order() {
        let container =
            "ecs:prod_0123456789abcdef0123456789abcdef_0123456789abcdef0123456789abcdef-1234567890";
        let ids = ["mi-2", container, "i-1"].map(str::to_owned).to_vec();
        let found = candidates(&Nodes(vec![]), &Target::Ids(ids.clone()), REMEMBERED).await.unwrap();
        assert_eq!(found.iter().map(|node| node.id.clone()).collect::<Vec<_>>(), ids);
        assert_eq!(start_request(&tunnel(), container, "web-1").target, container);
    }

    #[tokio::test]
    async fn a_tag_stands_for_its_nodes_and_without_any_for_a_target_that_is_not_connected() {
        let tag = Target::Tag { key: "Role".to_owned(), value: "bastion".to_owned() };
        let found = candidates(&Nodes(vec!["i-1", "mi-2"]), &tag, REMEMBERED).await.unwrap();
        assert_eq!(found.iter().map(|node| &*node.id).collect::<Vec<_>>(), ["i-1", "mi-2"]);
        let failure = candidates(&Nodes(vec![]), &tag, REMEMBERED).await.unwrap_err();
        assert_eq!(failure.class, Class::TargetNotConnected);
        assert_eq!(failure.text, "no managed node with tag Role=bastion is online in eu-west-1");
    }
}
