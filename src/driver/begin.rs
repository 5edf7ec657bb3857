//! Up to an answer of StartSession: whom to ask, and, where nobody can be asked, when that changes.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tracing::warn;

use super::Shared;
use super::session::{Begun, Message};
use super::targets::Targets;
use crate::aws::api::Node;
use crate::aws::{agent, errors, target};
use crate::config::{self, Target};
use crate::plugin::find::find;
use crate::tunnel::Generation;
use crate::tunnel::failure::{Class, Failure};

/// Targets asked in one attempt. A tag may stand for very many, all of them gone.
const ASKED: usize = 5;
/// How often the nodes of a tag are listed while there is none to be had …
const WATCH: Duration = Duration::from_millis(2500);
/// … and after [`LONG`]: by then nobody is starting a new instance.
const WATCH_LATER: Duration = Duration::from_secs(30);
const LONG: Duration = Duration::from_secs(600);
/// However often the account's limit has refused it.
const WATCH_RARELY: Duration = Duration::from_secs(120);

/// One tunnel's targets, for its driver and the tasks that begin its sessions.
pub(super) type SharedTargets = Arc<Mutex<Targets>>;

pub(super) fn lock(targets: &SharedTargets) -> MutexGuard<'_, Targets> {
    targets.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Everything up to an answer of StartSession. The plugin is looked for first: without one, a session would be started
/// only to be terminated. A target that is not connected, or that StartSession refuses, is passed over for the next one at
/// once. Nobody is asked once the session is not wanted any more.
pub(super) async fn begin(
    config: &config::Tunnel,
    shared: &Shared,
    targets: &SharedTargets,
    generation: Generation,
    beside: &[Generation],
    is_wanted: impl Fn() -> bool,
) -> Result<Begun, Failure> {
    let plugin = find(&config.plugin)?;
    shared.versions.check(&plugin).await?;
    let api = shared.clients.get(&config.identity).await?;
    let mut asked = 0;
    loop {
        let misses_any = lock(targets).misses_any(Instant::now());
        let max_age = if misses_any { target::FRESH } else { target::REMEMBERED };
        let nodes = target::candidates(&*api, &config.target, max_age).await?;
        let ids: Vec<_> = nodes.iter().map(|node| node.id.clone()).collect();
        let chosen = lock(targets).choose(generation, &ids, beside, Instant::now());
        let Some(chosen) = chosen else {
            return Err(Failure::new(Class::TargetNotConnected, "there is no target"));
        };
        if !is_wanted() {
            return Err(Failure::new(Class::Network, "the tunnel is gone"));
        }
        asked += 1;
        let request = target::start_request(config, &chosen, &target::host_name());
        let failure = match api.start_session(&request).await {
            Ok(started) => {
                let agent_version = nodes.into_iter().find(|n| n.id == chosen).and_then(|n| n.agent_version);
                return Ok(Begun { api, plugin, target: chosen, agent_version, request, started });
            }
            Err(failure) => failure,
        };
        if !is_the_targets(&failure) {
            return Err(failure);
        }
        let now = Instant::now();
        let mut targets = lock(targets);
        targets.not_there(generation, failure.clone(), now);
        if asked >= ASKED || !targets.has_other(ids.iter().map(String::as_str), now) {
            return Err(targets.failure(&ids).unwrap_or(failure));
        }
        let (tunnel, reason) = (&config.name, &failure.text);
        warn!(
            tunnel,
            event = "target_passed_over",
            target = chosen,
            reason,
            "{chosen} is passed over for another target: {reason}"
        );
    }
}

/// Whether StartSession may well agree to another target: this one is not connected, a policy denies it, or it is not one for
/// this document or does not exist. What is wrong with the credentials, the service or the way there is wrong with all.
fn is_the_targets(failure: &Failure) -> bool {
    match failure.class {
        Class::TargetNotConnected | Class::NeedsChange => true,
        Class::Access => errors::is_denied("StartSession", failure),
        Class::Throttled | Class::Network => false,
    }
}

/// Watches for a node of the tunnel's tag that is not known to be away, and tells the driver when there is one. `since`
/// is when there was none for the first time. Returns at once where no tag is configured: what is listed in the
/// configuration is asked itself, by the tunnel's clock.
pub(super) async fn watch(
    config: Arc<config::Tunnel>,
    shared: Shared,
    targets: SharedTargets,
    since: Instant,
    sender: mpsc::Sender<Message>,
) {
    let Target::Tag { key, value } = &config.target else { return };
    let is_there = |nodes: &[Node]| {
        let ids = nodes.iter().map(|node| node.id.as_str());
        lock(&targets).has_other(ids, Instant::now())
    };
    let mut throttled = 0;
    loop {
        // Many tunnels may wait for the same tag; those of one process share an answer.
        tokio::time::sleep(interval(since.elapsed(), throttled).mul_f64(rand::random_range(2.0 / 3.0..1.0)))
            .await;
        let Ok(api) = shared.clients.get(&config.identity).await else { continue };
        match api.online_nodes(key, value, target::FRESH).await {
            Ok(nodes) if is_there(&nodes) => {
                // Without a receiver the tunnel has ended.
                let _ = sender.send(Message::TargetOnline).await;
                return;
            }
            Err(failure) if failure.class == Class::Throttled => throttled += 1,
            _ => throttled = 0,
        }
    }
}

/// Between two looks for a node of a tag that has none for so long, after so many refusals in a row by the account's limit:
/// a hundred hosts that wait for one tag must not take all of it.
fn interval(since: Duration, throttled: u32) -> Duration {
    let interval = if since < LONG { WATCH } else { WATCH_LATER };
    interval.saturating_mul(2u32.saturating_pow(throttled)).min(WATCH_RARELY)
}

/// Says once for each session what its agent is too old for.
pub(super) fn tell_of_agent(config: &config::Tunnel, session: &str, version: &str) {
    if let Some(reason) = agent::shortcoming(version, config.remote_host.is_some()) {
        let tunnel = &config.name;
        warn!(tunnel, session, event = "agent_too_old", agent_version = version, reason, "{reason}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_accounts_limit_doubles_the_time_between_looks() {
        let seconds = |since, throttled| interval(Duration::from_secs(since), throttled).as_secs_f64();
        assert_eq!([0, 1, 2, 5, 6, u32::MAX].map(|n| seconds(0, n)), [2.5, 5.0, 10.0, 80.0, 120.0, 120.0]);
        assert_eq!([0, 1, 2, 3].map(|n| seconds(600, n)), [30.0, 60.0, 120.0, 120.0]);
    }
}
