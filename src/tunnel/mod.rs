//! The core: pure, and the only place that decides.

pub mod failure;

/// Numbers the sessions of one tunnel in the order in which they were begun. Every asynchronous result carries
/// the generation it belongs to, so that a late one can be told from a current one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(pub u64);
