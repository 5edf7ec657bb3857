//! The lab's certificate authority: made at start, in memory but for the certificate that clients have to trust.

use std::net::Ipv4Addr;
use std::sync::Arc;

use anyhow::Context;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::TlsAcceptor;

/// Accepts TLS under the service's names, `localhost` and 127.0.0.1; and the authority's certificate as PEM.
///
/// # Errors
/// The certificates cannot be made.
pub(crate) fn acceptor(region: &str) -> anyhow::Result<(TlsAcceptor, String)> {
    let authority_key = KeyPair::generate()?;
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    authority.distinguished_name.push(DnType::CommonName, "autossm lab");
    let pem = authority.self_signed(&authority_key)?.pem();
    let issuer = Issuer::new(authority, authority_key);

    let key = KeyPair::generate()?;
    let mut leaf = CertificateParams::new(vec![
        "localhost".to_owned(),
        format!("*.{region}.amazonaws.com"),
        format!("*.{region}.amazonaws.com.cn"),
        format!("*.{region}.api.aws"),
        format!("*.ssm.{region}.vpce.amazonaws.com"),
        format!("*.ssmmessages.{region}.vpce.amazonaws.com"),
    ])?;
    leaf.subject_alt_names.push(SanType::IpAddress(Ipv4Addr::LOCALHOST.into()));
    leaf.distinguished_name.push(DnType::CommonName, "autossm lab service");
    let certificate = leaf.signed_by(&key, &issuer)?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .context("the lab's own certificate")?;
    Ok((TlsAcceptor::from(Arc::new(config)), pem))
}
