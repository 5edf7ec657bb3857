//! Connections: to a host itself, or to the proxy and by CONNECT from there; with TLS on top or without.

use std::error::Error;
use std::io;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HOST, PROXY_AUTHORIZATION, TRANSFER_ENCODING, USER_AGENT};
use http::response::Parts;
use http::{HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::Empty;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::proxy::matcher::Intercept;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;
use tower_service::Service as _;

use super::proxies::authority;
use super::switch::{self, Switched, switch};
use super::{Answer, Connection, Network, words};
use crate::tunnel::failure::{Class, Failure};

/// For a TCP connection, over all addresses of the host.
const CONNECT: Duration = Duration::from_secs(5);
/// For the proxy's answer, and for a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);

impl Network {
    /// A connection to `host` without TLS, through the proxy if there is one for it.
    ///
    /// # Errors
    /// It cannot be had within 5 s, or 15 s through a proxy.
    pub async fn connect(&self, host: &str, port: u16) -> Result<Box<dyn Connection>, Failure> {
        match self.0.proxies.way(host, port)? {
            None => self.connect_directly(host, port).await,
            Some(proxy) => self.tunnel(&proxy, host, port).await,
        }
    }

    /// A connection to `host` without TLS, and without a proxy whatever the environment says.
    ///
    /// # Errors
    /// It cannot be had within 5 s.
    pub async fn connect_directly(&self, host: &str, port: u16) -> Result<Box<dyn Connection>, Failure> {
        match direct(host, port).await {
            Ok(stream) => Ok(Box::new(stream)),
            Err(error) => Err(failed(format!("connecting to {}: {error}", authority(host, port)))),
        }
    }

    /// The same with TLS, which is verified against `host`.
    ///
    /// # Errors
    /// It cannot be had, or is not trusted; a further 10 s.
    pub async fn connect_tls(&self, host: &str, port: u16) -> Result<Box<dyn Connection>, Failure> {
        // Without it no connection is worth making.
        self.0.trust.config()?;
        let stream = self.connect(host, port).await?;
        let who = self.peer(host, port)?.to_string();
        Ok(Box::new(self.secure(host, &who, stream).await?))
    }

    async fn secure<S: Connection>(&self, host: &str, who: &str, stream: S) -> Result<TlsStream<S>, Failure> {
        let connector = TlsConnector::from(self.0.trust.config()?);
        let failed = |e: &dyn std::fmt::Display| failed(format!("TLS with {who}: {e}"));
        let name = ServerName::try_from(host.to_owned()).map_err(|e| failed(&e))?;
        match timeout(HANDSHAKE, connector.connect(name, stream)).await {
            Ok(stream) => stream.map_err(|e| failed(&words(&e))),
            Err(_) => Err(failed(&"no answer within 10 s")),
        }
    }

    async fn tunnel(&self, proxy: &Intercept, host: &str, port: u16) -> Result<Box<dyn Connection>, Failure> {
        let tls = proxy.uri().scheme_str() == Some("https");
        let name = proxy.uri().host().unwrap_or_default().trim_matches(['[', ']']);
        let proxy_port = proxy.uri().port_u16().unwrap_or(if tls { 443 } else { 80 });
        let who = format!("the proxy {}", authority(name, proxy_port));
        let stream = direct(name, proxy_port).await;
        let stream = stream.map_err(|e| failed(format!("connecting to {who}: {e}")))?;
        let stream = match tls {
            true => ToProxy::Right(self.secure(name, &who, stream).await?),
            false => ToProxy::Left(stream),
        };
        let target = authority(host, port);
        let request = connect(&target, authorization(proxy));
        let request = request.map_err(|e| failed(format!("{who}: {e}")))?;
        let (head, stream, read) = match timeout(HANDSHAKE, switch(stream, request)).await {
            Ok(Ok(Switched::Yes { head, stream, read })) => (head, stream, read),
            Ok(Ok(Switched::No(answer))) => return Err(refused(&answer, &who, proxy, &target)),
            Ok(Err(error)) => return Err(failed(format!("{who}: {error}"))),
            Err(_) => return Err(failed(format!("{who} did not answer within 10 s"))),
        };
        if read.is_empty() && !announces_page(&head) {
            return Ok(Box::new(stream));
        }
        // The host that was asked for speaks TLS, in which the client begins.
        let mut body = read.to_vec();
        let _ = timeout(switch::PATIENCE, stream.take(switch::BEGINNING as u64).read_to_end(&mut body)).await;
        let answer = Answer::new(head.status, &head.headers, &body);
        Err(failed(format!(
            "{who} has answered with {answer} instead of a connection to {target}; HTTPS_PROXY has to name an HTTP proxy, \
             and a portal may want a user to sign in first"
        )))
    }
}

/// A TCP connection by whichever family of addresses answers first: a host may have addresses of a family that does not
/// get through (RFC 8305).
async fn direct(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(CONNECT));
    let uri: Uri = format!("http://{}", authority(host, port)).parse().map_err(io::Error::other)?;
    let connected = timeout(CONNECT, connector.call(uri)).await.map_err(|_| io::ErrorKind::TimedOut)?;
    connected.map(TokioIo::into_inner).map_err(|error| io::Error::other(causes(&error)))
}

/// A connection to a proxy.
type ToProxy = Either<TcpStream, TlsStream<TcpStream>>;

/// The request for a connection to `target`.
fn connect(target: &str, authorization: Option<HeaderValue>) -> Result<Request<Empty<Bytes>>, http::Error> {
    let request = Request::builder()
        .method(Method::CONNECT)
        .uri(target)
        .header(HOST, target)
        .header(USER_AGENT, "autossm");
    match authorization {
        Some(authorization) => request.header(PROXY_AUTHORIZATION, authorization),
        None => request,
    }
    .body(Empty::new())
}

/// Whether more than a head follows: of a server that takes a CONNECT for a request, and sends its page. A proxy that has
/// connected may send such headers, which mean nothing then, but not of a page.
fn announces_page(head: &Parts) -> bool {
    let length = head.headers.get(CONTENT_LENGTH);
    let has_body = head.headers.contains_key(TRANSFER_ENCODING) || length.is_some_and(|length| length != "0");
    has_body && Answer::says_page(&head.headers)
}

fn authorization(proxy: &Intercept) -> Option<HeaderValue> {
    let mut value = match (proxy.basic_auth(), proxy.raw_auth()) {
        (Some(value), _) => value.clone(),
        (None, Some((user, password))) => {
            format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))).parse().ok()?
        }
        (None, None) => return None,
    };
    value.set_sensitive(true);
    Some(value)
}

/// What a proxy's refusal means, and what to do.
fn refused(answer: &Answer, who: &str, proxy: &Intercept, target: &str) -> Failure {
    let (class, hint) = match answer.status() {
        StatusCode::PROXY_AUTHENTICATION_REQUIRED if authorization(proxy).is_some() => (
            Class::Access,
            "; it does not accept the user and password in HTTPS_PROXY (only Basic is offered)",
        ),
        StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
            (Class::Access, "; set HTTPS_PROXY to http://USER:PASSWORD@HOST:PORT")
        }
        StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED | StatusCode::METHOD_NOT_ALLOWED => {
            (Class::Access, "; it has to allow this host, or NO_PROXY has to name it")
        }
        StatusCode::TOO_MANY_REQUESTS => (Class::Throttled, ""),
        status if status.is_redirection() => {
            (Class::Network, "; a user may have to sign in there first, or it is no HTTP proxy")
        }
        _ => (Class::Network, ""),
    };
    Failure::new(class, format!("{who} refused a connection to {target}: {answer}{hint}"))
}

/// The error's words and those of what caused it.
fn causes(error: &(dyn Error + 'static)) -> String {
    let words = std::iter::successors(Some(error), |&e| e.source()).map(ToString::to_string);
    words.collect::<Vec<_>>().join(": ")
}

fn failed(text: impl Into<String>) -> Failure {
    Failure::new(Class::Network, text)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::network::Environment;

    /// A proxy that answers so; returns what it was asked.
    async fn proxied(user: &str, answer: &'static str) -> (Result<Vec<u8>, Failure>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let proxy = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            stream.write_all(answer.as_bytes()).await.unwrap();
            let mut ping = [0; 4];
            if stream.read_exact(&mut ping).await.is_ok() {
                stream.write_all(&ping).await.unwrap();
            }
            String::from_utf8(head).unwrap()
        };
        let url = format!("http://{user}{address}");
        let environment = Environment::read(|name| (name == "HTTPS_PROXY").then(|| url.clone()));
        let network = Network::new(&environment, None).unwrap();
        let client = async {
            let mut stream = network.connect("ssm.us-west-2.amazonaws.com", 443).await?;
            stream.write_all(b"ping").await.unwrap();
            let mut echo = vec![0; 4];
            stream.read_exact(&mut echo).await.unwrap();
            Ok(echo)
        };
        tokio::join!(client, proxy)
    }

    #[tokio::test]
    async fn a_proxy_is_asked_for_a_tunnel() {
        let (echo, asked) = proxied("me:p%40ss@", "HTTP/1.1 200 Connection established\r\n\r\n").await;
        assert_eq!(echo.unwrap(), b"ping");
        assert!(asked.starts_with("CONNECT ssm.us-west-2.amazonaws.com:443 HTTP/1.1\r\n"), "{asked}");
        let expected = format!("proxy-authorization: Basic {}\r\n", STANDARD.encode("me:p@ss"));
        assert!(asked.to_ascii_lowercase().contains(&expected.to_ascii_lowercase()), "{asked}");
    }

    #[tokio::test]
    async fn a_proxys_refusal_has_a_class_and_says_what_to_do() {
        for (user, answer, class, words) in [
            (
                "",
                "407 Proxy Authentication Required",
                Class::Access,
                "set HTTPS_PROXY to http://USER:PASSWORD@",
            ),
            ("me:hunter2@", "407 Proxy Authentication Required", Class::Access, "does not accept the user"),
            ("", "403 Forbidden", Class::Access, "NO_PROXY"),
            ("", "503 Service Unavailable", Class::Network, "503 Service Unavailable"),
        ] {
            let answer = format!("HTTP/1.1 {answer}\r\nContent-Length: 0\r\n\r\n").leak();
            let (result, _) = proxied(user, answer).await;
            let failure = result.unwrap_err();
            assert_eq!(failure.class, class, "{failure}");
            assert!(failure.text.contains(words) && !failure.text.contains("hunter2"), "{failure}");
            assert!(
                failure.text.contains("refused a connection to ssm.us-west-2.amazonaws.com:443"),
                "{failure}"
            );
        }
        let (result, _) = proxied("", "SSH-2.0-OpenSSH_9.2\r\n").await;
        assert_eq!(result.unwrap_err().class, Class::Network);
    }

    /// A portal or another web server where a proxy should be, and proxies' own pages.
    #[tokio::test]
    async fn what_a_proxy_answers_is_told_by_status_content_type_and_title() {
        const PAGE: &str = "<html><title>Sign in</title></html>";
        let html = format!("Content-Type: text/html\r\nContent-Length: {}\r\n\r\n", PAGE.len());
        for (answer, words) in [
            (
                format!("200 OK\r\n{html}{PAGE}"),
                "has answered with HTTP 200 OK, a page (text/html) “Sign in”",
            ),
            // The body has not come when the head is read, and never does.
            (format!("200 OK\r\n{html}"), "with HTTP 200 OK, a page (text/html) without a title"),
            (format!("200 OK\r\n\r\n{PAGE}"), "with HTTP 200 OK, a page “Sign in”"),
            (
                "302 Found\r\nLocation: https://portal.example/in?id=hunter2\r\nContent-Length: 0\r\n\r\n"
                    .into(),
                "HTTP 302 Found, which leads to https://portal.example; a user may have to sign in there",
            ),
            (
                format!("502 Bad Gateway\r\n{html}{PAGE}"),
                "HTTP 502 Bad Gateway, a page (text/html) “Sign in”",
            ),
            (
                format!("403 Forbidden\r\n{html}{PAGE}"),
                "a page (text/html) “Sign in”; it has to allow this host",
            ),
        ] {
            let answer = format!("HTTP/1.1 {answer}").leak();
            let failure = proxied("", answer).await.0.unwrap_err();
            assert!(failure.text.starts_with("the proxy 127.0.0.1:"), "{failure}");
            assert!(failure.text.contains(words) && !failure.text.contains("hunter2"), "{failure}");
        }
    }

    /// Such headers mean nothing where the proxy has connected (RFC 9110, section 9.3.6).
    #[tokio::test]
    async fn a_tunnel_may_come_with_headers_of_a_body() {
        for headers in
            ["Content-Length: 0\r\nContent-Type: text/html", "Content-Type: text/html", "Content-Length: 17"]
        {
            let answer = format!("HTTP/1.0 200 OK\r\n{headers}\r\n\r\n").leak();
            assert_eq!(proxied("", answer).await.0.unwrap(), b"ping", "{headers}");
        }
    }

    #[tokio::test]
    async fn a_proxy_that_is_not_there_is_named() {
        let environment = Environment::read(|name| {
            (name == "HTTPS_PROXY").then(|| "http://me:hunter2@127.0.0.1:1".to_owned())
        });
        let network = Network::new(&environment, None).unwrap();
        let failure = network.connect("ssm.us-west-2.amazonaws.com", 443).await.err().unwrap();
        assert_eq!(failure.class, Class::Network);
        assert!(failure.text.starts_with("connecting to the proxy 127.0.0.1:1: "), "{failure}");
        assert!(failure.text.contains("refused") && !failure.text.contains("hunter2"), "{failure}");
    }
}
