//! Whom connections trust: the system's certificate authorities, or those of `AWS_CA_BUNDLE`; and a tunnel's `ca_file`.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rustls::client::Resumption;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

use super::Environment;
use crate::tunnel::failure::{Class, Failure};

/// The API's host, the data channel's, and one to spare.
const SESSIONS: usize = 4;

/// Whom to trust. Files are read when TLS is first needed, and kept.
pub(super) struct Trust {
    source: Source,
    config: Mutex<Option<Arc<ClientConfig>>>,
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
        Self { source, config: Mutex::default() }
    }

    /// For a client. A file that cannot be used is read again the next time.
    pub(super) fn config(&self) -> Result<Arc<ClientConfig>, Failure> {
        let mut held = self.config.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(config) = &*held {
            return Ok(config.clone());
        }
        let roots = match &self.source {
            Source::System => system(),
            Source::Bundle(path) => {
                let mut roots = RootCertStore::empty();
                add(&mut roots, "AWS_CA_BUNDLE", path)?;
                Arc::new(roots)
            }
            Source::SystemAnd(path) => {
                let mut roots = RootCertStore::clone(&system());
                add(&mut roots, "ca_file", path)?;
                Arc::new(roots)
            }
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| Failure::new(Class::NeedsChange, format!("TLS cannot be set up: {e}")))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.resumption = Resumption::in_memory_sessions(SESSIONS);
        Ok(held.insert(Arc::new(config)).clone())
    }
}

/// The system's authorities, read once per process.
fn system() -> Arc<RootCertStore> {
    static SYSTEM: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    let roots = SYSTEM.get_or_init(|| {
        let mut roots = RootCertStore::empty();
        // A host without authorities, or with a broken one among many, shows when a certificate is verified.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        Arc::new(roots)
    });
    roots.clone()
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
        let ca = rcgen::generate_simple_self_signed(vec!["ca.internal".to_owned()]).unwrap();
        std::fs::write(&path, ca.cert.pem()).unwrap();
        assert!(trust.config().is_ok());
        // The tunnel's own file goes before it.
        assert!(Network::new(&environment(Path::new("/nonexistent/x")), Some(&path)).is_ok());
    }
}
