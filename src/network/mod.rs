//! The way out of this host: through which proxy, trusting whom, and the connections that are made so. The API's calls,
//! the data channels and what the gateway forwards all go this way.

mod answer;
mod connect;
mod environment;
mod issuer;
mod proxies;
mod switch;
mod trust;

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};

pub use answer::Answer;
pub use environment::Environment;
use proxies::{Proxies, authority};
pub use switch::{NoAnswer, Switched, beginning, switch};
use trust::Trust;
pub use trust::destination_tls;

use crate::tunnel::failure::Failure;

/// What became of a connection, for people: a library's own words may be an address in its documentation.
pub fn words(error: &io::Error) -> String {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    match error.kind() {
        UnexpectedEof | ConnectionReset | ConnectionAborted | BrokenPipe => CUT.to_owned(),
        _ => error.to_string(),
    }
}

/// The other side, or something on the way there, has ended it without a word.
pub const CUT: &str = "the connection was cut";

/// A connection, with or without TLS.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

/// The way out, for everything that trusts the same certificate authorities.
#[derive(Clone)]
pub struct Network(Arc<Inner>);

struct Inner {
    proxies: Proxies,
    trust: Trust,
}

impl Network {
    /// What `environment` says, and `ca_file` where a tunnel has one: a PEM file of authorities that are trusted beside
    /// the system's.
    ///
    /// # Errors
    /// `ca_file` cannot be read or holds anything but certificates of authorities. What is wrong in the environment is
    /// an error where it is needed.
    pub fn new(environment: &Environment, ca_file: Option<&Path>) -> Result<Self, Failure> {
        let trust = Trust::new(environment, ca_file);
        if ca_file.is_some() {
            trust.config()?;
        }
        Ok(Self(Arc::new(Inner { proxies: Proxies::new(environment), trust })))
    }

    /// The proxy that `host` is reached through, as `HOST:PORT`; `None` where it is reached directly.
    ///
    /// # Errors
    /// The environment names a proxy that cannot be used.
    pub fn proxy_for(&self, host: &str, port: u16) -> Result<Option<String>, Failure> {
        let proxy = self.0.proxies.way(host, port)?;
        // Without the user and password that may stand before it.
        Ok(proxy.map(|proxy| {
            let uri = proxy.uri();
            let port = uri.port_u16().map_or(String::new(), |port| format!(":{port}"));
            format!("{}{port}", uri.host().unwrap_or_default())
        }))
    }

    /// Whom a connection to `host` is made to.
    ///
    /// # Errors
    /// The environment names a proxy that cannot be used.
    pub fn peer(&self, host: &str, port: u16) -> Result<Peer, Failure> {
        Ok(Peer { host: host.to_owned(), port, proxy: self.proxy_for(host, port)? })
    }
}

/// Whom a connection is made to, and through which proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    host: String,
    port: u16,
    /// As `HOST:PORT`.
    proxy: Option<String>,
}

impl Peer {
    /// Without a proxy, whatever the environment says.
    pub fn direct(host: &str, port: u16) -> Self {
        Self { host: host.to_owned(), port, proxy: None }
    }

    /// Whether a proxy makes the connection.
    pub fn is_proxied(&self) -> bool {
        self.proxy.is_some()
    }

    /// What an operator can do where something else answers in its place.
    fn remedy(&self) -> &'static str {
        match self.proxy {
            Some(_) => {
                "the proxy, or something behind it, answers in its place: have it let this host pass untouched, or name \
                 the host in NO_PROXY"
            }
            None => {
                "something on the way answers in its place, such as a captive portal or an inspecting firewall: have it \
                 let this host pass, set HTTPS_PROXY where the network wants one, or correct the endpoint if the \
                 configuration names it"
            }
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&authority(&self.host, self.port))?;
        match &self.proxy {
            Some(proxy) => write!(f, " through the proxy {proxy}"),
            None => Ok(()),
        }
    }
}

/// Says nothing of the proxy, which may have a password.
impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Network").finish_non_exhaustive()
    }
}
