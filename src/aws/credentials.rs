//! Credentials of one identity, kept until shortly before they expire.
//!
//! The SDK's providers read the shared configuration files once and keep what they read. A daemon that runs for months
//! must see what other programs put there (`aws sso login`, the agent of a hybrid node, a cron job), so every renewal
//! begins with a new provider.
//!
//! There is at most one renewal of an identity at a time, in a task of its own. Whoever needs credentials waits for it, as
//! long as patience lasts; one who goes away leaves it to the others.

mod origin;

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use aws_config::SdkConfig;
use aws_credential_types::Credentials;
#[cfg(test)]
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, future};
use aws_smithy_types::timeout::TimeoutConfig;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout_at};

pub use self::origin::ROLE_SESSION;
use self::origin::{Files, noted_expiry, source_of};
use super::api::{Expires, HeldCredentials};
use super::expiry::{self, Expiry};
use super::{errors, processes, silent};
use crate::config::Identity;
use crate::tunnel::failure::{Class, Failure};

/// Credentials are renewed when they have less than this left, or a third of their life if that is less.
const RENEW: Duration = Duration::from_secs(900);
/// Those without an expiry are read again at this age, and when the files have changed.
const READ_AGAIN: Duration = Duration::from_secs(300);
/// After a renewal that failed, the old ones are used this long before the next try, or a third of what they have left.
const AGAIN: Duration = Duration::from_secs(30);
/// A renewal that takes longer counts as failed for those who have valid ones yet: with less than `failover_after` an
/// interrupted session is resumed before another one is started for it …
const PATIENCE: Duration = Duration::from_secs(3);
/// … and after this for the others: before the call itself is overdue, so that it is said what was waited for.
const LAST_PATIENCE: Duration = Duration::from_secs(12);
/// After others were looked for in vain instead of refused ones: a `credential_process` may sign somebody in each time.
const IN_VAIN: Duration = Duration::from_secs(15);
/// One request of a provider (STS, SSO), connecting through a slow proxy included.
const REQUEST: Duration = Duration::from_secs(20);
/// A whole renewal. What a `credential_process` has not said by then it will not say.
const LOAD: Duration = Duration::from_secs(60);

/// The credentials of one identity, and the way to new ones.
#[derive(Clone, Debug)]
pub(super) struct Source(Arc<Inner>);

pub(super) struct Inner {
    identity: Identity,
    /// The settings of the calls that get credentials; its own credentials are not used.
    config: SdkConfig,
    /// Instead of the profile or the default chain.
    #[cfg(test)]
    base: Option<SharedCredentialsProvider>,
    /// Of the credentials that were got last.
    pub(super) expiry: watch::Sender<Option<Expiry>>,
    unknown_told: AtomicBool,
    state: Mutex<State>,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inner").field("identity", &self.identity).finish_non_exhaustive()
    }
}

#[derive(Default)]
struct State {
    held: Option<Held>,
    /// The last renewal, under way or not.
    renewal: Option<Renewal>,
    /// When others were last looked for instead of refused ones, and there were none.
    in_vain: Option<Instant>,
}

struct Held {
    credentials: Credentials,
    renew_at: Instant,
    files: Files,
}

#[derive(Clone)]
struct Renewal {
    began: Instant,
    answer: Shared<BoxFuture<'static, Result<Credentials, Failure>>>,
    task: AbortHandle,
}

impl Source {
    /// `config` carries region, HTTP client, timeouts and the like.
    pub(super) fn new(identity: Identity, config: SdkConfig) -> Self {
        let timeouts = config.timeout_config().map_or_else(TimeoutConfig::builder, TimeoutConfig::to_builder);
        let timeouts = timeouts.operation_timeout(REQUEST).build();
        let config = config.into_builder().timeout_config(timeouts).build();
        Self(Arc::new(Inner {
            identity,
            config,
            #[cfg(test)]
            base: None,
            expiry: watch::Sender::default(),
            unknown_told: AtomicBool::new(false),
            state: Mutex::default(),
        }))
    }

    /// Begins with the credentials of `base` instead of the profile's or the default chain's.
    #[cfg(test)]
    pub(super) fn with_base(
        identity: Identity,
        config: SdkConfig,
        base: impl ProvideCredentials + 'static,
    ) -> Self {
        let Self(mut inner) = Self::new(identity, config);
        Arc::get_mut(&mut inner).unwrap().base = Some(SharedCredentialsProvider::new(base));
        Self(inner)
    }

    pub(super) fn from_inner(inner: Arc<Inner>) -> Self {
        Self(inner)
    }

    /// Warns of credentials that expire, for as long as there are other users of this source.
    pub(super) fn look_after(&self) {
        tokio::spawn(expiry::watch(Arc::downgrade(&self.0)));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Credentials that are good for a while, or, where new ones cannot be had in time, for a shorter while yet.
    pub(super) async fn get(&self) -> Result<Credentials, Failure> {
        let (renewal, old) = {
            let mut state = self.state();
            let held = state.held.as_ref();
            if let Some(held) =
                held.filter(|held| Instant::now() < held.renew_at && held.files == Files::now())
            {
                return Ok(held.credentials.clone());
            }
            let old = held.map(|held| held.credentials.clone());
            (self.renewal(&mut state), old)
        };
        let left = |old: &Credentials| lifetime(old).unwrap_or(Duration::MAX);
        let failure = match &old {
            Some(old) if !left(old).is_zero() => renewal.until(renewal.began + PATIENCE.min(left(old) / 2)),
            _ => renewal.until(Instant::now() + LAST_PATIENCE),
        };
        let failure = match failure.await {
            Ok(credentials) => return Ok(credentials),
            Err(failure) => failure,
        };
        let Some(old) = old.filter(|old| !left(old).is_zero()) else { return Err(failure) };
        let mut state = self.state();
        if let Some(held) = state.held.as_mut().filter(|held| is_same(&held.credentials, &old)) {
            if held.renew_at <= Instant::now() {
                tracing::warn!(%failure, "credentials could not be renewed; the old ones are still valid");
            }
            held.renew_at = Instant::now() + AGAIN.min(left(&old) / 3);
            held.files = Files::now();
        }
        Ok(old)
    }

    /// New credentials, as far as there are any, whether or not the old ones are good.
    pub(super) async fn renew(&self) -> Result<Credentials, Failure> {
        let renewal = self.renewal(&mut self.state());
        renewal.until(Instant::now() + LAST_PATIENCE).await
    }

    /// Whether there are others than `refused`, which the service did not take. They are looked for if that was not done
    /// within `seldom`. What is held is kept if there are none.
    pub(super) async fn others_than(&self, refused: &Credentials, seldom: Duration) -> bool {
        {
            let state = self.state();
            if state.held.as_ref().is_some_and(|held| !is_same(&held.credentials, refused)) {
                return true;
            }
            if state.renewal.as_ref().is_some_and(|last| last.began.elapsed() < seldom)
                || state.in_vain.is_some_and(|at| at.elapsed() < IN_VAIN)
            {
                return false;
            }
        }
        let found = self.renew().await.is_ok_and(|new| !is_same(&new, refused));
        self.state().in_vain = (!found).then(Instant::now);
        found
    }

    /// The renewal that is under way, or a new one.
    fn renewal(&self, state: &mut State) -> Renewal {
        if let Some(renewal) = state.renewal.as_ref().filter(|renewal| !renewal.task.is_finished()) {
            return renewal.clone();
        }
        let source = self.clone();
        let task = tokio::spawn(async move {
            match processes::within(LOAD, Box::pin(source.load_and_keep())).await {
                Some(result) => result,
                None => Err(errors::overdue("credentials", LOAD)),
            }
        });
        let abort = task.abort_handle();
        let answer = task.map(|ended| {
            ended.unwrap_or_else(|error| Err(Failure::new(Class::Network, format!("credentials: {error}"))))
        });
        let renewal = Renewal { began: Instant::now(), answer: answer.boxed().shared(), task: abort };
        state.renewal.insert(renewal).clone()
    }

    async fn load_and_keep(&self) -> Result<Credentials, Failure> {
        let files = Files::now();
        let mut credentials = Box::pin(silent(self.load())).await?;
        if credentials.expiry().is_none() && credentials.session_token().is_some() {
            let noted = noted_expiry(&credentials, self.0.identity.profile.as_deref()).await;
            if noted.is_none() && !self.0.unknown_told.swap(true, Ordering::Relaxed) {
                expiry::tell_unknown(self.0.identity.profile.as_deref());
            }
            *credentials.expiry_mut() = noted;
        }
        let keep = lifetime(&credentials).map_or(READ_AGAIN, |left| left - RENEW.min(left / 3));
        let expiry = Expiry::of(&credentials, SystemTime::now());
        let held = Held { credentials: credentials.clone(), renew_at: Instant::now() + keep, files };
        self.state().held = Some(held);
        self.0.expiry.send_if_modified(|known| {
            // The same credentials, once more: when to look at them stays.
            let new = known.map(|known| known.at) != expiry.map(|expiry| expiry.at);
            if new {
                *known = expiry;
            }
            new
        });
        Ok(credentials)
    }

    /// When the credentials that were got last expire, if they say so.
    pub(super) fn expiry(&self) -> Option<SystemTime> {
        self.0.expiry.borrow().map(|expiry| expiry.at)
    }

    /// What may be told of the credentials that are held.
    pub(super) fn held(&self) -> Option<HeldCredentials> {
        let state = self.state();
        let credentials = &state.held.as_ref()?.credentials;
        let expires = match (credentials.expiry(), credentials.session_token()) {
            (Some(at), _) => Expires::At(at),
            (None, Some(_)) => Expires::Unknown,
            (None, None) => Expires::Never,
        };
        let access_key_id = credentials.access_key_id().to_owned();
        Some(HeldCredentials { access_key_id, source: source_of(credentials), expires })
    }

    /// Profile and role, for messages.
    pub(super) fn names(&self) -> (Option<&str>, Option<&str>) {
        (self.0.identity.profile.as_deref(), self.0.identity.role_arn.as_deref())
    }
}

impl Renewal {
    /// Its result, if it comes in time.
    async fn until(&self, limit: Instant) -> Result<Credentials, Failure> {
        match timeout_at(limit, self.answer.clone()).await {
            Ok(result) => result,
            Err(_) => Err(errors::overdue("credentials", self.began.elapsed())),
        }
    }
}

/// The SDK calls this for each request.
impl ProvideCredentials for Source {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(async { self.get().await.map_err(CredentialsError::provider_error) })
    }
}

fn is_same(one: &Credentials, other: &Credentials) -> bool {
    (one.access_key_id(), one.session_token()) == (other.access_key_id(), other.session_token())
}

/// Time until they expire; `None` if they do not say.
fn lifetime(credentials: &Credentials) -> Option<Duration> {
    credentials.expiry().map(|expiry| expiry.duration_since(SystemTime::now()).unwrap_or_default())
}

#[cfg(test)]
mod tests;
