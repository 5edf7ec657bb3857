//! Which tunnels are to run, which do not answer, and which are none of this host's any more.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::Serialize;

use super::{Board, Inner, Tunnel, message};
use crate::control::protocol::{State, Status, history};
use crate::control::time::Timestamp;

/// A daemon that does not answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// Since when.
    pub since: Timestamp,
    /// What that looks like.
    pub how: Absence,
    /// What came instead.
    pub why: String,
}

/// How a daemon does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Absence {
    /// For a moment, which need not mean anything: so does one that is restarted.
    Silent,
    /// Nobody listens.
    Gone,
    /// Somebody listens and says nothing, or nothing to us.
    Deaf,
}

impl Lost {
    /// It lasts longer than a restart.
    pub fn is_news(&self) -> bool {
        self.how != Absence::Silent
    }
}

impl Board {
    /// A tunnel does not answer. One that nobody has ever heard of has no row until that is news.
    pub fn lost(&self, name: &str, lost: Lost) {
        let mut inner = self.inner();
        let tunnel = inner.tunnels.entry(name.to_owned()).or_default();
        let since = tunnel.lost.as_ref().map_or(lost.since, |before| before.since);
        let lost = Lost { since, ..lost };
        if tunnel.status.is_none() && lost.is_news() {
            let status = Status { name: name.to_owned(), state: State::Stopped, since, ..Status::default() };
            tunnel.status = Some(Arc::new(status));
        }
        let lost = Some(lost);
        if tunnel.lost != lost {
            tunnel.lost = lost;
            tunnel.status_changed = true;
            tunnel.timeline_changed = true;
        }
        drop(inner);
        self.answered.notify_waiters();
        self.dirty.notify_one();
    }

    /// These tunnels are to run.
    pub fn expect(&self, names: BTreeSet<String>) {
        let mut inner = self.inner();
        let before = std::mem::replace(&mut inner.expected, names);
        let Inner { tunnels, expected, .. } = &mut *inner;
        for (name, tunnel) in tunnels {
            tunnel.dropped = !expected.contains(name) && (tunnel.dropped || before.contains(name));
        }
    }

    /// The tunnels that are to run.
    pub fn expected(&self) -> BTreeSet<String> {
        self.inner().expected.clone()
    }

    /// A tunnel was stopped by somebody, and is none of this host's any more.
    pub fn forget(&self, name: &str) {
        let mut inner = self.inner();
        if inner.tunnels.remove(name).is_some() {
            self.answered.notify_waiters();
            self.publish_one(&mut inner, || message("removed", &serde_json::json!({ "name": name })));
        }
    }

    /// Whether a tunnel that has no socket any more has done what somebody wanted: it is not to run, and was told to stop,
    /// or has never said anything.
    pub fn may_go(&self, name: &str) -> bool {
        let inner = self.inner();
        let over = inner.tunnels.get(name).is_none_or(|tunnel| tunnel.dropped || tunnel.was_stopped());
        over && !inner.expected.contains(name)
    }
}

impl Tunnel {
    /// Whether its last word was that it stops.
    fn was_stopped(&self) -> bool {
        let told = self.events.iter().rfind(|known| known.event.event == history::STATE);
        let told = told.and_then(|known| known.event.fields.get("state")?.as_str());
        told.is_some_and(|word| [State::Stopping, State::Stopped].iter().any(|state| state.word() == word))
            || self.status.as_deref().is_none_or(|one| matches!(one.state, State::Stopping | State::Stopped))
    }
}
