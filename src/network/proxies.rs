//! PURE. Which proxy a host is reached through.

use http::Uri;
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use secrecy::ExposeSecret;

use super::Environment;
use crate::tunnel::failure::{Class, Failure};

/// The proxy that the environment names, and the hosts that are reached without it.
pub(super) struct Proxies(Result<Option<Matcher>, Failure>);

impl Proxies {
    /// A proxy that cannot be used is an error only where it is needed.
    pub(super) fn new(environment: &Environment) -> Self {
        let Some((name, url)) = &environment.proxy else { return Self(Ok(None)) };
        let url = url.expose_secret().to_owned();
        let wrong = |what: &str| {
            // The value is not repeated: it may hold a password.
            let text = format!(
                "{name} {what}; write http://HOST:PORT, or http://USER:PASSWORD@HOST:PORT with all but letters and \
                 digits of the password percent-encoded"
            );
            Err(Failure::new(Class::NeedsChange, text))
        };
        let scheme = url.split_once("://").map_or("http", |(scheme, _)| scheme).to_ascii_lowercase();
        if scheme != "http" && scheme != "https" {
            return Self(wrong("is not an HTTP proxy"));
        }
        let example = Uri::from_static("https://ssm.us-east-1.amazonaws.com");
        let without_exceptions = Matcher::builder().https(&url).build().intercept(&example);
        // A password that is not encoded may end where the host would begin.
        if !without_exceptions.is_some_and(|proxy| is_host_and_port(proxy.uri())) || url.contains(['#', '?'])
        {
            return Self(wrong("is not the address of a proxy"));
        }
        let matcher = Matcher::builder().https(url).no(hosts(&environment.no_proxy)).build();
        Self(Ok(Some(matcher)))
    }

    /// The proxy for `host`, if it is not to be reached directly. This host itself is never reached through a proxy.
    pub(super) fn way(&self, host: &str, port: u16) -> Result<Option<Intercept>, Failure> {
        if is_this_host(host) {
            return Ok(None);
        }
        let Some(matcher) = self.0.as_ref().map_err(Clone::clone)? else { return Ok(None) };
        let Ok(uri) = format!("https://{}", authority(host, port)).parse() else { return Ok(None) };
        Ok(matcher.intercept(&uri))
    }
}

fn is_host_and_port(uri: &Uri) -> bool {
    let Some(authority) = uri.authority() else { return false };
    let port = authority.as_str().strip_prefix(authority.host());
    port.is_some_and(|port| port.is_empty() || uri.port_u16().is_some())
}

fn is_this_host(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}

/// The variable's entries as the matcher knows them. `*.internal` and `internal.` are usual and mean `.internal` and
/// `internal`; an address of IPv6 may stand in brackets, and whatever there is may have a port.
fn hosts(no_proxy: &str) -> String {
    let entries = no_proxy.split([',', ' ', '\t', '\n', '\r']).filter(|entry| !entry.is_empty());
    entries.map(host).collect::<Vec<_>>().join(",")
}

/// One entry, without brackets and port.
fn host(entry: &str) -> String {
    let (host, rest) = match entry.strip_prefix('[').and_then(|inside| inside.split_once(']')) {
        Some((host, rest)) => (host, rest),
        None => {
            // An address of IPv6 has more colons than one, and no port where it has no brackets.
            let network = entry.find('/').unwrap_or(entry.len());
            let (host, rest) = entry.split_at(network);
            match host.split_once(':') {
                Some((host, port)) if is_number(port) => (host, rest),
                _ => (host, rest),
            }
        }
    };
    // What is left is the length of a network's prefix, a port, or both.
    let length = rest.strip_prefix('/').map(|rest| rest.split(':').next().unwrap_or_default());
    let host = host.strip_prefix('*').filter(|name| name.starts_with('.')).unwrap_or(host);
    let host = host.strip_suffix('.').filter(|name| !name.is_empty()).unwrap_or(host);
    if host == "*" {
        // To the matcher it means names alone.
        return "*,0.0.0.0/0,::/0".to_owned();
    }
    length.map_or_else(|| host.to_owned(), |length| format!("{host}/{length}"))
}

fn is_number(port: &str) -> bool {
    port.bytes().all(|byte| byte.is_ascii_digit())
}

/// `HOST:PORT`, with an IPv6 address in brackets.
pub(super) fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(variables: &[(&str, &str)]) -> Proxies {
        let get = |name: &str| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        };
        Proxies::new(&Environment::read(get))
    }

    fn way(proxies: &Proxies, host: &str) -> Option<String> {
        proxies.way(host, 443).unwrap().map(|proxy| proxy.uri().authority().unwrap().to_string())
    }

    #[test]
    fn the_environment_names_the_proxy_and_its_exceptions() {
        const API: &str = "ssm.us-west-2.amazonaws.com";
        let none = proxies(&[("HTTP_PROXY", "http://other:1"), ("ALL_PROXY", "socks5://other:1")]);
        assert_eq!(way(&none, API), None);
        let empty = proxies(&[("HTTPS_PROXY", ""), ("https_proxy", "http://small:3128")]);
        assert_eq!(way(&empty, API).as_deref(), Some("small:3128"));
        let plain = proxies(&[("HTTPS_PROXY", "proxy:3128"), ("https_proxy", "http://small:1")]);
        assert_eq!(way(&plain, API).as_deref(), Some("proxy:3128"));

        let all_but = proxies(&[
            ("HTTPS_PROXY", "http://proxy:3128"),
            (
                "NO_PROXY",
                "169.254.169.254, .vpce.amazonaws.com,*.corp.example,10.0.0.0/8,db.internal:443,fd00::/8",
            ),
        ]);
        for (host, proxied) in [
            (API, true),
            ("vpce-1.ssm.us-west-2.vpce.amazonaws.com", false),
            ("api.corp.example", false),
            ("corp.example.evil", true),
            ("10.1.2.3", false),
            ("11.1.2.3", true),
            ("db.internal", false),
            ("fd00::17", false),
            ("2600::17", true),
            // Never, whatever the variable says.
            ("localhost", false),
            ("127.0.0.1", false),
            ("127.64.1.2", false),
            ("::1", false),
            ("::ffff:127.0.0.1", false),
        ] {
            assert_eq!(way(&all_but, host).is_some(), proxied, "{host}");
        }
        let nothing = proxies(&[("HTTPS_PROXY", "http://proxy:3128"), ("NO_PROXY", "*")]);
        assert_eq!(way(&nothing, API), None);
        let no_aws = proxies(&[("HTTPS_PROXY", "http://proxy:3128"), ("no_proxy", "amazonaws.com")]);
        assert_eq!((way(&no_aws, API), way(&no_aws, "example.com").is_some()), (None, true));
    }

    /// Each entry alone, with hosts that it covers and hosts that it does not.
    #[test]
    fn an_entry_may_have_brackets_a_port_or_a_network() {
        for (entry, direct, proxied) in [
            ("[fd00::1]:443", "fd00::1", "fd00::2"),
            ("[fd00::1]", "fd00::1", "fd00::2"),
            ("fd00::1", "fd00::1 fd00:0:0::1", "fd00::2"),
            ("[FD00::1]:8443", "fd00::1", "fd00::2"),
            ("fd00::/8", "fd00::17 fd12:3456::1", "2600::17"),
            ("[fd00::]/8", "fd00::17", "2600::17"),
            ("[fd00::/8]", "fd00::17", "2600::17"),
            ("[fd00::]/8:443", "fd00::17", "2600::17"),
            ("fd00::/8:443", "fd00::17", "2600::17"),
            ("10.1.2.3", "10.1.2.3", "10.1.2.4"),
            ("10.1.2.3:443", "10.1.2.3", "10.1.2.4"),
            ("10.0.0.0/8", "10.1.2.3", "11.1.2.3"),
            ("10.0.0.0/8:443", "10.1.2.3", "11.1.2.3"),
            ("10.1.2.3/16", "10.1.9.9", "10.2.2.3"),
            ("db.internal", "db.internal a.db.internal DB.Internal", "adb.internal internal"),
            ("db.internal:443", "db.internal a.db.internal", "adb.internal"),
            ("db.internal.", "db.internal", "adb.internal"),
            ("db.internal.:443", "db.internal", "adb.internal"),
            (".internal", "internal db.internal", "evilinternal internal.evil"),
            (".internal:443", "internal db.internal", "evilinternal"),
            ("*.internal", "db.internal", "evilinternal"),
            ("*.internal:443", "db.internal", "evilinternal"),
            ("*", "db.internal 10.1.2.3 fd00::1", ""),
            ("*:443", "db.internal 10.1.2.3 fd00::1", ""),
            ("a.example,\tb.example c.example", "a.example b.example c.example", "d.example"),
            (", ,", "", "db.internal"),
            // Nothing that could be a host: it must not become all of them.
            ("[]:443", "", "db.internal 10.1.2.3 fd00::1"),
            (":443", "", "db.internal 10.1.2.3 fd00::1"),
            (".", "", "db.internal 10.1.2.3 fd00::1"),
            ("[fd00::1", "", "db.internal fd00::1"),
        ] {
            let proxies = proxies(&[("HTTPS_PROXY", "http://proxy:3128"), ("NO_PROXY", entry)]);
            for host in direct.split_whitespace() {
                assert_eq!(way(&proxies, host), None, "{entry}: {host}");
            }
            for host in proxied.split_whitespace() {
                assert_eq!(way(&proxies, host).as_deref(), Some("proxy:3128"), "{entry}: {host}");
            }
        }
    }

    #[test]
    fn a_proxy_that_cannot_be_used_is_an_error_where_it_is_needed_and_keeps_its_password() {
        for url in ["socks5://me:hunter2@proxy:1080", "http://me:hunter#2@", "http://", "ftp://proxy"] {
            let proxies = proxies(&[("https_proxy", url)]);
            assert!(proxies.way("127.0.0.1", 443).unwrap().is_none());
            let failure = proxies.way("ssm.us-west-2.amazonaws.com", 443).unwrap_err();
            assert_eq!(failure.class, Class::NeedsChange, "{url}");
            assert!(failure.text.starts_with("https_proxy is not"), "{failure}");
            assert!(!failure.text.contains("hunter"), "{failure}");
        }
    }
}
