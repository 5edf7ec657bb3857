//! What one session's probes and connections say of the way to the destination. The verdict has three values:
//!
//! | seen | verdict |
//! |---|---|
//! | `rise` probes in a row answered as they should be; or a client's connection answered at all | fine |
//! | `fall` probes in a row refused, closed, answered wrongly, or unanswered while the agent was heard of | destination down |
//! | the same, less than [`CALM`](super::verdict) after a connection was refused | fine when that time is over |
//! | 3 clients' connections in a row refused within a minute | destination down |
//! | `fall` probes in a row unanswered, and nobody can say whether the agent is there | path down |
//!
//! Where the gateway hears the agent's acknowledgements (`hold` mode), a probe that is neither answered nor acknowledged
//! says nothing here: the gateway's own clock, which such a probe sets going, tells that the path is down, as
//! [`Interrupted`](super::SessionEvent::Interrupted).

use std::time::Duration;

use super::Time;

/// So many refused connections in a row …
const REFUSED: u32 = 3;
/// … within this time are the destination's fault.
const REFUSED_WITHIN: Duration = Duration::from_secs(60);
/// A probe is made up to this share of the interval earlier, so that tunnels do not probe in step.
const JITTER: f64 = 0.1;

/// How a destination is probed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Probing {
    /// From the end of one probe to the next.
    pub interval: Duration,
    /// So many good probes in a row: the destination is up. At least 1.
    pub rise: u32,
    /// So many bad ones in a row: it is down. At least 1.
    pub fall: u32,
}

/// What a probe has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// The destination answered as it should.
    Good,
    /// It did not, in these words, and the agent is there.
    Bad(String),
    /// No answer, in these words, and nobody can say whether the agent is there.
    Unanswered(String),
    /// No answer, nor an acknowledgement of the agent's; or the session ended meanwhile.
    Nothing,
}

/// What follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing yet, or nothing new.
    None,
    /// The destination can be reached.
    Fine,
    /// The agent is there, the destination is not.
    DestinationDown(String),
    /// The agent may not be there.
    PathDown(String),
}

/// One session's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Health {
    down: bool,
    /// Probes in a row: good, bad, unanswered ones.
    good: u32,
    bad: u32,
    unanswered: u32,
    /// Connections refused in a row, and when the first was.
    refused: u32,
    refused_since: Time,
    /// A probe is under way, and so many connections were refused meanwhile; one of these may be its own.
    probing: Option<u32>,
    /// When the next probe is made; at once where none was made yet.
    next: Time,
}

impl Health {
    /// Whether the destination counts as down.
    pub fn is_down(&self) -> bool {
        self.down
    }

    /// As the session before it had found the destination.
    pub fn begin_as(&mut self, down: bool) {
        self.down = down;
    }

    /// When the next probe is to be made, unless one is under way.
    pub fn probe_at(&self) -> Option<Time> {
        self.probing.is_none().then_some(self.next)
    }

    /// All but the times.
    #[cfg(test)]
    pub fn row(&self) -> (bool, [u32; 4], Option<u32>) {
        (self.down, [self.good, self.bad, self.unanswered, self.refused], self.probing)
    }

    /// A probe is begun.
    pub fn begin_probe(&mut self) {
        self.probing = Some(0);
    }

    /// A probe has ended. Without `probing` none is wanted any more.
    pub fn probed(&mut self, now: Time, found: Found, probing: Option<&Probing>, random: f64) -> Verdict {
        let Some(probing) = probing else {
            self.probing = None;
            return Verdict::None;
        };
        self.next = now + probing.interval.mul_f64(1.0 - JITTER * random.clamp(0.0, 1.0));
        let refused = self.probing.take().unwrap_or_default();
        // A refused probe is one refused connection more than clients have met.
        let refused = refused.saturating_sub(u32::from(matches!(found, Found::Bad(_))));
        let mut verdict = Verdict::None;
        for _ in 0..refused {
            verdict = self.refused(now);
        }
        if verdict != Verdict::None {
            return verdict;
        }
        match found {
            Found::Good => {
                (self.good, self.bad, self.unanswered) = (self.good.saturating_add(1), 0, 0);
                if self.good >= probing.rise { self.fine() } else { Verdict::None }
            }
            Found::Bad(reason) => {
                (self.good, self.bad, self.unanswered) = (0, self.bad.saturating_add(1), 0);
                if self.bad >= probing.fall { self.falls(reason) } else { Verdict::None }
            }
            Found::Unanswered(reason) => {
                (self.good, self.bad, self.unanswered) = (0, 0, self.unanswered.saturating_add(1));
                if self.unanswered >= probing.fall { Verdict::PathDown(reason) } else { Verdict::None }
            }
            Found::Nothing => Verdict::None,
        }
    }

    /// The agent could not reach the destination for a connection.
    pub fn refused(&mut self, now: Time) -> Verdict {
        if let Some(meanwhile) = &mut self.probing {
            *meanwhile += 1;
            return Verdict::None;
        }
        if self.refused == 0 || now > self.refused_since + REFUSED_WITHIN {
            (self.refused, self.refused_since) = (0, now);
        }
        self.refused = (self.refused + 1).min(REFUSED);
        if self.refused < REFUSED {
            return Verdict::None;
        }
        self.falls("the agent cannot connect to it".to_owned())
    }

    /// A connection has had an answer.
    pub fn answered(&mut self) -> Verdict {
        self.fine()
    }

    /// The destination is to blame.
    pub fn falls(&mut self, reason: String) -> Verdict {
        self.down = true;
        self.good = 0;
        Verdict::DestinationDown(reason)
    }

    /// What was seen belongs to another path, or another destination.
    pub fn forget(&mut self) {
        (self.good, self.bad, self.unanswered, self.refused) = (0, 0, 0, 0);
    }

    fn fine(&mut self) -> Verdict {
        self.forget();
        self.down = false;
        Verdict::Fine
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn probing() -> Probing {
        Probing { interval: 30 * SECOND, rise: 2, fall: 3 }
    }

    fn bad() -> Found {
        Found::Bad("refused".into())
    }

    fn probe(health: &mut Health, now: Time, found: Found) -> Verdict {
        health.begin_probe();
        assert_eq!(health.probe_at(), None, "one at a time");
        let verdict = health.probed(now, found, Some(&probing()), 0.5);
        assert_eq!(health.probe_at(), Some(now + SECOND * 57 / 2));
        verdict
    }

    #[test]
    fn falls_and_rises_by_rows_of_probes() {
        let mut health = Health::default();
        let down = Verdict::DestinationDown("refused".into());
        for (found, verdict, is_down) in [
            (bad(), Verdict::None, false),
            (bad(), Verdict::None, false),
            (Found::Good, Verdict::None, false),
            (bad(), Verdict::None, false),
            (bad(), Verdict::None, false),
            // Says nothing, and breaks no row.
            (Found::Nothing, Verdict::None, false),
            (bad(), down.clone(), true),
            (bad(), down, true),
            (Found::Good, Verdict::None, true),
            (Found::Good, Verdict::Fine, false),
        ] {
            assert_eq!(probe(&mut health, SECOND, found), verdict);
            assert_eq!(health.is_down(), is_down);
        }
    }

    #[test]
    fn silence_that_nobody_can_explain_is_the_paths() {
        let mut health = Health::default();
        let unanswered = || Found::Unanswered("no answer".into());
        assert_eq!(probe(&mut health, SECOND, unanswered()), Verdict::None);
        assert_eq!(probe(&mut health, SECOND, unanswered()), Verdict::None);
        assert_eq!(probe(&mut health, SECOND, unanswered()), Verdict::PathDown("no answer".into()));
        assert!(!health.is_down());
    }

    #[test]
    fn three_refused_connections_in_a_row_within_a_minute() {
        let mut health = Health::default();
        let refused = |health: &mut Health, second: u32| health.refused(SECOND * second) != Verdict::None;
        assert!(!refused(&mut health, 1) && !refused(&mut health, 2));
        health.answered();
        assert!(!refused(&mut health, 3) && !refused(&mut health, 4), "the row was broken");
        assert!(!refused(&mut health, 100), "too late");
        assert!(!refused(&mut health, 101) && refused(&mut health, 102));
        assert!(refused(&mut health, 103), "it is still so");
        assert!(health.is_down());
        assert_eq!(health.answered(), Verdict::Fine);
        assert!(!health.is_down() && !refused(&mut health, 104));
    }

    /// `fall` decides, however often a probe's own refused connection is told.
    #[test]
    fn a_refused_probe_is_not_counted_twice() {
        let mut health = Health::default();
        let probing = Probing { fall: 10, ..probing() };
        for second in 0..9 {
            health.begin_probe();
            assert_eq!(health.refused(SECOND * second), Verdict::None);
            assert_eq!(health.probed(SECOND * second, bad(), Some(&probing), 0.0), Verdict::None);
        }
        // Clients' are counted beside it.
        health.begin_probe();
        for _ in 0..4 {
            health.refused(SECOND * 9);
        }
        assert!(matches!(health.probed(SECOND * 9, bad(), Some(&probing), 0.0), Verdict::DestinationDown(_)));
    }
}
