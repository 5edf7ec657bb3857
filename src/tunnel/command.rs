//! What an operator can ask of a tunnel.
//!
//! | command | sessions | open connections | new clients |
//! |---|---|---|---|
//! | rotate | each gets a replacement, and retires when that is Ready | go on, up to `drain` | served throughout |
//! | restart | ended, and begun anew at once | cut | held until a new session is Ready |
//! | drain | stay, and are kept up | go on | held, up to `hold` |
//! | resume | | | served again |
//!
//! Clients of a drained tunnel are held and not refused: a maintenance of the destination that is shorter than `hold`
//! is not noticed by them, and the port is never given up. Draining lasts until `resume`, or until the process ends.

use super::machine::{Next, Tunnel};
use super::session::Phase;
use super::{Action, Reason};

/// Why sessions end at a restart.
pub const RESTARTED: &str = "restarted on request";

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Command {
    /// Replace the sessions, make before break.
    Rotate,
    /// End the sessions and begin anew.
    Restart,
    /// No new connections.
    Drain,
    /// New connections again.
    Resume,
}

impl Tunnel {
    /// Nothing more is taken on once the tunnel stops.
    pub(super) fn command(&mut self, command: Command, actions: &mut Vec<Action>) {
        if self.stopping.is_some() {
            return;
        }
        match command {
            Command::Rotate => {
                let serving: Vec<_> = self.slots.iter().filter_map(|slot| slot.serving).collect();
                for session in self.sessions.iter_mut().filter(|s| serving.contains(&s.generation)) {
                    session.expired.get_or_insert(Reason::Requested);
                }
                self.try_at_once();
            }
            Command::Restart => {
                let living = self.sessions.iter().filter(|session| session.phase != Phase::Ending);
                let living: Vec<_> = living.map(|session| session.generation).collect();
                for generation in living {
                    self.end(generation, RESTARTED, true, actions);
                }
                self.try_at_once();
            }
            Command::Drain => self.drained = true,
            Command::Resume => self.drained = false,
        }
    }

    /// Whether new connections are kept waiting on request.
    pub fn is_drained(&self) -> bool {
        self.drained
    }

    /// Whoever asks has most often put right what was wrong.
    fn try_at_once(&mut self) {
        for slot in &mut self.slots {
            slot.short_lives.clear();
            slot.backoff.reset();
            if matches!(slot.next, Next::Waiting { .. }) {
                slot.next = Next::None;
            }
        }
    }
}
