//! A corporate network's proxy: CONNECT, user and password if need be, and the names of the service leading to the lab.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use crate::lab::Lab;

/// The longest head of a request.
const LONGEST_HEAD: usize = 8 * 1024;

/// A running proxy. It ends, with all its connections, when it is dropped.
pub struct Proxy {
    address: SocketAddr,
    seen: Arc<Seen>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Seen {
    asked: Mutex<Vec<String>>,
    refuses: Mutex<Option<(u16, &'static str)>>,
}

impl Proxy {
    /// Starts one that leads every CONNECT to `service`, for whoever has `USER:PASSWORD`.
    ///
    /// # Errors
    /// No port can be bound.
    pub async fn start(service: SocketAddr, user: Option<&str>) -> std::io::Result<Self> {
        Self::begin(service, user, None).await
    }

    /// Starts one that is itself spoken to over TLS, with the lab's certificate.
    ///
    /// # Errors
    /// No port can be bound.
    pub async fn start_tls(lab: &Lab, user: Option<&str>) -> std::io::Result<Self> {
        Self::begin(lab.addresses().tls, user, Some(lab.acceptor())).await
    }

    async fn begin(
        service: SocketAddr,
        user: Option<&str>,
        tls: Option<TlsAcceptor>,
    ) -> std::io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let seen = Arc::new(Seen::default());
        let expected = user.map(|user| format!("Basic {}", BASE64_STANDARD.encode(user)));
        let (noted, mut connections) = (seen.clone(), tokio::task::JoinSet::new());
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (tls, expected, noted) = (tls.clone(), expected.clone(), noted.clone());
                connections.spawn(async move {
                    match tls {
                        None => serve(stream, service, expected, noted).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                serve(stream, service, expected, noted).await;
                            }
                        }
                    }
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self { address, seen, task })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What was asked for, `HOST:PORT`, in its order; refused ones included.
    pub fn asked(&self) -> Vec<String> {
        self.seen.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Refuses everything with this status from now on, or nothing any more.
    pub fn refuse(&self, status: Option<(u16, &'static str)>) {
        *self.seen.refuses.lock().unwrap_or_else(PoisonError::into_inner) = status;
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One connection. Whatever goes wrong on it is the client's to notice.
async fn serve<S>(mut client: S, service: SocketAddr, expected: Option<String>, seen: Arc<Seen>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") && head.len() < LONGEST_HEAD {
        match client.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let Some(target) = head.strip_prefix("CONNECT ").and_then(|rest| rest.split(' ').next()) else {
        let _ = client.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").await;
        return;
    };
    seen.asked.lock().unwrap_or_else(PoisonError::into_inner).push(target.to_owned());
    let authorization = head
        .lines()
        .filter_map(|line| line.split_once(": "))
        .find_map(|(name, value)| name.eq_ignore_ascii_case("proxy-authorization").then(|| value.to_owned()));
    let mut refusal = *seen.refuses.lock().unwrap_or_else(PoisonError::into_inner);
    if expected.is_some() && expected != authorization {
        refusal = Some((407, "Proxy Authentication Required"));
    }
    if let Some((status, reason)) = refusal {
        let body = "<html>the corporate proxy says no</html>";
        let answer = format!("HTTP/1.1 {status} {reason}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let _ = client.write_all(answer.as_bytes()).await;
        return;
    }
    let Ok(mut service) = TcpStream::connect(service).await else { return };
    if client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await.is_ok() {
        let _ = copy_bidirectional(&mut client, &mut service).await;
    }
}
