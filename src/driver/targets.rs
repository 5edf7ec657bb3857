//! PURE. Whom a tunnel's sessions are started with: in the order of preference, spread over the targets, and not with one
//! that was just found to be away. Each new session is chosen for anew, so that a tunnel is back on its preferred target
//! with its next session.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::tunnel::Generation;
use crate::tunnel::failure::{Class, Failure};

/// After a target was found to be away it is passed over for this long, doubled each time up to [`LONGEST`] …
const FIRST: Duration = Duration::from_secs(2);
/// … for as long as another one can be had.
const LONGEST: Duration = Duration::from_secs(30);
/// Whatever was passed over this long ago has a clean slate; instances come and go.
const FORGOTTEN: Duration = Duration::from_secs(600);

/// What is known of one tunnel's targets.
#[derive(Debug, Default)]
pub(super) struct Targets {
    sessions: BTreeMap<Generation, Chosen>,
    absent: BTreeMap<String, Absent>,
}

#[derive(Debug)]
struct Chosen {
    target: String,
    /// The session's agent answers nothing.
    away: bool,
}

#[derive(Debug)]
struct Absent {
    until: Instant,
    pause: Duration,
    /// Why it could not be had last.
    failure: Failure,
}

impl Targets {
    /// Chooses for the session `generation` among `candidates`, which are in the order of preference: first whoever is
    /// there, then whoever has the fewest sessions of this tunnel. Of these only those `beside` count, and younger ones:
    /// not one that this session is to replace. `None` without candidates.
    pub(super) fn choose(
        &mut self,
        generation: Generation,
        candidates: &[String],
        beside: &[Generation],
        now: Instant,
    ) -> Option<String> {
        self.absent.retain(|_, absent| now < absent.until + FORGOTTEN);
        let away = |target: &str| self.sessions.values().any(|chosen| chosen.away && chosen.target == target);
        let uses = |target: &str| {
            let counts = |g: &Generation| beside.contains(g) || *g > generation;
            self.sessions.iter().filter(|(g, chosen)| counts(g) && chosen.target == target).count()
        };
        let rank = |target: &str| (self.absent_until(target, now), away(target), uses(target));
        // The first of equals.
        let target = candidates.iter().min_by_key(|target| rank(target))?.clone();
        self.sessions.insert(generation, Chosen { target: target.clone(), away: false });
        Some(target)
    }

    /// Whether there is any of `candidates` that is not known to be away.
    pub(super) fn has_other<'c>(&self, candidates: impl IntoIterator<Item = &'c str>, now: Instant) -> bool {
        candidates.into_iter().any(|target| self.absent_until(target, now).is_none())
    }

    /// Whether a target is away: a list of nodes that was made before may name it still.
    pub(super) fn misses_any(&self, now: Instant) -> bool {
        self.absent.values().any(|absent| now < absent.until)
            || self.sessions.values().any(|chosen| chosen.away)
    }

    /// The target of this session could not be had.
    pub(super) fn not_there(&mut self, generation: Generation, failure: Failure, now: Instant) {
        let Some(chosen) = self.sessions.remove(&generation) else { return };
        let pause = self.absent.get(&chosen.target).map_or(FIRST, |absent| (absent.pause * 2).min(LONGEST));
        self.absent.insert(chosen.target, Absent { until: now + pause, pause, failure });
    }

    /// Why none of `candidates` could be had: as one of them says that may pass by itself, for its clock is the shortest;
    /// and beside it what others say that needs somebody.
    pub(super) fn failure(&self, candidates: &[String]) -> Option<Failure> {
        let hope = |failure: &Failure| match failure.class {
            Class::TargetNotConnected => 0,
            Class::Network | Class::Throttled => 1,
            Class::Access => 2,
            Class::NeedsChange => 3,
        };
        let known = candidates.iter().filter_map(|target| Some((target, &self.absent.get(target)?.failure)));
        let mut known: Vec<_> = known.collect();
        known.sort_by_key(|(_, failure)| hope(failure));
        known.dedup_by_key(|(_, failure)| failure.class);
        let ((_, first), others) = known.split_first()?;
        let others = others.iter().map(|(target, failure)| format!("; {target}: {failure}"));
        Some(Failure::new(first.class, first.text.clone() + &others.collect::<String>()))
    }

    /// This session serves: its target is there.
    pub(super) fn there(&mut self, generation: Generation) {
        if let Some(chosen) = self.sessions.get(&generation) {
            self.absent.remove(&chosen.target);
        }
    }

    /// This session's agent does not answer, or answers again.
    pub(super) fn set_away(&mut self, generation: Generation, away: bool) {
        if let Some(chosen) = self.sessions.get_mut(&generation) {
            chosen.away = away;
        }
    }

    /// This session is over.
    pub(super) fn over(&mut self, generation: Generation) {
        self.sessions.remove(&generation);
    }

    fn absent_until(&self, target: &str, now: Instant) -> Option<Instant> {
        self.absent.get(target).map(|absent| absent.until).filter(|until| now < *until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn offline() -> Failure {
        Failure::new(Class::TargetNotConnected, "offline")
    }

    /// Chooses among `a`, `b` and `c`, in this order of preference.
    fn choose(targets: &mut Targets, generation: u64, beside: &[u64], now: Instant) -> String {
        let beside: Vec<_> = beside.iter().copied().map(Generation).collect();
        targets.choose(Generation(generation), &ids(&["a", "b", "c"]), &beside, now).unwrap()
    }

    #[test]
    fn the_preferred_one_is_passed_over_while_it_is_away_and_no_longer() {
        let (mut targets, now) = (Targets::default(), Instant::now());
        assert_eq!(choose(&mut targets, 1, &[], now), "a");
        targets.not_there(Generation(1), offline(), now);
        assert!(
            targets.misses_any(now) && targets.has_other(["a", "b"], now) && !targets.has_other(["a"], now)
        );
        assert_eq!(choose(&mut targets, 2, &[], now), "b");
        targets.there(Generation(2));
        // Its session is lost a little later.
        targets.over(Generation(2));
        let later = now + FIRST;
        assert_eq!(choose(&mut targets, 3, &[], later), "a");
        targets.not_there(Generation(3), offline(), later);
        assert!(!targets.has_other(["a"], later + FIRST), "twice as long");
        assert!(targets.has_other(["a"], later + 2 * FIRST));
        targets.there(Generation(2));
        assert_eq!(choose(&mut targets, 4, &[], later + 2 * FIRST), "a");
        targets.there(Generation(4));
        targets.not_there(Generation(4), offline(), later);
        assert!(targets.has_other(["a"], later + FIRST), "a clean slate");
    }

    #[test]
    fn where_all_are_away_the_one_that_is_due_first_is_tried() {
        let (mut targets, now) = (Targets::default(), Instant::now());
        for (generation, expected) in [(1, "a"), (2, "b"), (3, "c"), (4, "a"), (5, "b")] {
            let now = now + Duration::from_millis(generation);
            assert_eq!(choose(&mut targets, generation, &[], now), expected);
            targets.not_there(Generation(generation), offline(), now);
        }
        assert_eq!(targets.choose(Generation(6), &[], &[], now), None);
    }

    /// The first one is denied by a policy, the second one's agent is offline.
    #[test]
    fn the_failure_of_a_list_has_the_shortest_clock_and_everybodys_words() {
        let (mut targets, now) = (Targets::default(), Instant::now());
        let refusals =
            [(Class::NeedsChange, "invalid"), (Class::Access, "denied"), (Class::Access, "denied too")];
        for (generation, (class, words)) in (1..).zip(refusals) {
            choose(&mut targets, generation, &[], now);
            targets.not_there(Generation(generation), Failure::new(class, words), now);
        }
        let all = ids(&["a", "b", "c"]);
        assert_eq!(targets.failure(&all), Some(Failure::new(Class::Access, "denied; a: invalid")));
        choose(&mut targets, 4, &[], now);
        targets.not_there(Generation(4), offline(), now);
        let failure = targets.failure(&all).unwrap();
        assert_eq!(failure, Failure::new(Class::TargetNotConnected, "offline; b: denied"));
        assert_eq!(targets.failure(&ids(&["b"])), Some(Failure::new(Class::Access, "denied")));
        assert_eq!(targets.failure(&ids(&["d"])), None);
    }

    #[test]
    fn a_pool_is_spread_and_a_replacement_keeps_its_place() {
        let (mut targets, now) = (Targets::default(), Instant::now());
        let chosen: Vec<_> = (1..=5)
            .map(|generation| {
                let beside: Vec<_> = (1..generation).collect();
                choose(&mut targets, generation, &beside, now)
            })
            .collect();
        assert_eq!(chosen, ["a", "b", "c", "a", "b"]);
        // The second is rotated: the other four stay where they are.
        assert_eq!(choose(&mut targets, 6, &[1, 3, 4, 5], now), "b");
        // Where all of a pool begin at once, whoever comes first counts those that were faster.
        let mut targets = Targets::default();
        assert_eq!(choose(&mut targets, 2, &[1], now), "a");
        assert_eq!(choose(&mut targets, 1, &[], now), "b");
    }

    #[test]
    fn a_session_without_its_agent_is_replaced_elsewhere() {
        let (mut targets, now) = (Targets::default(), Instant::now());
        assert_eq!(choose(&mut targets, 1, &[], now), "a");
        targets.set_away(Generation(1), true);
        assert!(targets.misses_any(now));
        assert_eq!(choose(&mut targets, 2, &[], now), "b");
        // With only that one there is no choice.
        assert_eq!(targets.choose(Generation(3), &ids(&["a"]), &[], now).as_deref(), Some("a"));
        targets.set_away(Generation(1), false);
        assert!(!targets.misses_any(now));
        assert_eq!(choose(&mut targets, 4, &[], now), "a");
    }
}
