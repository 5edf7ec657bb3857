//! The HTTP client beneath every call: the API's, and those of the credential providers.

use std::path::Path;
use std::time::Duration;

use aws_smithy_http_client::Builder;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use aws_smithy_runtime_api::client::connector_metadata::ConnectorMetadata;
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnectorSettings, SharedHttpClient, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::tunnel::failure::{Class, Failure};

/// Calls come in bursts, an hour apart: a connection is kept for the next call of a burst, and its buffers not for
/// longer.
const IDLE: Duration = Duration::from_secs(5);

/// A client that trusts the system's certificate authorities and those of `ca_file` (PEM).
///
/// Fails if `ca_file` cannot be read or holds anything but certificates of authorities.
pub(super) fn client(ca_file: Option<&Path>) -> Result<SharedHttpClient, Failure> {
    let mut trust = TrustStore::empty().with_native_roots(system_has_authorities());
    if let Some(path) = ca_file {
        trust.add_pem_certificate(authorities(path)?);
    }
    let context = TlsContext::builder()
        .with_trust_store(trust)
        .build()
        .map_err(|e| Failure::new(Class::NeedsChange, format!("TLS cannot be set up: {e}")))?;
    let client = Builder::new()
        .pool_idle_timeout(IDLE)
        .tls_provider(Provider::rustls(CryptoMode::Ring))
        .tls_context(context)
        .build_https();
    Ok(SharedHttpClient::new(Lazy(client)))
}

/// A host may have none (a minimal container with `ca_file` or a private endpoint without TLS), which the HTTP client
/// takes for a mistake of the programmer.
fn system_has_authorities() -> bool {
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs).0 > 0
}

/// The content of `path`, every certificate of it checked: the HTTP client panics on one that it cannot use.
fn authorities(path: &Path) -> Result<Vec<u8>, Failure> {
    let wrong =
        |what: String| Failure::new(Class::NeedsChange, format!("ca_file {}: {what}", path.display()));
    let pem = std::fs::read(path).map_err(|e| wrong(format!("cannot be read: {e}")))?;
    let mut store = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|e| wrong(format!("is not PEM: {e}")))?;
        store.add(certificate).map_err(|e| wrong(format!("holds a certificate that cannot be used: {e}")))?;
    }
    if store.is_empty() {
        return Err(wrong("holds no certificate".to_owned()));
    }
    Ok(pem)
}

/// Makes its connector when it is first needed. The client inside makes and throws away another one, with all the
/// system's certificates parsed anew, each time that an SDK client is built on it.
#[derive(Debug)]
struct Lazy(SharedHttpClient);

impl HttpClient for Lazy {
    fn http_connector(
        &self,
        settings: &HttpConnectorSettings,
        components: &RuntimeComponents,
    ) -> SharedHttpConnector {
        self.0.http_connector(settings, components)
    }

    fn connector_metadata(&self) -> Option<ConnectorMetadata> {
        self.0.connector_metadata()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(content: &str) -> Failure {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pem");
        std::fs::write(&path, content).unwrap();
        client(Some(&path)).unwrap_err()
    }

    #[test]
    fn a_bad_ca_file_is_refused_in_words() {
        let missing = client(Some(Path::new("/nonexistent/ca.pem"))).unwrap_err();
        assert_eq!(missing.class, Class::NeedsChange);
        assert!(missing.text.contains("/nonexistent/ca.pem: cannot be read"), "{missing}");
        assert!(refused("").text.contains("holds no certificate"));
        assert!(refused("not PEM at all").text.contains("holds no certificate"));
        let broken = "-----BEGIN CERTIFICATE-----\naGVsbG8=\n-----END CERTIFICATE-----\n";
        assert!(refused(broken).text.contains("cannot be used"));
    }

    #[test]
    fn a_good_ca_file_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pem");
        let ca = rcgen::generate_simple_self_signed(vec!["ca.internal".to_owned()]).unwrap();
        std::fs::write(&path, ca.cert.pem()).unwrap();
        assert!(client(Some(&path)).is_ok());
    }
}
