//! Warns of credentials that are about to expire and cannot be renewed, early enough to do something about it. Calls are
//! made hours apart, and the next one would be the first to know.

use std::sync::Weak;
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_credential_types::credential_feature::AwsCredentialFeature as Feature;
use tracing::{error, info, warn};

use super::credentials::{Inner, Source};
use crate::tunnel::failure::Class;

/// Warned of so long before they expire; those that live less than three times as long, at a third of their life.
const WARN: Duration = Duration::from_secs(600);
/// Between looks at credentials that should be new and are not.
const LOOK: Duration = Duration::from_secs(60);

/// When credentials expire, and when that is to be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Expiry {
    pub(super) at: SystemTime,
    look_at: SystemTime,
}

impl Expiry {
    /// Of credentials that were got now.
    pub(super) fn of(credentials: &Credentials, now: SystemTime) -> Option<Self> {
        let at = credentials.expiry()?;
        let life = at.duration_since(now).unwrap_or_default();
        Some(Self { at, look_at: at - WARN.min(life / 3) })
    }
}

/// Looks after one identity's credentials until nobody uses them any more.
pub(super) async fn watch(credentials: Weak<Inner>) {
    let Some(mut current) = credentials.upgrade().map(|inner| inner.expiry.subscribe()) else { return };
    let mut warned = false;
    loop {
        let expiry = *current.borrow_and_update();
        let now = SystemTime::now();
        let Some(expiry) = expiry.filter(|expiry| now < expiry.at) else {
            // None, or too late: whoever makes a call looks for new ones and hears what is wrong.
            if current.changed().await.is_err() {
                return;
            }
            continue;
        };
        if let Ok(early) = expiry.look_at.duration_since(now)
            && !early.is_zero()
        {
            // In pieces: the system's clock may be set, or the host have slept.
            tokio::select! {
                () = tokio::time::sleep(early.min(LOOK)) => {}
                changed = current.changed() => if changed.is_err() { return },
            }
            continue;
        }
        let Some(source) = credentials.upgrade().map(Source::from_inner) else { return };
        let look = look(&source, expiry, &mut warned).await;
        drop(source);
        tokio::time::sleep(look.min(LOOK).max(Duration::from_millis(50))).await;
    }
}

/// Tries to renew credentials that expire soon, and tells once if that cannot be done. Returns when to look again.
async fn look(source: &Source, expiry: Expiry, warned: &mut bool) -> Duration {
    let left = expiry.at.duration_since(SystemTime::now()).unwrap_or_default();
    let renewed = source.renew().await;
    let reason = match &renewed {
        Ok(credentials)
            if credentials.expiry().is_none_or(|at| at > expiry.at + Duration::from_millis(1)) =>
        {
            if std::mem::take(warned) {
                let (profile, role) = source.names();
                info!(profile, role, event = "credentials_renewed", "the credentials were renewed");
            }
            return Duration::ZERO;
        }
        // Whoever issues them does so by itself, at least five minutes before.
        Ok(credentials) if renews_itself(credentials) && left > WARN / 3 => return left - WARN / 3,
        Ok(credentials) => same_again(credentials).to_owned(),
        Err(failure) if failure.class == Class::Network && left > WARN / 2 => return left / 10,
        Err(failure) => failure.text.clone(),
    };
    if !std::mem::replace(warned, true) {
        let (profile, role) = source.names();
        let at = humantime::format_rfc3339_seconds(expiry.at);
        let minutes = left.as_secs().div_ceil(60);
        error!(
            profile,
            role,
            event = "credentials_expiring",
            expires = %at,
            reason,
            "the credentials expire in {minutes} min, at {at}, and cannot be renewed: {reason}; from then on no session \
             can be started or resumed"
        );
    }
    left / 10
}

/// Says of temporary keys without an expiry that nobody will be warned of it.
pub(super) fn tell_unknown(profile: Option<&str>) {
    warn!(
        profile,
        event = "credentials_expiry_unknown",
        "the credentials are temporary ones that do not say when they expire: no warning will come before. Put \
         x_security_token_expires = TIME beside them in the profile, or use a role, aws sso login or a \
         credential_process, which are renewed"
    );
}

fn has(credentials: &Credentials, features: &[Feature]) -> bool {
    let of = credentials.get_property::<Vec<Feature>>();
    of.is_some_and(|of| of.iter().any(|feature| features.contains(feature)))
}

fn renews_itself(credentials: &Credentials) -> bool {
    has(credentials, &[Feature::CredentialsImds, Feature::CredentialsHttp])
}

/// Why a provider that was asked for new credentials gave the old ones, and what to do.
fn same_again(credentials: &Credentials) -> &'static str {
    if has(credentials, &[Feature::CredentialsProcess]) {
        "the credential_process gives the same ones again; renew what it reads them from"
    } else if has(credentials, &[Feature::CredentialsEnvVars]) {
        "they are in the daemon's environment, which nobody can change while it runs; use a profile or a role"
    } else if has(credentials, &[Feature::CredentialsSso]) {
        "the SSO session gives the same ones again; run `aws sso login` as the daemon's user"
    } else if renews_itself(credentials) {
        "the host's credential service gives the same ones again; look at the instance's or task's role"
    } else {
        "they stand in a file; put new ones into the profile, which the next call uses"
    }
}
