//! PURE. How fast stream messages that were sent before go to the service again.
//!
//! The service does not like more than 1000 messages a second of one side: it was seen to have the other side pause and
//! to end the WebSocket (public record of clients that were written for it). The plugin keeps below that by itself, with a
//! pause of 1 ms after each message; what is sent again after an interruption is up to 10 000 messages that are all there
//! at once. What is sent for the first time was paced by the plugin, and may have been held up by a link that stood still,
//! as kernels hold it up: new connections should not wait behind it for longer than with the bare plugin.

use std::time::{Duration, Instant};

/// One message in this time on the average: 900 a second.
const INTERVAL: Duration = Duration::from_nanos(1_111_111);
/// After a pause as many may follow one another at once.
const BURST: u32 = 100;

/// Counts what is sent (the generic cell rate algorithm).
#[derive(Debug, Default)]
pub struct Pacer {
    /// When all that was sent would have been, at the average pace.
    due: Option<Instant>,
}

impl Pacer {
    /// When the next message may be sent.
    pub fn ready_at(&self) -> Option<Instant> {
        self.due.and_then(|due| due.checked_sub(INTERVAL * (BURST - 1)))
    }

    /// Whether it may be sent now.
    pub fn is_ready(&self, now: Instant) -> bool {
        self.ready_at().is_none_or(|at| at <= now)
    }

    /// Counts a message that is sent.
    pub fn sent(&mut self, now: Instant) {
        self.due = Some(self.due.map_or(now, |due| due.max(now)) + INTERVAL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_and_then_900_a_second() {
        let (mut pacer, began) = (Pacer::default(), Instant::now());
        let (mut now, mut sent) = (began, Vec::new());
        while sent.len() < 2000 {
            match pacer.ready_at().filter(|at| *at > now) {
                Some(at) => now = at,
                None => {
                    pacer.sent(now);
                    sent.push(now - began);
                }
            }
        }
        let at_once = sent.iter().filter(|at| at.is_zero()).count();
        assert_eq!(at_once, BURST as usize);
        let took = sent[BURST as usize + 900].as_millis();
        assert!((1000..=1003).contains(&took), "{took} ms for 900 after the burst");
    }

    #[test]
    fn a_pause_saves_up_no_more_than_one_burst() {
        let (mut pacer, now) = (Pacer::default(), Instant::now());
        pacer.sent(now);
        let later = now + Duration::from_secs(60);
        let mut burst = 0;
        while pacer.is_ready(later) {
            pacer.sent(later);
            burst += 1;
        }
        assert_eq!(burst, BURST);
    }
}
