//! Who has issued the certificate that somebody shows: what an operator has to know where it is not trusted, because a
//! proxy of the company's own has put itself in between.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use tokio_rustls::TlsConnector;

use super::Network;

const HANDSHAKE: Duration = Duration::from_secs(5);

impl Network {
    /// The name of whoever has issued the certificate that `host` shows; `None` if it shows none that can be read. Nothing is
    /// sent over that connection.
    pub async fn certificate_issuer(&self, host: &str, port: u16) -> Option<String> {
        let seen = Arc::new(Seen::default());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .ok()?
            .dangerous()
            .with_custom_certificate_verifier(seen.clone())
            .with_no_client_auth();
        let stream = self.connect(host, port).await.ok()?;
        let name = ServerName::try_from(host.to_owned()).ok()?;
        // It fails, as nobody is trusted.
        let _ =
            tokio::time::timeout(HANDSHAKE, TlsConnector::from(Arc::new(config)).connect(name, stream)).await;
        let certificate = seen.0.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        issuer(&certificate)
    }
}

/// Takes down what it is shown, and trusts nobody.
#[derive(Debug, Default)]
struct Seen(Mutex<Option<Vec<u8>>>);

impl ServerCertVerifier for Seen {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(certificate.to_vec());
        Err(Error::InvalidCertificate(CertificateError::UnknownIssuer))
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::InvalidCertificate(CertificateError::UnknownIssuer))
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::InvalidCertificate(CertificateError::UnknownIssuer))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

/// DER's tags, as far as they are needed here (X.690; the certificate's structure is RFC 5280's).
const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;
const OBJECT: u8 = 0x06;
/// 2.5.4.3, 2.5.4.10 and 2.5.4.11: the attributes that name somebody, the plainest first.
const NAMES: [[u8; 3]; 3] = [[0x55, 0x04, 0x03], [0x55, 0x04, 0x0a], [0x55, 0x04, 0x0b]];

/// The issuer's names in a certificate: `CN`, `O` and `OU`, as far as there are any.
fn issuer(certificate: &[u8]) -> Option<String> {
    let (_, certificate, _) = element(certificate)?;
    let (_, mut rest, _) = element(certificate)?;
    if *rest.first()? == VERSION {
        rest = element(rest)?.2;
    }
    // The serial number and the signature's algorithm.
    let rest = element(element(rest)?.2)?.2;
    let (tag, mut names, _) = element(rest)?;
    if tag != SEQUENCE {
        return None;
    }
    let mut found: [Option<String>; 3] = Default::default();
    while let Some((_, set, next)) = element(names) {
        names = next;
        let mut set = set;
        while let Some((_, attribute, next)) = element(set) {
            set = next;
            let Some((OBJECT, kind, value)) = element(attribute) else { continue };
            let Some((_, value, _)) = element(value) else { continue };
            if let Some(at) = NAMES.iter().position(|name| name == kind) {
                let text = String::from_utf8_lossy(value);
                let text = text.chars().take(100).map(|c| if c.is_control() { ' ' } else { c }).collect();
                found.get_mut(at).map(|place| place.get_or_insert(text));
            }
        }
    }
    let found: Vec<_> = found.into_iter().flatten().collect();
    (!found.is_empty()).then(|| found.join(", "))
}

/// The first element's tag and content, and what follows it.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        short @ ..0x80 => (usize::from(short), rest),
        long => {
            let count = usize::from(long & 0x7f);
            if count == 0 || count > 3 {
                return None;
            }
            let (bytes, rest) = rest.split_at_checked(count)?;
            (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
        }
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair};

    use super::*;

    #[test]
    fn the_issuer_is_named_and_nonsense_is_nobody() {
        let mut params = CertificateParams::new(vec!["ssm.us-west-2.amazonaws.com".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::OrganizationName, "Example Corp");
        params.distinguished_name.push(DnType::CommonName, "Corporate Inspection CA");
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let der = certificate.der().to_vec();
        assert_eq!(issuer(&der).as_deref(), Some("Corporate Inspection CA, Example Corp"));
        for cut in 0..der.len() {
            let _ = issuer(&der[..cut]);
        }
        assert_eq!(issuer(&[0x30, 0x84, 0xff, 0xff, 0xff, 0xff]), None);
        assert_eq!(issuer(b"hello"), None);
    }
}
