//! A TLS handshake with the destination.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{Bad, Destination};
use crate::config::Tls;
use crate::network::destination_tls;

/// Shakes hands. The destination's name goes with it where it is a name.
pub(super) async fn connect<S>(
    verification: Tls,
    destination: Destination<'_>,
    stream: S,
) -> Result<TlsStream<S>, Bad>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::InvalidData | io::ErrorKind::Other => {
            Bad::Answer(format!("no TLS handshake with it: {error}"))
        }
        _ => Bad::Closed,
    };
    let config = match verification {
        Tls::Verified => destination_tls(destination.ca_file).map_err(|failure| Bad::Answer(failure.text))?,
        Tls::Unverified => unverified().map_err(failed)?,
    };
    // With an address instead, no name is sent.
    let nameless = || ServerName::from(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let name = destination.host.and_then(|host| ServerName::try_from(host.to_owned()).ok());
    TlsConnector::from(config).connect(name.unwrap_or_else(nameless), stream).await.map_err(failed)
}

fn unverified() -> io::Result<Arc<ClientConfig>> {
    static CONFIG: OnceLock<Arc<ClientConfig>> = OnceLock::new();
    if let Some(config) = CONFIG.get() {
        return Ok(config.clone());
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_no_client_auth();
    Ok(CONFIG.get_or_init(|| Arc::new(config)).clone())
}

/// Takes every certificate. Nothing is sent over the connection but a probe, which holds no secret.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
