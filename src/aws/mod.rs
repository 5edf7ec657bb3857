//! The cloud's edge: one small trait, the SDK behind it, and signing for what the SDK has no call for.
//!
//! [`sdk::Clients`] hands out an [`api::Api`] for each distinct identity of the configuration. Everything that can go
//! wrong becomes a [`Failure`](crate::tunnel::failure::Failure) in `errors`, and nothing is retried here.

pub mod agent;
pub mod api;
mod credentials;
pub mod errors;
mod expiry;
mod limit;
mod nodes;
mod preferences;
mod processes;
pub mod sdk;
pub mod sign;
pub mod target;
mod transport;

pub use credentials::ROLE_SESSION;
pub use preferences::DOCUMENT as PREFERENCES;
use tracing::Dispatch;
use tracing::instrument::WithSubscriber;

/// Keeps the SDK's own lines out of the log: at trace level it writes down whole answers, with the session's token and
/// temporary credentials in them. What matters of them is in our own lines and errors, which therefore are made outside.
fn silent<F: Future>(call: F) -> impl Future<Output = F::Output> {
    call.with_subscriber(Dispatch::none())
}
