//! Listen addresses: `127.0.0.1:15432`, `[::1]:15432` or `unix:/path`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Component, PathBuf};

use super::Listen;
use super::problem::quoted;
use super::value::Wrong;

/// `sun_path` has 108 bytes, the last of them a NUL.
const UNIX_PATH_MAX: usize = 107;

const EXAMPLES: &str = "write \"127.0.0.1:15432\", \"[::1]:15432\" or \"unix:/run/autossm/NAME/db.sock\"";

/// Reads one address.
pub(super) fn parse(text: &str) -> Result<Listen, Wrong> {
    if let Some(path) = text.strip_prefix("unix:") {
        return unix(path);
    }
    if text.starts_with('/') {
        return Err(Wrong::new(
            format!("{} is not an address", quoted(text)),
            format!("write \"unix:{text}\" for a socket file"),
        ));
    }
    let (host, port) = match text.rsplit_once(':') {
        // `::1` alone is an address without a port, not a host `:` with port 1.
        Some((host, port)) if text.parse::<Ipv6Addr>().is_err() => (host, port),
        _ if text.parse::<u16>().is_ok() => ("", text),
        _ if bare(text).parse::<IpAddr>().is_ok() => {
            let ip = if text.contains(':') { format!("[{}]", bare(text)) } else { text.to_owned() };
            let what = format!("{} has no port", quoted(text));
            return Err(Wrong::new(what, format!("write \"{ip}:PORT\", a port from 1 to 65535")));
        }
        _ => return Err(Wrong::new(format!("{} is not an address with a port", quoted(text)), EXAMPLES)),
    };
    let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    let Some(port) = port.parse::<u16>().ok().filter(|port| digits && *port > 0) else {
        let what = if port.is_empty() {
            format!("{} has no port", quoted(text))
        } else if digits {
            format!("there is no port {port} to listen on")
        } else {
            format!("{} is not a port", quoted(port))
        };
        return Err(Wrong::new(what, "a port is a number from 1 to 65535"));
    };
    match host {
        "" | "*" => Err(Wrong::new(
            format!("{} names no address to listen on", quoted(text)),
            format!("write \"127.0.0.1:{port}\" for this host alone, \"0.0.0.0:{port}\" for everybody"),
        )),
        "localhost" => Err(Wrong::new(
            "`localhost` is a name, and may stand for two addresses",
            format!("write \"127.0.0.1:{port}\", or a list: [\"127.0.0.1:{port}\", \"[::1]:{port}\"]"),
        )),
        _ => match text.parse::<SocketAddr>() {
            Ok(address) => Ok(Listen::Tcp(address)),
            Err(_) if host.parse::<Ipv6Addr>().is_ok() => Err(Wrong::new(
                format!("{} lacks brackets around its address", quoted(text)),
                format!("write \"[{host}]:{port}\""),
            )),
            Err(_) => Err(Wrong::new(format!("{} is not an IP address", quoted(host)), EXAMPLES)),
        },
    }
}

fn bare(ip: &str) -> &str {
    ip.strip_prefix('[').and_then(|ip| ip.strip_suffix(']')).unwrap_or(ip)
}

fn unix(path: &str) -> Result<Listen, Wrong> {
    let bytes = path.len();
    if !path.starts_with('/') {
        return Err(Wrong::new(
            format!("the socket's path {} is relative", quoted(path)),
            "write a path that begins with /, such as \"unix:/run/autossm/NAME/db.sock\"",
        ));
    }
    if bytes > UNIX_PATH_MAX {
        return Err(Wrong::new(
            format!("the socket's path is {bytes} bytes long"),
            format!("Linux allows {UNIX_PATH_MAX} bytes: choose a shorter path"),
        ));
    }
    let path = PathBuf::from(path);
    let named = matches!(path.components().next_back(), Some(Component::Normal(_)));
    let plain = !path.components().any(|part| part == Component::ParentDir);
    if !named || !plain || path.as_os_str().as_encoded_bytes().ends_with(b"/") || bytes == 0 {
        return Err(Wrong::new(
            format!("{} names no socket file", quoted(&path.to_string_lossy())),
            "write the whole path of a file, without `..`, such as \"unix:/run/autossm/NAME/db.sock\"",
        ));
    }
    if path.as_os_str().as_encoded_bytes().contains(&0) {
        return Err(Wrong::new("the socket's path contains a NUL byte", "leave it out"));
    }
    Ok(Listen::Unix(path))
}

impl Listen {
    /// Whether two sockets cannot listen on both at once.
    pub fn overlaps(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Tcp(one), Self::Tcp(two)) => one.port() == two.port() && covers(one, two),
            (Self::Unix(one), Self::Unix(two)) => one == two,
            _ => false,
        }
    }
}

fn covers(one: &SocketAddr, two: &SocketAddr) -> bool {
    // `[::]` takes IPv4 connections too (net.ipv6.bindv6only is 0 on every distribution), and `[::ffff:127.0.0.1]` is
    // an IPv4 address.
    let any = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    let (a, b) = (one.ip().to_canonical(), two.ip().to_canonical());
    let any4 = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let scopes_differ =
        matches!((one, two), (SocketAddr::V6(a), SocketAddr::V6(b)) if a.scope_id() != b.scope_id());
    a == any
        || b == any
        || (a == any4 && b.is_ipv4())
        || (b == any4 && a.is_ipv4())
        || (a == b && !scopes_differ)
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn wrong(text: &str) -> String {
        parse(text).unwrap_err().what
    }

    #[test]
    fn addresses_are_read_and_shown_as_they_were_written() {
        for text in ["127.0.0.1:15432", "[::1]:1", "0.0.0.0:65535", "[fe80::1%3]:80", "unix:/run/a.sock"] {
            assert_eq!(parse(text).unwrap().to_string(), text);
        }
        let longest = format!("unix:/{}", "x".repeat(UNIX_PATH_MAX - 1));
        assert!(parse(&longest).is_ok());
        assert_eq!(wrong(&format!("{longest}x")), "the socket's path is 108 bytes long");
    }

    #[test]
    fn what_is_no_address_is_told_apart() {
        for (text, what) in [
            ("127.0.0.1:0", "there is no port 0 to listen on"),
            ("127.0.0.1:70000", "there is no port 70000 to listen on"),
            ("127.0.0.1:http", "`http` is not a port"),
            ("127.0.0.1:+80", "`+80` is not a port"),
            ("127.0.0.1:", "`127.0.0.1:` has no port"),
            ("127.0.0.1", "`127.0.0.1` has no port"),
            ("::1", "`::1` has no port"),
            ("[::1]", "`1]` is not a port"),
            ("2001:db8::1:99999", "there is no port 99999 to listen on"),
            ("15432", "`15432` names no address to listen on"),
            (":15432", "`:15432` names no address to listen on"),
            ("*:15432", "`*:15432` names no address to listen on"),
            ("localhost:15432", "`localhost` is a name, and may stand for two addresses"),
            ("db.internal:15432", "`db.internal` is not an IP address"),
            ("/run/a.sock", "`/run/a.sock` is not an address"),
            ("unix:a.sock", "the socket's path `a.sock` is relative"),
            ("unix:", "the socket's path `` is relative"),
            ("unix:/", "`/` names no socket file"),
            ("unix:/run/", "`/run/` names no socket file"),
            ("unix:/run/../a.sock", "`/run/../a.sock` names no socket file"),
            ("", "`` is not an address with a port"),
        ] {
            assert_eq!(wrong(text), what, "{text}");
        }
    }

    #[test]
    fn overlaps_are_those_that_linux_refuses() {
        for (one, two, overlap) in [
            ("127.0.0.1:1", "127.0.0.1:1", true),
            ("127.0.0.1:1", "127.0.0.1:2", false),
            ("127.0.0.1:1", "127.0.0.2:1", false),
            ("0.0.0.0:1", "127.0.0.1:1", true),
            ("0.0.0.0:1", "[::1]:1", false),
            ("[::]:1", "[::1]:1", true),
            ("[::]:1", "127.0.0.1:1", true),
            ("[::]:1", "0.0.0.0:1", true),
            ("[::]:1", "127.0.0.1:2", false),
            ("[::ffff:127.0.0.1]:1", "127.0.0.1:1", true),
            ("[fe80::1%2]:1", "[fe80::1%3]:1", false),
            ("unix:/run/a", "unix:/run//./a", true),
            ("unix:/run/a", "unix:/run/b", false),
            ("unix:/run/a", "127.0.0.1:1", false),
        ] {
            let (a, b) = (parse(one).unwrap(), parse(two).unwrap());
            assert_eq!((a.overlaps(&b), b.overlaps(&a)), (overlap, overlap), "{one} {two}");
        }
    }

    proptest! {
        #[test]
        fn every_text_is_read_or_refused(text in "(unix:)?[\\[\\]:./%*a-f0-9\\PC]{0,40}") {
            if let Ok(listen) = parse(&text) {
                prop_assert_eq!(parse(&listen.to_string()).unwrap(), listen);
            }
        }
    }
}
