//! What each tunnel says of itself, and how old that may be.

use std::sync::Arc;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use super::{Absence, Board, Lost, Tunnel};
use crate::control::protocol::Status;
use crate::control::time::Timestamp;

/// A tunnel as `/api/tunnels` and the answers about one have it.
#[derive(Clone, Debug)]
pub struct Known {
    /// What it said last.
    pub status: Arc<Status>,
    /// Whether it says anything now.
    pub lost: Option<Lost>,
}

impl Known {
    /// Whether its daemon answers; one that is being restarted counts as if it did.
    pub fn answers(&self) -> bool {
        !self.lost.as_ref().is_some_and(Lost::is_news)
    }
}

impl Board {
    /// A tunnel has answered what was `asked` then.
    pub fn status(&self, name: &str, mut status: Status, asked: Instant) {
        let mut inner = self.inner();
        let tunnel = inner.tunnels.entry(name.to_owned()).or_default();
        tunnel.asked = Some(asked);
        let state = |status: &Status| (status.state, status.since);
        let turned = tunnel.lost.is_some() || tunnel.status.as_deref().map(state) != Some(state(&status));
        tunnel.timeline_changed |= turned;
        if let Some(last) = tunnel.status.as_deref().filter(|_| !turned) {
            // That time has passed is no change.
            let now = std::mem::replace(&mut status.now, last.now);
            tunnel.status_changed |= status != *last;
            status.now = now;
        } else {
            tunnel.status_changed = true;
        }
        tunnel.lost = None;
        tunnel.status = Some(Arc::new(status));
        drop(inner);
        self.answered.notify_waiters();
        self.dirty.notify_one();
    }

    /// Notified when this tunnel is to be asked.
    pub fn ask(&self, name: &str) -> Arc<Notify> {
        self.inner().tunnels.entry(name.to_owned()).or_default().ask.clone()
    }

    /// Asks every tunnel how it is, and waits until all that answer at all have, at most until `deadline`.
    pub async fn refresh(&self, deadline: Instant) {
        self.answers(None, Instant::now(), deadline).await;
    }

    /// One tunnel, as it was at `since` or later; if it has not answered by the `deadline` it counts as lost.
    pub async fn refreshed(&self, name: &str, since: Instant, deadline: Instant) -> Option<Known> {
        let answered = self.answers(Some(name), since, deadline).await;
        let known = self.one(name)?;
        if answered || known.lost.is_some() {
            return Some(known);
        }
        let why = "it has not answered in time".to_owned();
        let lost = Lost { since: Timestamp::now(), how: Absence::Silent, why };
        Some(Known { lost: Some(lost), ..known })
    }

    /// Asks this tunnel, or all, and waits for an answer to a question of `since` or later. Nobody waits for what is lost.
    async fn answers(&self, name: Option<&str>, since: Instant, deadline: Instant) -> bool {
        let mut first = true;
        loop {
            let answered = self.answered.notified();
            tokio::pin!(answered);
            // Before it is looked, so that no answer falls in between.
            answered.as_mut().enable();
            let is_old =
                |tunnel: &Tunnel| tunnel.lost.is_none() && tunnel.asked.is_none_or(|asked| asked < since);
            let waiting = {
                let inner = self.inner();
                let asked = inner.tunnels.iter().filter(|(one, _)| name.is_none_or(|name| name == *one));
                let old = asked.map(|(_, tunnel)| tunnel).filter(|tunnel| is_old(tunnel));
                if first {
                    old.inspect(|tunnel| tunnel.ask.notify_one()).count() > 0
                } else {
                    old.count() > 0
                }
            };
            first = false;
            if !waiting {
                return true;
            }
            if timeout_at(deadline, answered).await.is_err() {
                return false;
            }
        }
    }

    /// Every tunnel, by name.
    pub fn all(&self) -> Vec<Known> {
        let inner = self.inner();
        inner.tunnels.values().filter_map(Tunnel::known).collect()
    }

    /// One tunnel.
    pub fn one(&self, name: &str) -> Option<Known> {
        self.inner().tunnels.get(name).and_then(Tunnel::known)
    }
}

impl Tunnel {
    fn known(&self) -> Option<Known> {
        self.status.clone().map(|status| Known { status, lost: self.lost.clone() })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_a_tunnel_that_is_lost() {
        let board = Arc::new(Board::default());
        let began = Instant::now();
        board.status("up", Status::default(), began);
        board.status("hangs", Status::default(), began);
        let up = board.ask("up");
        let answering = tokio::spawn({
            let board = board.clone();
            async move {
                loop {
                    up.notified().await;
                    board.status("up", Status::default(), Instant::now());
                }
            }
        });
        let patience = Duration::from_secs(2);
        tokio::time::advance(Duration::from_secs(1)).await;
        let began = Instant::now();
        board.refresh(began + patience).await;
        assert_eq!(began.elapsed(), patience, "one has not answered");
        // Who asks for one waits for that one, and not for an answer that there is.
        let began = Instant::now();
        let known = board.refreshed("up", began - Duration::from_secs(5), began + patience).await.unwrap();
        assert!(
            known.lost.is_none()
                && board.refreshed("up", began, began + patience).await.unwrap().lost.is_none()
        );
        assert!(board.refreshed("nobody", began, began + patience).await.is_none());
        assert!(began.elapsed() < patience);
        let known = board.refreshed("hangs", began, began + patience).await.unwrap();
        assert_eq!((known.lost.map(|lost| lost.how), began.elapsed()), (Some(Absence::Silent), patience));

        let why = "no answer".to_owned();
        board.lost("hangs", Lost { since: Timestamp::now(), how: Absence::Silent, why });
        let began = Instant::now();
        board.refresh(began + patience).await;
        assert!(began.elapsed() < patience);
        assert!(board.one("hangs").is_some_and(|known| known.lost.is_some()));
        answering.abort();
    }
}
