//! Where credentials come from: the SDK's providers, a role on top of them, and what marks and files tell of both.

use std::borrow::Cow;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::SystemTime;

use aws_config::default_provider::credentials::DefaultCredentialsChain;
use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_config::sts::AssumeRoleProvider;
use aws_credential_types::Credentials;
use aws_credential_types::credential_feature::AwsCredentialFeature;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use aws_smithy_async::rt::sleep::TokioSleep;
use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;
use aws_types::os_shim_internal::{Env, Fs};

use super::{Inner, Source};
use crate::aws::{errors, silent, target};
use crate::tunnel::failure::Failure;

/// What the name of an assumed role's session begins with; the host's name follows.
pub const ROLE_SESSION: &str = "autossm-";

impl Source {
    pub(super) async fn load(&self) -> Result<Credentials, Failure> {
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

/// Shown in CloudTrail as the assumed role's user: 2 to 64 of `[\w+=,.@-]`.
fn role_session_name() -> String {
    let host = target::host_name();
    let allowed = |c: &char| c.is_ascii_alphanumeric() || "+=,.@-_".contains(*c);
    format!("{ROLE_SESSION}{host}").chars().filter(allowed).take(64).collect()
}

/// What the shared configuration files look like from outside: other programs write new credentials into them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Files([Option<(SystemTime, u64, u64)>; 2]);

impl Files {
    pub(super) fn now() -> Self {
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
pub(super) async fn noted_expiry(credentials: &Credentials, profile: Option<&str>) -> Option<SystemTime> {
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

/// Where credentials come from, by the marks that the SDK's providers leave on them; the last step where there were several.
pub(super) fn source_of(credentials: &Credentials) -> Option<&'static str> {
    let marks = credentials.get_property::<Vec<AwsCredentialFeature>>()?;
    // A role is assumed with something else; a section of the shared files leads to a process or to SSO.
    let known = [
        (AwsCredentialFeature::CredentialsStsAssumeRole, "role"),
        (AwsCredentialFeature::CredentialsStsAssumeRoleWebId, "web_identity"),
        (AwsCredentialFeature::CredentialsProcess, "process"),
        (AwsCredentialFeature::CredentialsSso, "sso"),
        (AwsCredentialFeature::CredentialsImds, "instance"),
        (AwsCredentialFeature::CredentialsHttp, "container"),
        (AwsCredentialFeature::CredentialsEnvVars, "environment"),
        (AwsCredentialFeature::CredentialsProfile, "profile"),
    ];
    known.into_iter().find_map(|(mark, word)| marks.contains(&mark).then_some(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_role_session_name_is_legal() {
        let name = role_session_name();
        assert!(name.starts_with("autossm-") && name.len() <= 64, "{name}");
    }
}
