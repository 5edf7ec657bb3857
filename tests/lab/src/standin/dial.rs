//! Connections to the service: TCP, through a CONNECT proxy where the environment names one, and TLS.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use http::header::HOST;
use http::{HeaderValue, Request, Response, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::proxy::{self, Proxy};

/// The longest answer of a proxy that is read.
const MAX_PROXY_ANSWER: usize = 8192;

/// A connection, encrypted or not.
pub trait Transport: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Transport for T {}

/// A connection and the words that Go's errors name it with.
pub struct Link {
    /// The connection.
    pub stream: Box<dyn Transport>,
    /// `LOCAL->REMOTE`.
    pub addresses: String,
}

/// Connects to `host:port`, with TLS if `tls` is given.
///
/// # Errors
/// In the words of Go's network errors.
pub async fn dial(host: &str, port: u16, tls: Option<Arc<ClientConfig>>) -> Result<Link, String> {
    let proxy = match tls {
        Some(_) => proxy::for_host(host, port, |name| std::env::var(name).ok())?,
        None => None,
    };
    let address = proxy.as_ref().map_or_else(|| format!("{host}:{port}"), |proxy| proxy.address.clone());
    let mut tcp = TcpStream::connect(&address)
        .await
        .map_err(|error| format!("dial tcp {address}: connect: {}", words(&error)))?;
    let addresses = match (tcp.local_addr(), tcp.peer_addr()) {
        (Ok(local), Ok(remote)) => format!("{local}->{remote}"),
        _ => address,
    };
    // Go's default; without it a message of a kilobyte waits for the acknowledgement of the one before.
    tcp.set_nodelay(true).map_err(|error| words(&error))?;
    if let Some(proxy) = proxy {
        connect(&mut tcp, &format!("{host}:{port}"), &proxy).await?;
    }
    let Some(tls) = tls else {
        return Ok(Link { stream: Box::new(tcp), addresses });
    };
    let name = ServerName::try_from(host.to_owned()).map_err(|error| format!("tls: {error}"))?;
    let stream = TlsConnector::from(tls)
        .connect(name, tcp)
        .await
        .map_err(|error| format!("tls: {}", words(&error)))?;
    Ok(Link { stream: Box::new(stream), addresses })
}

async fn connect(tcp: &mut TcpStream, target: &str, proxy: &Proxy) -> Result<(), String> {
    let authorization = proxy
        .authorization
        .as_ref()
        .map(|value| format!("Proxy-Authorization: {value}\r\n"))
        .unwrap_or_default();
    let request = format!(
        "CONNECT {target} HTTP/1.1\r\nHost: {target}\r\nUser-Agent: Go-http-client/1.1\r\n{authorization}\r\n"
    );
    tcp.write_all(request.as_bytes()).await.map_err(|error| words(&error))?;
    // The answer can be read in pieces of any size: behind the proxy nobody speaks before TLS begins.
    let mut answer = Vec::new();
    while !answer.windows(4).any(|end| end == b"\r\n\r\n") {
        if answer.len() > MAX_PROXY_ANSWER
            || tcp.read_buf(&mut answer).await.map_err(|error| words(&error))? == 0
        {
            return Err("unexpected EOF".into());
        }
    }
    let answer = String::from_utf8_lossy(&answer);
    let mut status = answer.lines().next().unwrap_or_default().splitn(3, ' ').skip(1);
    match (status.next(), status.next()) {
        (Some("200"), _) => Ok(()),
        (_, reason) => Err(reason.unwrap_or_default().into()),
    }
}

/// Sends one HTTP request over a new connection to the host of `uri` and waits for the answer's head.
///
/// # Errors
/// The connection broke, or the answer is no HTTP; in words.
pub async fn exchange(
    link: Link,
    uri: &Uri,
    mut request: Request<Full<Bytes>>,
) -> Result<Response<Incoming>, String> {
    let authority = uri.authority().map(ToString::to_string).unwrap_or_default();
    let host = HeaderValue::from_str(&authority).map_err(|error| error.to_string())?;
    request.headers_mut().insert(HOST, host);
    let (mut sender, connection) = http1::Builder::new()
        .title_case_headers(true)
        .handshake(TokioIo::new(link.stream))
        .await
        .map_err(|error| error.to_string())?;
    // Ends by itself with the connection, or hands it over to the WebSocket.
    tokio::spawn(connection.with_upgrades());
    sender.send_request(request).await.map_err(|error| error.to_string())
}

/// An I/O error in Go's words: the system's text in small letters, without its number.
pub fn words(error: &io::Error) -> String {
    let text = error.to_string();
    if error.raw_os_error().is_none() {
        return text;
    }
    text.split(" (os error").next().unwrap_or_default().to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[test]
    fn errors_read_like_gos() {
        assert_eq!(words(&io::Error::from_raw_os_error(32)), "broken pipe");
        assert_eq!(words(&io::Error::from_raw_os_error(104)), "connection reset by peer");
    }

    #[tokio::test]
    async fn a_refusing_proxys_reason_is_the_error() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Proxy {
            address: listener.local_addr().unwrap().to_string(),
            authorization: Some("Basic eDp5".into()),
        };
        let server = tokio::spawn(async move {
            let (mut peer, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                assert_ne!(peer.read_buf(&mut request).await.unwrap(), 0);
            }
            peer.write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n").await.unwrap();
            String::from_utf8(request).unwrap()
        });
        let mut tcp = TcpStream::connect(&proxy.address).await.unwrap();
        let error = connect(&mut tcp, "a.amazonaws.com:443", &proxy).await.unwrap_err();
        assert_eq!(error, "Proxy Authentication Required");
        let request = server.await.unwrap();
        assert!(request.starts_with("CONNECT a.amazonaws.com:443 HTTP/1.1\r\n"), "{request}");
        assert!(request.contains("\r\nProxy-Authorization: Basic eDp5\r\n"), "{request}");
    }
}
