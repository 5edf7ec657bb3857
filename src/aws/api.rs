//! What autossm needs of the Session Manager API.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use secrecy::SecretString;

use crate::tunnel::failure::Failure;
use crate::tunnel::rotation::Limit;

/// The calls that keep a tunnel up, and what a signature needs. One value stands for one identity: a region,
/// credentials and an endpoint.
///
/// Every call ends within 20 s, and is made once: retrying is the tunnel's business.
pub trait Api: Send + Sync {
    /// Starts a session. Waits for its place in the process-wide limit on StartSession first.
    fn start_session<'a>(
        &'a self,
        request: &'a StartRequest,
    ) -> BoxFuture<'a, Result<StartedSession, Failure>>;

    /// Asks for a new token and stream URL for a session whose data channel was closed.
    fn resume_session<'a>(&'a self, session_id: &'a str) -> BoxFuture<'a, Result<Resumption, Failure>>;

    /// Ends a session. A session that has ended already is a success.
    fn terminate_session<'a>(&'a self, session_id: &'a str) -> BoxFuture<'a, Result<(), Failure>>;

    /// The managed nodes that carry a tag and are online, by id; in an answer of the service that is at most `max_age`
    /// old.
    fn online_nodes<'a>(
        &'a self,
        tag: &'a str,
        value: &'a str,
        max_age: Duration,
    ) -> BoxFuture<'a, Result<Vec<Node>, Failure>>;

    /// What [`Self::online_nodes`] found last, however long ago.
    fn last_nodes(&self, tag: &str, value: &str) -> Vec<Node>;

    /// The account's maximum session duration in this region, from the Session Manager preferences
    /// (`inputs.maxSessionDuration` of the document `SSM-SessionManagerRunShell`, 1 to 1440 minutes). That it cannot be read
    /// is no failure: few are allowed to. The answer is kept for an hour, however many ask.
    ///
    /// <https://docs.aws.amazon.com/systems-manager/latest/userguide/session-preferences-max-timeout.html>
    fn maximum_session_duration(&self) -> BoxFuture<'_, Limit>;

    /// Credentials for a signature made now, refreshed if they are about to expire.
    fn credentials(&self) -> BoxFuture<'_, Result<aws_credential_types::Credentials, Failure>>;

    /// The credentials that are held; `None` while there are none (yet). Asks nobody.
    fn held_credentials(&self) -> Option<HeldCredentials>;

    /// The region that the calls go to.
    fn region(&self) -> &str;

    /// AWS's own address of the API for this region, whatever `endpoint_url` says: with the partition's suffix, and FIPS
    /// or dual-stack where the environment or profile asks for it.
    fn endpoint(&self) -> &str;

    /// Which of AWS's names are called by, where the environment or the profile asks for others than the usual ones.
    fn names(&self) -> Names {
        Names::default()
    }
}

/// Which of a service's names is called by: <https://docs.aws.amazon.com/sdkref/latest/guide/feature-endpoints.html>.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Those of validated cryptography.
    pub fips: bool,
    /// Those with IPv6 addresses beside the others.
    pub dual_stack: bool,
}

/// What may be told of credentials: no secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldCredentials {
    /// The access key's id.
    pub access_key_id: String,
    /// Where they come from, as far as that is known.
    pub source: Option<&'static str>,
    /// Until when they are good.
    pub expires: Expires,
}

/// Until when credentials are good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expires {
    /// Keys of a user.
    Never,
    /// Temporary ones that do not say.
    Unknown,
    /// Until then.
    At(SystemTime),
}

/// A managed node that is online.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// `i-…` or `mi-…`.
    pub id: String,
    /// Its SSM agent's, for example `3.3.2299.0`.
    pub agent_version: Option<String>,
}

/// What a session is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartRequest {
    /// `i-…`, `mi-…` or `ecs:…`.
    pub target: String,
    /// The session document, for example `AWS-StartPortForwardingSessionToRemoteHost`.
    pub document: String,
    /// The document's parameters.
    pub parameters: BTreeMap<String, Vec<String>>,
    /// Shown in the account's session history; at most 256 characters.
    pub reason: String,
}

/// A session as StartSession returned it.
#[derive(Clone, Debug)]
pub struct StartedSession {
    /// The session's id, as shown in the console and in CloudTrail.
    pub session_id: String,
    /// Opens the data channel once.
    pub token: SecretString,
    /// Where the data channel is opened: `wss://ssmmessages.REGION.amazonaws.com/v1/data-channel/…`.
    pub stream_url: String,
}

/// What ResumeSession answered.
#[derive(Clone, Debug)]
pub enum Resumption {
    /// The session lives; its data channel can be opened again with these.
    Resumed {
        /// Opens the data channel once.
        token: SecretString,
        /// The address to use from now on: the `cell-number` in an older one expires.
        stream_url: String,
    },
    /// No token: the session is gone for good.
    Gone,
}
