//! One probe through one session, and what it says of the way there.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout};
use tracing::debug;

use crate::config::{self, GatewayMode, Probe, ProbeKind};
use crate::gateway::ledger::{AgentEnd, AgentFrames};
use crate::probe::{Bad, Destination, ask};
use crate::proxy::Route;
use crate::tunnel::health::Found;

/// The plugin's connections break before it is known that the plugin has died: how long to wait for the news.
const NEWS: Duration = Duration::from_millis(250);

/// What the probes have found, for those who look at the status.
#[derive(Debug, Default)]
pub(super) struct Probed {
    /// The last one that has found something.
    pub last: Option<Last>,
    /// Since when the destination answers.
    pub good_since: Option<Instant>,
}

/// One probe that is over.
#[derive(Debug)]
pub(super) struct Last {
    pub at: Instant,
    pub took: Duration,
    /// What was wrong.
    pub bad: Option<String>,
}

impl Probed {
    /// A probe is over.
    pub fn note(&mut self, found: &Found, took: Duration) {
        let at = Instant::now();
        let bad = match found {
            Found::Nothing => return,
            Found::Good => {
                self.good_since.get_or_insert(at);
                None
            }
            Found::Bad(words) | Found::Unanswered(words) => Some(words.clone()),
        };
        self.last = Some(Last { at, took, bad });
    }
}

/// What came of the asking.
enum Outcome {
    Good,
    Bad(Bad),
    /// The plugin takes no connection, or the agent was lost track of.
    Unknown,
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
        Outcome::Unknown => Found::Nothing,
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
    let mut told = false;
    let asked = async {
        let Ok(tap) = route.probe().await else { return Outcome::Unknown };
        told = tap.end_is_told();
        if probe.kind == ProbeKind::Tcp && told {
            return match tap.close().await {
                Some(AgentEnd::Connected) => Outcome::Good,
                Some(AgentEnd::Refused) => Outcome::Bad(refused()),
                None => Outcome::Unknown,
            };
        }
        match ask(&probe.kind, destination, tap).await {
            Ok(()) => Outcome::Good,
            Err(bad) => Outcome::Bad(bad),
        }
    };
    match timeout(probe.timeout, Box::pin(asked)).await {
        Ok(outcome) => outcome,
        Err(_) if probe.kind == ProbeKind::Tcp && !told => match route.ledger.agent_frames() {
            // Nothing more can be seen, in the whole session: the connection was not refused.
            AgentFrames::Unreadable => Outcome::Good,
            AgentFrames::Lost | AgentFrames::Followed => Outcome::Unknown,
        },
        Err(_) => Outcome::Silence,
    }
}

fn refused() -> Bad {
    Bad::Answer("the agent cannot connect to it".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::ledger::Ledger;
    use crate::tunnel::Generation;

    /// A probe of a destination that neither speaks nor closes, through a session whose agent's frames are so well known.
    async fn found(frames: AgentFrames, then: Option<AgentFrames>) -> Found {
        let text = "[[tunnel]]\nname = \"db\"\nlisten = \"127.0.0.1:15432\"\ntarget = \"i-0123456789abcdef0\"\n\
                    remote_port = 5432\n[tunnel.probe]\nkind = \"tcp\"\ntimeout = \"1s\"\n";
        let config = config::parse("config.toml", text).unwrap().tunnels.remove(0);
        let plugin = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let ledger = Arc::new(Ledger::new());
        ledger.follow_agent(frames);
        let address = plugin.local_addr().unwrap();
        let route = Arc::new(Route::new(Generation(1), "session".into(), address, ledger.clone()));
        let probe_of = config.probe.clone().unwrap();
        let accepted = async {
            let connection = plugin.accept().await.unwrap();
            if let Some(frames) = then {
                ledger.follow_agent(frames);
            }
            std::future::pending::<()>().await;
            drop(connection);
        };
        tokio::select! {
            found = probe(Arc::new(config), probe_of, route) => found,
            () = accepted => unreachable!("it never ends"),
        }
    }

    /// It would end a `degraded`, and keep one from beginning.
    #[tokio::test]
    async fn an_agent_that_was_lost_track_of_makes_no_probe_good() {
        use AgentFrames::{Followed, Lost, Unreadable};
        assert_eq!(found(Unreadable, None).await, Found::Good, "no more can be known in that session");
        assert_eq!(found(Lost, None).await, Found::Nothing);
        assert_eq!(found(Lost, Some(Followed)).await, Found::Nothing, "its end may have been missed");
        assert_eq!(found(Followed, Some(Lost)).await, Found::Nothing);
    }
}
