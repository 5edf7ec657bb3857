//! The certificate authorities that the plugin trusts, read as Go reads them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

const FILES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];
const DIRECTORIES: [&str; 2] = ["/etc/ssl/certs", "/etc/pki/tls/certs"];

/// TLS for the data channel: the system's authorities, or those that `SSL_CERT_FILE` and `SSL_CERT_DIR` name.
///
/// # Errors
/// TLS cannot be set up; in words.
pub fn system() -> Result<Arc<ClientConfig>, String> {
    let files =
        variable("SSL_CERT_FILE").map_or_else(|| FILES.map(PathBuf::from).into(), |file| vec![file.into()]);
    let directories: Vec<PathBuf> = variable("SSL_CERT_DIR").map_or_else(
        || DIRECTORIES.map(PathBuf::from).into(),
        |list| list.split(':').map(PathBuf::from).collect(),
    );
    let mut roots = RootCertStore::empty();
    // The first file that can be read is the only one; directories are read all of them.
    if let Some(text) = files.iter().find_map(|file| std::fs::read(file).ok()) {
        add(&mut roots, &text);
    }
    for entry in directories.iter().filter_map(|path| std::fs::read_dir(path).ok()).flatten().flatten() {
        if let Ok(text) = std::fs::read(entry.path()) {
            add(&mut roots, &text);
        }
    }
    config(roots)
}

/// TLS for API calls: with `AWS_CA_BUNDLE` only that file's authorities, else as for the data channel.
///
/// # Errors
/// The bundle cannot be read, or TLS not be set up; in words.
pub fn api() -> Result<Arc<ClientConfig>, String> {
    let Some(bundle) = variable("AWS_CA_BUNDLE") else {
        return system();
    };
    let text = std::fs::read(Path::new(&bundle)).map_err(|error| {
        format!("LoadCustomCABundleError: unable to open custom CA bundle PEM file: {error}")
    })?;
    let mut roots = RootCertStore::empty();
    add(&mut roots, &text);
    config(roots)
}

/// What is no certificate is passed over, as Go does.
fn add(roots: &mut RootCertStore, text: &[u8]) {
    roots.add_parsable_certificates(CertificateDer::pem_slice_iter(text).flatten());
}

fn config(roots: RootCertStore) -> Result<Arc<ClientConfig>, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| format!("tls: {error}"))?;
    Ok(Arc::new(builder.with_root_certificates(roots).with_no_client_auth()))
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|text| !text.is_empty())
}
