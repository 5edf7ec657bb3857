//! Whom connections trust: the system's certificate authorities, or those of `AWS_CA_BUNDLE`; and a tunnel's `ca_file`.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::Resumption;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

use super::Environment;
use crate::tunnel::failure::{Class, Failure};

/// The API's host, the data channel's, and one to spare.
const SESSIONS: usize = 4;

/// Whom to trust. Files are read when TLS is first needed, and again when they have changed: a host's authorities are
/// updated, and those of inspecting proxies rotated, while the daemon runs for months.
pub(super) struct Trust {
    source: Source,
    held: Mutex<Option<Held>>,
}

struct Held {
    config: Arc<ClientConfig>,
    system: Option<Arc<RootCertStore>>,
    file: Option<Seen>,
}

enum Source {
    System,
    /// As for AWS's own tools: instead of the system's.
    Bundle(PathBuf),
    /// Beside the system's. What a tunnel says goes before what the environment says.
    SystemAnd(PathBuf),
}

impl Trust {
    pub(super) fn new(environment: &Environment, ca_file: Option<&Path>) -> Self {
        let source = match (ca_file, &environment.ca_bundle) {
            (Some(path), _) => Source::SystemAnd(path.to_owned()),
            (None, Some(path)) => Source::Bundle(path.clone()),
            (None, None) => Source::System,
        };
        Self { source, held: Mutex::default() }
    }

    /// For a handshake. A file that cannot be used is read again the next time; where there was a good one, that is used
    /// meanwhile.
    pub(super) fn config(&self) -> Result<Arc<ClientConfig>, Failure> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let (with_system, named) = match &self.source {
            Source::System => (true, None),
            Source::Bundle(path) => (false, Some(("AWS_CA_BUNDLE", path))),
            Source::SystemAnd(path) => (true, Some(("ca_file", path))),
        };
        let system = with_system.then(system);
        // Before it is read: what is written meanwhile is seen the next time.
        let file = named.and_then(|(_, path)| Seen::now(path));
        if let Some(held) = &*held
            && held.file == file
            && held.system.as_ref().map(Arc::as_ptr) == system.as_ref().map(Arc::as_ptr)
        {
            return Ok(held.config.clone());
        }
        let mut roots = system.clone().unwrap_or_else(|| Arc::new(RootCertStore::empty()));
        if let Some((name, path)) = named
            && let Err(failure) = add(Arc::make_mut(&mut roots), name, path)
        {
            let Some(held) = &mut *held else { return Err(failure) };
            tracing::warn!(%failure, "certificate authorities cannot be read anew; the old ones are still trusted");
            (held.file, held.system) = (file, system);
            return Ok(held.config.clone());
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| Failure::new(Class::NeedsChange, format!("TLS cannot be set up: {e}")))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.resumption = Resumption::in_memory_sessions(SESSIONS);
        Ok(held.insert(Held { config: Arc::new(config), system, file }).config.clone())
    }
}

/// For TLS with a destination: the system's authorities, and `ca_file` beside them. The environment's bundle is about the
/// way to AWS.
///
/// # Errors
/// As [`Network::new`](super::Network::new).
pub fn destination_tls(ca_file: Option<&Path>) -> Result<Arc<ClientConfig>, Failure> {
    /// As many as there are files in the configuration.
    static KNOWN: Mutex<Option<HashMap<Option<PathBuf>, Arc<Trust>>>> = Mutex::new(None);
    let trust = {
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        let trusts = known.get_or_insert_default().entry(ca_file.map(Path::to_owned));
        trusts.or_insert_with(|| Arc::new(Trust::new(&Environment::default(), ca_file))).clone()
    };
    trust.config()
}

/// A file or folder from outside: when it was changed last, in whatever way, its length and its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    changed: (i64, i64),
    length: u64,
    number: u64,
}

impl Seen {
    fn now(path: &Path) -> Option<Self> {
        let seen = std::fs::metadata(path).ok()?;
        Some(Self { changed: (seen.ctime(), seen.ctime_nsec()), length: seen.len(), number: seen.ino() })
    }
}

/// The system's authorities, for the whole process. A host without any is looked at again each time: they may be about to be
/// written.
fn system() -> Arc<RootCertStore> {
    type Known = (Vec<Option<Seen>>, Arc<RootCertStore>);
    static SYSTEM: Mutex<Option<Known>> = Mutex::new(None);
    let mut known = SYSTEM.lock().unwrap_or_else(PoisonError::into_inner);
    let seen: Vec<_> = system_places().iter().map(|path| Seen::now(path)).collect();
    if let Some((then, roots)) = &*known
        && *then == seen
    {
        return roots.clone();
    }
    let mut roots = RootCertStore::empty();
    // A host without authorities, or with a broken one among many, shows when a certificate is verified.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    match &*known {
        _ if !roots.is_empty() => known.insert((seen, Arc::new(roots))).1.clone(),
        Some((_, old)) => old.clone(),
        None => Arc::new(roots),
    }
}

/// Where rustls-native-certs reads them.
fn system_places() -> Vec<PathBuf> {
    let folders = std::env::var_os("SSL_CERT_DIR").unwrap_or_default();
    let found = openssl_probe::probe();
    std::env::split_paths(&folders).chain(found.cert_file).chain(found.cert_dir).collect()
}

/// Adds every certificate of a PEM file.
fn add(roots: &mut RootCertStore, name: &str, path: &Path) -> Result<(), Failure> {
    let wrong = |what: String| Failure::new(Class::NeedsChange, format!("{name} {}: {what}", path.display()));
    let pem = std::fs::read(path).map_err(|e| wrong(format!("cannot be read: {e}")))?;
    let before = roots.len();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|e| wrong(format!("is not PEM: {e}")))?;
        roots.add(certificate).map_err(|e| wrong(format!("holds a certificate that cannot be used: {e}")))?;
    }
    if roots.len() == before {
        return Err(wrong("holds no certificate".to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::Network;

    fn environment(bundle: &Path) -> Environment {
        Environment { ca_bundle: Some(bundle.to_owned()), ..Environment::default() }
    }

    fn authority() -> String {
        rcgen::generate_simple_self_signed(vec!["ca.internal".to_owned()]).unwrap().cert.pem()
    }

    #[test]
    fn a_file_is_read_again_when_it_has_changed_and_a_broken_one_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pem");
        let replace = |content: &str| {
            std::fs::write(dir.path().join("new"), content).unwrap();
            std::fs::rename(dir.path().join("new"), &path).unwrap();
        };
        replace(&authority());
        for trust in [Trust::new(&environment(&path), None), Trust::new(&Environment::default(), Some(&path))]
        {
            let first = trust.config().unwrap();
            assert!(Arc::ptr_eq(&first, &trust.config().unwrap()), "nothing has changed");
            replace(&(authority() + &authority()));
            let second = trust.config().unwrap();
            assert!(!Arc::ptr_eq(&first, &second), "rotated");
            replace("");
            assert!(Arc::ptr_eq(&second, &trust.config().unwrap()), "in the middle of being written");
            std::fs::remove_file(&path).unwrap();
            assert!(Arc::ptr_eq(&second, &trust.config().unwrap()));
            replace(&authority());
            assert!(!Arc::ptr_eq(&second, &trust.config().unwrap()));
        }
    }

    /// The environment belongs to the whole process, so the test runs itself in another one.
    #[test]
    fn the_systems_authorities_are_read_again_and_never_none_for_some() {
        const FILE: &str = "AUTOSSM_TEST_SYSTEMS_AUTHORITIES";
        let Some(path) = std::env::var_os(FILE).map(PathBuf::from) else {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("system.pem");
            let name =
                "network::trust::tests::the_systems_authorities_are_read_again_and_never_none_for_some";
            let mut command = std::process::Command::new(std::env::current_exe().unwrap());
            command.args(["--exact", name]).env(FILE, &path).env("SSL_CERT_FILE", &path);
            let output = command.env_remove("SSL_CERT_DIR").output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            return assert!(output.status.success() && text.contains("1 passed"), "{text}");
        };
        let trust = Trust::new(&Environment::default(), None);
        assert!(system().is_empty() && trust.config().is_ok(), "there is no file yet");
        std::fs::write(&path, authority()).unwrap();
        assert_eq!(system().len(), 1);
        let one = trust.config().unwrap();
        assert!(Arc::ptr_eq(&one, &trust.config().unwrap()));
        std::fs::write(&path, "").unwrap();
        assert_eq!(system().len(), 1, "in the middle of being written");
        std::fs::write(&path, authority() + &authority()).unwrap();
        assert_eq!(system().len(), 2);
        assert!(!Arc::ptr_eq(&one, &trust.config().unwrap()));
    }

    fn refused(content: &str) -> Failure {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pem");
        std::fs::write(&path, content).unwrap();
        Network::new(&Environment::default(), Some(&path)).unwrap_err()
    }

    #[test]
    fn a_bad_file_is_refused_in_words() {
        let missing =
            Network::new(&Environment::default(), Some(Path::new("/nonexistent/ca.pem"))).unwrap_err();
        assert_eq!(missing.class, Class::NeedsChange);
        assert!(missing.text.starts_with("ca_file /nonexistent/ca.pem: cannot be read"), "{missing}");
        assert!(refused("").text.contains("holds no certificate"));
        assert!(refused("not PEM at all").text.contains("holds no certificate"));
        let broken = "-----BEGIN CERTIFICATE-----\naGVsbG8=\n-----END CERTIFICATE-----\n";
        assert!(refused(broken).text.contains("cannot be used"));
    }

    #[test]
    fn a_bundle_is_missed_when_it_is_needed_and_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bundle.pem");
        assert!(Network::new(&environment(&path), None).is_ok(), "nothing has asked for TLS yet");
        let trust = Trust::new(&environment(&path), None);
        let failure = trust.config().unwrap_err();
        assert_eq!(failure.class, Class::NeedsChange);
        assert!(failure.text.starts_with("AWS_CA_BUNDLE "), "{failure}");
        std::fs::write(&path, authority()).unwrap();
        assert!(trust.config().is_ok());
        // The tunnel's own file goes before it.
        assert!(Network::new(&environment(Path::new("/nonexistent/x")), Some(&path)).is_ok());
    }
}
