//! Empty variables of the environment.
//!
//! They count as unset, as AWS's own tools have it: `AWS_REGION=` in a unit's `EnvironmentFile=` is how a variable is
//! switched off. The AWS SDK takes some of them for a value, so do the libraries for TLS, and none of them can be told
//! otherwise; and to remove a variable from a process's own environment is unsafe. So the program is run again without them,
//! as the same process, before it has begun with anything.

use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::{env, io};

/// What is read, by this program or by the libraries beneath it: whatever begins so …
const PREFIXES: [&str; 3] = ["AWS_", "AUTOSSM_", "SSL_CERT_"];
/// … and these. `TZ` is none of them: an empty one means UTC.
const NAMES: [&str; 10] = [
    "HTTPS_PROXY",
    "https_proxy",
    "NO_PROXY",
    "no_proxy",
    // A second name of AWS_SECRET_ACCESS_KEY, to the SDK.
    "SECRET_ACCESS_KEY",
    "RUST_LOG",
    "HOME",
    "PATH",
    "TMPDIR",
    "XDG_RUNTIME_DIR",
];

/// Runs the program again without its empty variables, if it has any. Returns only if there is nothing to do.
///
/// # Errors
/// The program cannot be run again.
pub fn without_empty() -> io::Result<()> {
    let empty: Vec<_> = env::vars_os().filter(|(name, value)| counts_as_unset(name, value)).collect();
    if empty.is_empty() {
        return Ok(());
    }
    let mut arguments = env::args_os();
    let own_name = arguments.next();
    let arguments: Vec<_> = arguments.collect();
    let again = |program: PathBuf| {
        let mut command = Command::new(program);
        command.arg0(own_name.as_deref().unwrap_or(OsStr::new("autossm"))).args(&arguments);
        for (name, _) in &empty {
            command.env_remove(name);
        }
        command.exec()
    };
    // By its path, from which the process has its name; or, where that was replaced meanwhile, as what it is.
    let error = env::current_exe().map(again);
    Err(error.map_or_else(|error| error, |_| again(PathBuf::from("/proc/self/exe"))))
}

fn counts_as_unset(name: &OsString, value: &OsString) -> bool {
    let (Some(name), Some(value)) = (name.to_str(), value.to_str()) else { return false };
    let known = NAMES.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix));
    known && value.trim().is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_variables_that_are_read_count_as_unset() {
        let unset = |name: &str, value: &str| counts_as_unset(&name.into(), &value.into());
        for name in [
            "AWS_REGION",
            "AWS_DEFAULT_REGION",
            "AWS_PROFILE",
            "AWS_CONFIG_FILE",
            "AWS_SHARED_CREDENTIALS_FILE",
            "AWS_ACCESS_KEY_ID",
            "AWS_SECRET_ACCESS_KEY",
            "SECRET_ACCESS_KEY",
            "AWS_SESSION_TOKEN",
            "AWS_CREDENTIAL_EXPIRATION",
            "AWS_ACCOUNT_ID",
            "AWS_ROLE_ARN",
            "AWS_ROLE_SESSION_NAME",
            "AWS_WEB_IDENTITY_TOKEN_FILE",
            "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
            "AWS_CONTAINER_CREDENTIALS_FULL_URI",
            "AWS_CONTAINER_AUTHORIZATION_TOKEN",
            "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
            "AWS_EC2_METADATA_DISABLED",
            "AWS_EC2_METADATA_SERVICE_ENDPOINT",
            "AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE",
            "AWS_ENDPOINT_URL",
            "AWS_ENDPOINT_URL_SSM",
            "AWS_ENDPOINT_URL_STS",
            "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS",
            "AWS_USE_FIPS_ENDPOINT",
            "AWS_USE_DUALSTACK_ENDPOINT",
            "AWS_CA_BUNDLE",
            "SSL_CERT_FILE",
            "SSL_CERT_DIR",
            "HTTPS_PROXY",
            "https_proxy",
            "NO_PROXY",
            "no_proxy",
            "AUTOSSM_CONFIG",
            "AUTOSSM_WEB_LISTEN",
            "RUST_LOG",
            "HOME",
            "PATH",
            "TMPDIR",
            "XDG_RUNTIME_DIR",
        ] {
            assert!(unset(name, "") && unset(name, " \t") && !unset(name, "x"), "{name}");
        }
        // UTC, and what is nothing to us but may be to a hook.
        for name in ["TZ", "OF_A_HOOK", "HTTP_PROXY", "LANG"] {
            assert!(!unset(name, ""), "{name}");
        }
    }
}
