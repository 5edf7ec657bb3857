//! Certificates towards the plugin, from an authority of our own.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::NoServerSessionStorage;

/// The plugin asks for two or three hosts; whatever else it may ask for is made anew each time.
const MAX_HOSTS: usize = 64;

/// The certificate authority that the plugin is told to trust. It lives as long as the process, and its key never
/// leaves the process's memory.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
    hosts: Mutex<HashMap<String, Arc<ServerConfig>>>,
}

impl Authority {
    /// Makes the key and the certificate. Fails only if the system has no random numbers.
    pub fn new() -> io::Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "autossm, for one process");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().map_err(io::Error::other)?;
        let certificate = params.self_signed(&key).map_err(io::Error::other)?.pem();
        Ok(Self { issuer: Issuer::new(params, key), certificate, hosts: Mutex::default() })
    }

    /// Writes the authority's certificate (not its key) as the file `autossm-ca.pem` of `dir`, which is then fit for
    /// `SSL_CERT_DIR`.
    pub fn write_certificate(&self, dir: &Path) -> io::Result<()> {
        std::fs::write(dir.join("autossm-ca.pem"), &self.certificate)
    }

    /// What a TLS server needs to pass for `host`.
    pub(super) fn server_config(&self, host: &str) -> io::Result<Arc<ServerConfig>> {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(config) = hosts.get(host) {
            return Ok(config.clone());
        }
        let config = Arc::new(self.issue(host)?);
        if hosts.len() < MAX_HOSTS {
            hosts.insert(host.to_owned(), config.clone());
        }
        Ok(config)
    }

    /// For the tests of others: a server that passes for `host`.
    #[cfg(test)]
    pub(crate) fn acceptor(&self, host: &str) -> tokio_rustls::TlsAcceptor {
        self.server_config(host).unwrap().into()
    }

    fn issue(&self, host: &str) -> io::Result<ServerConfig> {
        let mut params = CertificateParams::new([host.to_owned()]).map_err(io::Error::other)?;
        // A longer name than 64 characters is not allowed here; clients look at the alternative names only.
        params.distinguished_name.push(DnType::CommonName, "autossm gateway");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().map_err(io::Error::other)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(io::Error::other)?;
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .map_err(io::Error::other)?;
        // The plugin connects once in months: nothing is gained by resuming TLS sessions.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// A client that trusts the authority in this PEM file alone.
#[cfg(test)]
pub(super) fn trusting(authority: &Path) -> Arc<rustls::ClientConfig> {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject as _;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(authority).unwrap()).unwrap();
    let config =
        rustls::ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    Arc::new(config.unwrap().with_root_certificates(roots).with_no_client_auth())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::pki_types::ServerName;
    use tokio_rustls::{TlsAcceptor, TlsConnector};

    async fn handshake(authority: &Authority, trusted: &Path, host: &str, expected: &str) -> io::Result<()> {
        let (near, far) = tokio::io::duplex(16 << 10);
        let acceptor = TlsAcceptor::from(authority.server_config(host)?);
        let connector = TlsConnector::from(trusting(trusted));
        let name = ServerName::try_from(expected.to_owned()).map_err(io::Error::other)?;
        let (client, _) = tokio::join!(connector.connect(name, near), acceptor.accept(far));
        client.map(drop)
    }

    #[tokio::test]
    async fn a_client_that_trusts_the_authority_accepts_its_hosts_and_no_others() {
        let (authority, stranger) = (Authority::new().unwrap(), Authority::new().unwrap());
        let dir = tempfile::tempdir().unwrap();
        authority.write_certificate(dir.path()).unwrap();
        let trusted = dir.path().join("autossm-ca.pem");
        let long = format!("vpce-{}.ssmmessages.us-east-1.vpce.amazonaws.com", "0".repeat(40));
        for host in ["ssmmessages.eu-central-1.amazonaws.com", &long] {
            handshake(&authority, &trusted, host, host).await.unwrap();
            handshake(&authority, &trusted, host, "kms.amazonaws.com").await.unwrap_err();
            handshake(&stranger, &trusted, host, host).await.unwrap_err();
        }
    }

    #[test]
    fn certificates_are_kept_but_not_without_end() {
        let authority = Authority::new().unwrap();
        let one = authority.server_config("a.amazonaws.com").unwrap();
        assert!(Arc::ptr_eq(&one, &authority.server_config("a.amazonaws.com").unwrap()));
        (0..MAX_HOSTS * 2)
            .for_each(|n| drop(authority.server_config(&format!("{n}.amazonaws.com")).unwrap()));
        assert_eq!(authority.hosts.lock().unwrap().len(), MAX_HOSTS);
    }
}
