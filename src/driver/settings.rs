//! What a tunnel's configuration means to the core, and what is to be said of it.

use tracing::{info, warn};

use super::Driver;
use crate::config::{self, GatewayMode, ProbeKind};
use crate::tunnel::Settings;
use crate::tunnel::health::Probing;
use crate::tunnel::rotation::Rotate;

impl Driver {
    /// Says once what cannot be had where TLS is not ended here.
    pub(super) fn tell_mode(&self) {
        if self.config.gateway == GatewayMode::Observe {
            info!(
                tunnel = self.config.name,
                event = "line_feeds_not_restored",
                "gateway = \"observe\": line feeds that the plugin changes into carriage returns are not restored"
            );
            info!(
                tunnel = self.config.name,
                event = "keepalive_off",
                "gateway = \"observe\": no keep-alives are sent, whatever `keepalive` says; the account's idle timeout ends a \
                 session that nobody uses"
            );
        }
    }

    /// Warns of a probe that people would try on a server that takes it for an attack.
    pub(super) fn tell_probe(&self) {
        let kind = match self.config.probe.as_ref().map(|probe| &probe.kind) {
            Some(ProbeKind::Tcp) => "tcp",
            Some(ProbeKind::Banner { .. }) => "banner",
            _ => return,
        };
        warn!(
            tunnel = self.config.name,
            event = "probe_without_login",
            kind,
            "each probe of the kind {kind} is a connection without a login: a MySQL or MariaDB server locks the target out \
             after max_connect_errors (100) of them"
        );
    }
}

/// The core's part of a tunnel's configuration.
pub(super) fn settings(config: &config::Tunnel) -> Settings {
    Settings {
        sessions: usize::from(config.sessions),
        failover_after: config.failover_after,
        // When only watched, a connection does not outlive its WebSocket: nothing is worth waiting for.
        resume_for: match config.gateway {
            GatewayMode::Hold => config.resume_for,
            GatewayMode::Observe => config.failover_after,
        },
        drain: config.drain,
        rotate: match config.rotate {
            config::Rotate::Off => Rotate::Off,
            config::Rotate::At(age) => Rotate::At(age),
            config::Rotate::Auto => Rotate::Auto,
        },
        probing: config.probe.as_ref().map(|probe| Probing {
            interval: probe.interval,
            rise: probe.rise.into(),
            fall: probe.fall.into(),
        }),
    }
}

/// Whether a session under one configuration is as good as one under the other.
pub(super) fn same_sessions(a: &config::Tunnel, b: &config::Tunnel) -> bool {
    of_sessions(a) == of_sessions(b)
}

/// Takes from a configuration what a session has been given with it, and keeps for its life. What is left out is of the
/// tunnel, or is read each time. Every key is named, so that one that is added has to be put on one side.
fn of_sessions(config: &config::Tunnel) -> impl PartialEq + use<'_> {
    let config::Tunnel {
        target,
        remote_host,
        remote_port,
        gateway,
        identity,
        stream_endpoint,
        kms_endpoint,
        keepalive,
        document,
        parameters,
        reason,
        plugin,
        name: _,
        enabled: _,
        listen: _,
        sessions: _,
        hold: _,
        max_held: _,
        max_connections: _,
        drain: _,
        stop_grace: _,
        start_timeout: _,
        half_close_timeout: _,
        client_buffer: _,
        stalled_client_timeout: _,
        rotate: _,
        probe: _,
        failover_after: _,
        resume_for: _,
    } = config;
    let destination = (target, remote_host, remote_port, document, parameters, reason);
    (destination, gateway, identity, stream_endpoint, kms_endpoint, keepalive, plugin)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &[(&str, &str)] = &[
        ("name", "\"a\""),
        ("listen", "\"127.0.0.1:1\""),
        ("target", "\"i-12345678\""),
        ("remote_port", "1"),
        // Without them two others mean nothing.
        ("role_arn", "\"arn:aws:iam::123456789012:role/one\""),
        ("document", "\"one\""),
    ];

    fn with(key: &str, value: &str) -> config::Tunnel {
        let others = BASE.iter().copied().filter(|(name, _)| *name != key);
        let lines = others.chain([(key, value)]).map(|(key, value)| format!("{key} = {value}\n"));
        let text = "[[tunnel]]\n".to_owned() + &lines.collect::<String>();
        config::parse("f", &text).unwrap_or_else(|problems| panic!("{problems}")).tunnels.remove(0)
    }

    /// Each key with another value than in `BASE` or by default, and whether sessions are replaced for it.
    #[test]
    fn every_key_either_renews_the_sessions_or_does_not() {
        let table = [
            (true, "target", "\"i-87654321\""),
            (true, "remote_host", "\"db.internal\""),
            (true, "remote_port", "2"),
            (true, "gateway", "\"observe\""),
            (true, "region", "\"eu-west-1\""),
            (true, "profile", "\"ops\""),
            (true, "role_arn", "\"arn:aws:iam::123456789012:role/two\""),
            (true, "external_id", "\"known-to-both\""),
            (true, "endpoint_url", "\"https://ssm.internal\""),
            (true, "stream_endpoint", "\"wss://stream.internal\""),
            (true, "kms_endpoint", "\"https://kms.internal\""),
            (true, "ca_file", "\"/etc/ca.pem\""),
            (true, "document", "\"two\""),
            (true, "parameters", "{ host = \"db.internal\" }"),
            (true, "reason", "\"maintenance\""),
            (true, "keepalive", "\"2m\""),
            (true, "plugin", "\"/opt/plugin\""),
            (false, "name", "\"b\""),
            (false, "listen", "\"127.0.0.1:2\""),
            (false, "enabled", "false"),
            (false, "sessions", "2"),
            (false, "hold", "\"1s\""),
            (false, "max_held", "1"),
            (false, "max_connections", "1"),
            (false, "drain", "\"1s\""),
            (false, "stop_grace", "\"1s\""),
            (false, "start_timeout", "\"1s\""),
            (false, "half_close_timeout", "\"1s\""),
            (false, "client_buffer", "\"64KiB\""),
            (false, "stalled_client_timeout", "\"off\""),
            (false, "rotate", "\"1h\""),
            (false, "probe", "{ kind = \"tcp\" }"),
            (false, "failover_after", "\"1s\""),
            (false, "resume_for", "\"1s\""),
        ];
        let mut keys: Vec<_> = config::key_names().collect();
        let mut tried: Vec<_> = table.iter().map(|(_, key, _)| *key).collect();
        keys.sort_unstable();
        tried.sort_unstable();
        assert_eq!(tried, keys);
        let base = with("name", "\"a\"");
        for (renews, key, value) in table {
            let other = with(key, value);
            assert_ne!(base, other, "{key} = {value} changes nothing");
            assert_eq!(!same_sessions(&base, &other), renews, "{key}");
        }
    }
}
