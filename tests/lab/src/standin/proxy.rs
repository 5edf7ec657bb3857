//! PURE. Which proxy a connection takes, by the rules of Go's `ProxyFromEnvironment` as far as TLS goes.

use std::net::IpAddr;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

/// A CONNECT proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proxy {
    /// `host:port`.
    pub address: String,
    /// The value of `Proxy-Authorization`, if the URL names a user and a password.
    pub authorization: Option<String>,
}

/// The proxy for a TLS connection to `host:port`, `None` for a direct one. `variable` reads the environment.
///
/// # Errors
/// The variable holds no URL of an HTTP proxy; in words.
pub fn for_host(
    host: &str,
    port: u16,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Option<Proxy>, String> {
    let either = |upper: &str| {
        variable(upper).filter(|text| !text.is_empty()).or_else(|| variable(&upper.to_lowercase()))
    };
    let Some(url) = either("HTTPS_PROXY").filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    if is_loopback(host) || is_excepted(host, port, &either("NO_PROXY").unwrap_or_default()) {
        return Ok(None);
    }
    parse(&url).map(Some)
}

fn parse(url: &str) -> Result<Proxy, String> {
    let rest = match url.split_once("://") {
        Some(("http", rest)) => rest,
        Some((scheme, _)) => return Err(format!("proxy: unknown scheme: {scheme}")),
        None => url,
    };
    let rest = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let (user, host) = match rest.rsplit_once('@') {
        Some((user, host)) => (Some(user), host),
        None => (None, rest),
    };
    if host.is_empty() {
        return Err(format!("invalid proxy address {url:?}"));
    }
    // A user without a password is not sent.
    let authorization = user.and_then(|user| user.split_once(':')).map(|(user, password)| {
        let pair = [&unescape(user)[..], b":", &unescape(password)[..]].concat();
        format!("Basic {}", BASE64_STANDARD.encode(pair))
    });
    let has_port = host.rfind(':') > host.rfind(']');
    let address = if has_port { host.into() } else { format!("{host}:80") };
    Ok(Proxy { address, authorization })
}

fn unescape(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('%') {
        out.extend_from_slice(&rest.as_bytes()[..at]);
        let escaped = rest.get(at + 1..at + 3).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        out.push(escaped.unwrap_or(b'%'));
        rest = &rest[at + if escaped.is_some() { 3 } else { 1 }..];
    }
    out.extend_from_slice(rest.as_bytes());
    out
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Whether `NO_PROXY` names the host: itself, a domain that it is in, or everything.
fn is_excepted(host: &str, port: u16, list: &str) -> bool {
    let host = host.to_lowercase();
    list.split(',').map(|entry| entry.trim().to_lowercase()).filter(|entry| !entry.is_empty()).any(|entry| {
        let (name, only_port) = match entry.rsplit_once(':') {
            Some((name, digits)) if digits.parse::<u16>().is_ok() => {
                (name.to_owned(), digits.parse::<u16>().ok())
            }
            _ => (entry.clone(), None),
        };
        let domain = name.trim_start_matches("*.").trim_start_matches('.');
        let inside = host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'));
        let itself = host == domain && !name.starts_with(['.', '*']);
        name == "*" || (itself || inside) && only_port.is_none_or(|only| only == port)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxy(host: &str, https_proxy: &str, no_proxy: &str) -> Option<Proxy> {
        for_host(host, 443, |name| match name {
            "HTTPS_PROXY" => Some(https_proxy.into()),
            "NO_PROXY" => Some(no_proxy.into()),
            _ => None,
        })
        .unwrap()
    }

    #[test]
    fn the_users_password_is_sent() {
        let proxy =
            proxy("ssmmessages.us-west-2.amazonaws.com", "http://user:p%40ss@127.0.0.1:8080/", "").unwrap();
        assert_eq!(proxy.address, "127.0.0.1:8080");
        assert_eq!(proxy.authorization.as_deref(), Some("Basic dXNlcjpwQHNz"));
        assert_eq!(super::parse("proxy.example").unwrap().address, "proxy.example:80");
        assert_eq!(super::parse("http://user@proxy:1").unwrap().authorization, None);
        assert!(super::parse("ftp://proxy").is_err());
    }

    #[test]
    fn loopback_and_excepted_hosts_are_reached_directly() {
        for host in ["localhost", "127.0.0.1", "::1"] {
            assert_eq!(proxy(host, "http://p:1", ""), None);
        }
        for (no_proxy, direct) in [
            ("*", true),
            ("amazonaws.com", true),
            (".amazonaws.com", true),
            ("ssm.amazonaws.com", true),
            ("ssm.amazonaws.com:443", true),
            ("ssm.amazonaws.com:80", false),
            (".ssm.amazonaws.com", false),
            ("zonaws.com", false),
            ("other, amazonaws.com", true),
        ] {
            assert_eq!(proxy("ssm.amazonaws.com", "http://p:1", no_proxy).is_none(), direct, "{no_proxy}");
        }
        assert_eq!(for_host("ssm.amazonaws.com", 443, |_| None), Ok(None));
    }
}
