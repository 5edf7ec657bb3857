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
    a.target == b.target
        && a.remote_host == b.remote_host
        && a.remote_port == b.remote_port
        && a.gateway == b.gateway
        && a.identity == b.identity
        && a.stream_endpoint == b.stream_endpoint
        && a.keepalive == b.keepalive
        && a.document == b.document
        && a.parameters == b.parameters
        && a.reason == b.reason
        && a.plugin == b.plugin
}
