//! What the daemon's environment says of the way out, in the variables that AWS's own tools read.

use std::path::{Path, PathBuf};

use secrecy::SecretString;

/// `HTTPS_PROXY`, `NO_PROXY` and `AWS_CA_BUNDLE`. The first two may be written in small letters; the large ones come first.
///
/// `HTTP_PROXY` and `ALL_PROXY` are not read: nothing is sent without TLS but on this host and to its metadata service, and
/// AWS's tools do not read the latter either.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    /// The variable's name, and the proxy's URL, which may hold a password.
    pub(super) proxy: Option<(&'static str, SecretString)>,
    pub(super) no_proxy: String,
    pub(super) ca_bundle: Option<PathBuf>,
}

impl Environment {
    /// The process's own.
    pub fn of_process() -> Self {
        Self::read(|name| std::env::var(name).ok())
    }

    /// From anywhere. An empty variable counts as none.
    pub fn read(get: impl Fn(&str) -> Option<String>) -> Self {
        let get = |name: &'static str| {
            get(name).filter(|value| !value.trim().is_empty()).map(|value| (name, value.trim().to_owned()))
        };
        let proxy = get("HTTPS_PROXY").or_else(|| get("https_proxy"));
        let no_proxy = get("NO_PROXY").or_else(|| get("no_proxy"));
        Self {
            proxy: proxy.map(|(name, url)| (name, url.into())),
            no_proxy: no_proxy.map(|(_, hosts)| hosts).unwrap_or_default(),
            ca_bundle: get("AWS_CA_BUNDLE").map(|(_, path)| path.into()),
        }
    }

    /// The file that `AWS_CA_BUNDLE` names.
    pub fn ca_bundle(&self) -> Option<&Path> {
        self.ca_bundle.as_deref()
    }
}
