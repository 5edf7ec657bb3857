//! One probe through one session, and what it says of the way there.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use tracing::debug;

use crate::config::{self, GatewayMode, Probe, ProbeKind};
use crate::gateway::ledger::AgentEnd;
use crate::probe::{Bad, Destination, ask};
use crate::proxy::Route;
use crate::tunnel::health::Found;

/// The plugin's connections break before it is known that the plugin has died: how long to wait for the news.
const NEWS: Duration = Duration::from_millis(250);

/// What came of the asking.
enum Outcome {
    Good,
    Bad(Bad),
    /// The plugin takes no connection.
    NoPlugin,
    Silence,
}

/// Makes one probe.
pub(super) async fn probe(config: Arc<config::Tunnel>, probe: Probe, route: Arc<Route>) -> Found {
    let heard = || route.ledger.acknowledged();
    let before = heard();
    let outcome = tokio::select! {
        biased;
        () = route.ended.cancelled() => return Found::Nothing,
        outcome = made(&config, &probe, &route) => outcome,
    };
    let hears_agent = config.gateway == GatewayMode::Hold;
    let found = match outcome {
        Outcome::Good => Found::Good,
        Outcome::NoPlugin => Found::Nothing,
        Outcome::Bad(bad) => {
            let closed = bad == Bad::Closed;
            match closed && timeout(NEWS, route.ended.cancelled()).await.is_ok() {
                true => Found::Nothing,
                false => Found::Bad(bad.to_string()),
            }
        }
        Outcome::Silence => {
            let silence = format!("no good answer within {} s", probe.timeout.as_secs_f64());
            match (hears_agent, heard() > before) {
                (false, _) => Found::Unanswered(silence),
                (true, true) => Found::Bad(format!("{silence}, though the target's agent is there")),
                (true, false) => Found::Nothing,
            }
        }
    };
    debug!(tunnel = config.name, session = route.session_id, event = "probed", ?found, "probed");
    found
}

async fn made(config: &config::Tunnel, probe: &Probe, route: &Arc<Route>) -> Outcome {
    let destination = Destination {
        host: config.remote_host.as_deref(),
        port: config.remote_port,
        ca_file: config.identity.ca_file.as_deref(),
    };
    let asked = async {
        let Ok(tap) = route.probe().await else { return Outcome::NoPlugin };
        if probe.kind == ProbeKind::Tcp && tap.end_is_told() {
            return match tap.close().await {
                Some(AgentEnd::Connected) => Outcome::Good,
                Some(AgentEnd::Refused) => Outcome::Bad(refused()),
                None => Outcome::NoPlugin,
            };
        }
        match ask(&probe.kind, destination, tap).await {
            Ok(()) => Outcome::Good,
            Err(bad) => Outcome::Bad(bad),
        }
    };
    match timeout(probe.timeout, Box::pin(asked)).await {
        Ok(outcome) => outcome,
        // Nothing more can be seen: the connection was not refused.
        Err(_) if probe.kind == ProbeKind::Tcp && !route.ledger.follows_agent() => Outcome::Good,
        Err(_) => Outcome::Silence,
    }
}

fn refused() -> Bad {
    Bad::Answer("the agent cannot connect to it".to_owned())
}
