//! PURE. The numbers of the plugin's stream with messages of the gateway's own between them.
//!
//! ```text
//! plugin  0 1 2     3 4     5
//! agent   0 1 2 (3) 4 5 (6) 7        (injected)
//! ```
//!
//! A message is injected only when the agent has acknowledged all before it. So of all the messages that are not yet
//! acknowledged an injected one can only be the first, everything before the latest one is settled for good, and two
//! numbers are memory enough for a session of any length.

/// The translation between the numbers of the two ends.
#[derive(Debug, Default)]
pub struct Numbering {
    /// Messages injected so far.
    injected: i64,
    /// The agent's number of the message after the latest injected one.
    after: i64,
}

/// What a number of the agent's stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The plugin's message of this number.
    Plugin(i64),
    /// The latest injected message.
    Injected,
    /// Something before it, injected or not, which was acknowledged long ago.
    Settled,
}

impl Numbering {
    /// The message that has this number at the agent is injected; all before it are acknowledged.
    pub fn inject(&mut self, number: i64) {
        self.injected += 1;
        self.after = number + 1;
    }

    /// The agent's number for the plugin's; `None` for a message before the latest injected one, which is acknowledged.
    pub fn to_agent(&self, number: i64) -> Option<i64> {
        number.checked_add(self.injected).filter(|number| *number >= self.after)
    }

    /// What the agent means by a number.
    pub fn to_plugin(&self, number: i64) -> Origin {
        if number >= self.after {
            Origin::Plugin(number - self.injected)
        } else if number == self.after - 1 {
            Origin::Injected
        } else {
            Origin::Settled
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_untouched_stream_keeps_its_numbers() {
        let numbering = Numbering::default();
        for number in [0, 1, i64::MAX] {
            assert_eq!(numbering.to_agent(number), Some(number));
            assert_eq!(numbering.to_plugin(number), Origin::Plugin(number));
        }
        assert_eq!(numbering.to_agent(-1), None);
    }

    proptest! {
        /// Against the whole list of what was sent, in which nothing is forgotten.
        #[test]
        fn numbers_are_those_of_the_list(sent in proptest::collection::vec(any::<bool>(), 0..60)) {
            let mut numbering = Numbering::default();
            // For each of the agent's numbers: the plugin's, or none for an injected message.
            let mut list: Vec<Option<i64>> = Vec::new();
            let mut next = 0;
            for injected in sent {
                if injected {
                    numbering.inject(list.len() as i64);
                    list.push(None);
                } else {
                    prop_assert_eq!(numbering.to_agent(next), Some(list.len() as i64));
                    list.push(Some(next));
                    next += 1;
                }
            }
            let latest = list.iter().rposition(Option::is_none);
            for (number, origin) in list.iter().enumerate() {
                let expected = match origin {
                    _ if latest.is_some_and(|latest| number < latest) => Origin::Settled,
                    Some(plugin) => Origin::Plugin(*plugin),
                    None => Origin::Injected,
                };
                prop_assert_eq!(numbering.to_plugin(number as i64), expected);
                if let Some(plugin) = origin {
                    let settled = expected == Origin::Settled;
                    prop_assert_eq!(numbering.to_agent(*plugin), (!settled).then_some(number as i64));
                }
            }
        }

        #[test]
        fn survives_any_number(number in any::<i64>(), injected in 0i64..9) {
            let mut numbering = Numbering::default();
            (0..injected).for_each(|number| numbering.inject(number));
            let _ = (numbering.to_agent(number), numbering.to_plugin(number));
        }
    }
}
