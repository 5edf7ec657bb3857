//! Credentials of one identity, kept until shortly before they expire.
//!
//! The SDK's providers read the shared configuration files once and keep what they read. A daemon that runs for months
//! must see what other programs put there (`aws sso login`, the agent of a hybrid node, a cron job), so every renewal
//! begins with a new provider.

use std::borrow::Cow;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use aws_config::SdkConfig;
use aws_config::default_provider::credentials::DefaultCredentialsChain;
use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_config::sts::AssumeRoleProvider;
use aws_credential_types::Credentials;
use aws_credential_types::credential_feature::AwsCredentialFeature;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider, future};
use aws_smithy_async::rt::sleep::TokioSleep;
use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;
use aws_types::os_shim_internal::{Env, Fs};
use tokio::sync::{Mutex, watch};

use super::expiry::{self, Expiry};
use super::{errors, silent};
use crate::config::Identity;
use crate::tunnel::failure::Failure;

/// Credentials are renewed when they have less than this left, or a third of their life if that is less.
const RENEW: Duration = Duration::from_secs(900);
/// Those without an expiry are read again at this age, and when the files have changed.
const READ_AGAIN: Duration = Duration::from_secs(300);
/// After a renewal that failed, the old ones are used this long before the next try.
const AGAIN: Duration = Duration::from_secs(30);

/// The credentials of one identity, and the way to new ones.
#[derive(Clone, Debug)]
pub(super) struct Source(Arc<Inner>);

#[derive(Debug)]
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
    /// Locked during a renewal: whoever comes meanwhile waits for its result instead of starting another.
    held: Mutex<Option<Held>>,
}

#[derive(Debug)]
struct Held {
    credentials: Credentials,
    renew_at: Instant,
    files: Files,
}

impl Source {
    /// `config` carries region, HTTP client, timeouts and the like.
    pub(super) fn new(identity: Identity, config: SdkConfig) -> Self {
        Self(Arc::new(Inner {
            identity,
            config,
            #[cfg(test)]
            base: None,
            expiry: watch::Sender::default(),
            unknown_told: AtomicBool::new(false),
            held: Mutex::new(None),
        }))
    }

    /// Begins with the credentials of `base` instead of the profile's or the default chain's.
    #[cfg(test)]
    pub(super) fn with_base(
        identity: Identity,
        config: SdkConfig,
        base: impl ProvideCredentials + 'static,
    ) -> Self {
        let base = Some(SharedCredentialsProvider::new(base));
        Self(Arc::new(Inner {
            identity,
            config,
            base,
            expiry: watch::Sender::default(),
            unknown_told: AtomicBool::new(false),
            held: Mutex::new(None),
        }))
    }

    pub(super) fn from_inner(inner: Arc<Inner>) -> Self {
        Self(inner)
    }

    /// Warns of credentials that expire, for as long as there are other users of this source.
    pub(super) fn look_after(&self) {
        tokio::spawn(expiry::watch(Arc::downgrade(&self.0)));
    }

    /// Credentials that are good for a while, or, where new ones cannot be had, for a shorter while yet.
    pub(super) async fn get(&self) -> Result<Credentials, Failure> {
        let mut held = self.0.held.lock().await;
        if let Some(held) = held.as_ref()
            && Instant::now() < held.renew_at
            && held.files == Files::now()
        {
            return Ok(held.credentials.clone());
        }
        match self.load_into(&mut held).await {
            Ok(credentials) => Ok(credentials),
            Err(failure) => {
                let old =
                    held.as_mut().filter(|old| lifetime(&old.credentials).is_none_or(|left| left > AGAIN));
                let Some(old) = old else { return Err(failure) };
                tracing::warn!(%failure, "credentials could not be renewed; the old ones are still valid");
                old.renew_at = Instant::now() + AGAIN;
                old.files = Files::now();
                Ok(old.credentials.clone())
            }
        }
    }

    /// New credentials, as far as there are any, whether or not the old ones are good.
    pub(super) async fn renew(&self) -> Result<Credentials, Failure> {
        let mut held = self.0.held.lock().await;
        self.load_into(&mut held).await
    }

    async fn load_into(&self, held: &mut Option<Held>) -> Result<Credentials, Failure> {
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
        self.0.expiry.send_if_modified(|known| {
            // The same credentials, once more: when to look at them stays.
            let new = known.map(|known| known.at) != expiry.map(|expiry| expiry.at);
            if new {
                *known = expiry;
            }
            new
        });
        *held = Some(Held { credentials: credentials.clone(), renew_at: Instant::now() + keep, files });
        Ok(credentials)
    }

    /// When the credentials that were got last expire, if they say so.
    pub(super) fn expiry(&self) -> Option<SystemTime> {
        self.0.expiry.borrow().map(|expiry| expiry.at)
    }

    /// Profile and role, for messages.
    pub(super) fn names(&self) -> (Option<&str>, Option<&str>) {
        (self.0.identity.profile.as_deref(), self.0.identity.role_arn.as_deref())
    }

    /// Forgets credentials that the service refused, so that the next call looks for newer ones.
    pub(super) async fn forget(&self) {
        *self.0.held.lock().await = None;
    }

    async fn load(&self) -> Result<Credentials, Failure> {
        let Inner { identity, config, .. } = &*self.0;
        let base = self.base().await;
        let loaded = match &identity.role_arn {
            None => base.provide_credentials().await,
            Some(role) => {
                let mut builder =
                    AssumeRoleProvider::builder(role).session_name(role_session_name()).configure(config);
                if let Some(id) = &identity.external_id {
                    builder = builder.external_id(id);
                }
                builder.build_from_provider(base).await.provide_credentials().await
            }
        };
        loaded.map_err(|e| errors::no_credentials(&e, identity.profile.as_deref()))
    }

    /// The provider before a role is assumed. A profile that the configuration names goes before the environment, as it
    /// does with `aws --profile`; the SDK's default chain would look at the environment first.
    async fn base(&self) -> SharedCredentialsProvider {
        #[cfg(test)]
        if let Some(base) = &self.0.base {
            return base.clone();
        }
        let config = &self.0.config;
        let mut provider = ProviderConfig::empty()
            .with_region(config.region().cloned())
            .with_use_fips(config.use_fips())
            .with_use_dual_stack(config.use_dual_stack())
            .with_behavior_version(config.behavior_version())
            .with_sleep_impl(TokioSleep::new());
        if let Some(client) = config.http_client() {
            provider = provider.with_http_client(client);
        }
        if let Some(retry) = config.retry_config() {
            provider = provider.with_retry_config(retry.clone());
        }
        if let Some(timeout) = config.timeout_config() {
            provider = provider.with_timeout_config(timeout.clone());
        }
        match &self.0.identity.profile {
            Some(name) => SharedCredentialsProvider::new(
                ProfileFileCredentialsProvider::builder().profile_name(name).configure(&provider).build(),
            ),
            None => SharedCredentialsProvider::new(
                DefaultCredentialsChain::builder()
                    .configure(provider)
                    .region(config.region().cloned())
                    .build()
                    .await,
            ),
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

/// What the name of an assumed role's session begins with; the host's name follows.
pub const ROLE_SESSION: &str = "autossm-";

/// What the shared configuration files look like from outside: other programs write new credentials into them.
#[derive(Debug, Default, PartialEq, Eq)]
struct Files([Option<(SystemTime, u64, u64)>; 2]);

impl Files {
    fn now() -> Self {
        let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
        let look = |variable: &str, usual: &str| {
            let path =
                std::env::var_os(variable).map_or_else(|| home.join(".aws").join(usual), PathBuf::from);
            let seen = std::fs::metadata(path).ok()?;
            Some((seen.modified().ok()?, seen.len(), seen.ino()))
        };
        Self([look("AWS_CONFIG_FILE", "config"), look("AWS_SHARED_CREDENTIALS_FILE", "credentials")])
    }
}

/// Temporary keys have no expiry of their own where they were written down. Tools that do so note it beside them, in RFC
/// 3339: saml2aws as `x_security_token_expires`, others as `aws_expiration` or `expiration`, and `aws configure
/// export-credentials` in the environment.
async fn noted_expiry(credentials: &Credentials, profile: Option<&str>) -> Option<SystemTime> {
    let features = credentials.get_property::<Vec<AwsCredentialFeature>>();
    if features.is_some_and(|of| of.contains(&AwsCredentialFeature::CredentialsEnvVars)) {
        return rfc3339(&std::env::var("AWS_CREDENTIAL_EXPIRATION").ok()?);
    }
    let profile = profile.map(|name| Cow::Owned(name.to_owned()));
    let files = silent(aws_config::profile::load(&Fs::real(), &Env::real(), &Default::default(), profile))
        .await
        .ok()?;
    let keys = ["x_security_token_expires", "aws_expiration", "expiration", "aws_session_expiration"];
    keys.iter().find_map(|key| rfc3339(files.get(key)?))
}

/// Any offset from UTC is understood.
fn rfc3339(text: &str) -> Option<SystemTime> {
    DateTime::from_str(text.trim(), Format::DateTimeWithOffset).ok()?.try_into().ok()
}

/// Shown in CloudTrail as the assumed role's user: 2 to 64 of `[\w+=,.@-]`.
fn role_session_name() -> String {
    let host = super::target::host_name();
    let allowed = |c: &char| c.is_ascii_alphanumeric() || "+=,.@-_".contains(*c);
    format!("{ROLE_SESSION}{host}").chars().filter(allowed).take(64).collect()
}

/// Time until they expire; `None` if they do not say.
fn lifetime(credentials: &Credentials) -> Option<Duration> {
    credentials.expiry().map(|expiry| expiry.duration_since(SystemTime::now()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;
    use crate::tunnel::failure::Class;

    /// Credentials number 1, 2, 3 …, each valid for `lives`; from number `until` on there are none.
    #[derive(Debug)]
    struct Numbered {
        lives: Option<Duration>,
        until: u32,
        given: AtomicU32,
    }

    impl ProvideCredentials for Numbered {
        fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
        where
            Self: 'a,
        {
            let number = self.given.fetch_add(1, Ordering::Relaxed) + 1;
            future::ProvideCredentials::ready(if number >= self.until {
                Err(CredentialsError::not_loaded("none left"))
            } else {
                let expiry = self.lives.map(|lives| SystemTime::now() + lives);
                Ok(Credentials::new(format!("AKID{number}"), "secret", None, expiry, "test"))
            })
        }
    }

    fn source(lives: Option<u64>, until: u32) -> Source {
        let nobody = Identity {
            region: None,
            profile: None,
            role_arn: None,
            external_id: None,
            endpoint_url: None,
            ca_file: None,
        };
        let numbered = Numbered { lives: lives.map(Duration::from_secs), until, given: AtomicU32::new(0) };
        Source::with_base(nobody, SdkConfig::builder().build(), numbered)
    }

    async fn key(source: &Source) -> String {
        source.get().await.unwrap().access_key_id().to_owned()
    }

    #[tokio::test]
    async fn are_kept_until_shortly_before_they_expire() {
        for lives in [None, Some(3600)] {
            let source = source(lives, 9);
            assert_eq!((&*key(&source).await, &*key(&source).await), ("AKID1", "AKID1"), "{lives:?}");
        }
        let over = source(Some(0), 9);
        assert_eq!((&*key(&over).await, &*key(&over).await), ("AKID1", "AKID2"));
        // A third of a short life, and a quarter of an hour of a long one.
        for (lives, kept) in [(900, 600), (3600, 2700), (43_200, 42_300)] {
            let source = source(Some(lives), 9);
            key(&source).await;
            let held = source.0.held.lock().await;
            let left = held.as_ref().unwrap().renew_at - Instant::now();
            assert!(left.as_secs().abs_diff(kept) <= 1, "{lives}: {left:?}");
        }
    }

    #[tokio::test]
    async fn old_ones_serve_while_new_ones_cannot_be_had() {
        let valid = source(Some(200), 2);
        assert_eq!(&*key(&valid).await, "AKID1");
        valid.0.held.lock().await.as_mut().unwrap().renew_at = Instant::now();
        assert_eq!(&*key(&valid).await, "AKID1");
        let expiring = source(Some(0), 2);
        assert_eq!(&*key(&expiring).await, "AKID1");
        assert_eq!(expiring.get().await.unwrap_err().class, Class::Access);
    }

    #[tokio::test]
    async fn refused_ones_are_forgotten() {
        let source = source(None, 9);
        assert_eq!(&*key(&source).await, "AKID1");
        source.forget().await;
        assert_eq!(&*key(&source).await, "AKID2");
    }

    #[test]
    fn the_role_session_name_is_legal() {
        let name = role_session_name();
        assert!(name.starts_with("autossm-") && name.len() <= 64, "{name}");
    }
}
