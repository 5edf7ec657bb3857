//! Who may ask what: before anything is answered.

use std::net::IpAddr;

use http::header::{ALLOW, HOST, HeaderValue};
use http::{Method, Request, Response, StatusCode};

use super::answers::{Answer, plain};

/// The names under which the server may be asked.
#[derive(Debug)]
pub struct Guard {
    hosts: Vec<String>,
}

impl Guard {
    /// Lets through addresses, `localhost`, the host's own name with and without its domain, and these.
    pub fn new(more: &[String], own: &str) -> Self {
        let short = own.split('.').next().unwrap_or_default();
        let all = more.iter().map(String::as_str).chain([own, short, "localhost"]);
        Self { hosts: all.filter(|host| !host.is_empty()).map(str::to_ascii_lowercase).collect() }
    }

    /// The refusal, if it is one.
    pub fn refuse<B>(&self, request: &Request<B>) -> Option<Response<Answer>> {
        if ![Method::GET, Method::HEAD].contains(request.method()) {
            let mut refusal =
                plain(StatusCode::METHOD_NOT_ALLOWED, "Only GET and HEAD: nothing can be changed here.\n");
            refusal.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return Some(refusal);
        }
        // A web site whose name suddenly leads to 127.0.0.1 has its visitors' browsers ask under that name. What is not a
        // browser (a load balancer that speaks HTTP/1.0) may leave it out.
        let mut hosts = request.headers().get_all(HOST).into_iter();
        let allowed = match (hosts.next(), hosts.next()) {
            (None, _) => true,
            (Some(host), None) => host.to_str().is_ok_and(|host| self.knows(host)),
            (Some(_), Some(_)) => false,
        };
        (!allowed).then(|| {
            let text =
                "This is not the host that was asked for. If it is, name it: autossm web --host NAME\n";
            plain(StatusCode::MISDIRECTED_REQUEST, text)
        })
    }

    fn knows(&self, host: &str) -> bool {
        let name = match host.strip_prefix('[') {
            Some(rest) => rest.split(']').next().unwrap_or_default(),
            None => host.rsplit_once(':').map_or(host, |(name, _port)| name),
        };
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        name.parse::<IpAddr>().is_ok() || self.hosts.contains(&name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(guard: &Guard, method: Method, hosts: &[&str]) -> Option<StatusCode> {
        let mut request = Request::builder().method(method);
        for host in hosts {
            request = request.header(HOST, *host);
        }
        guard.refuse(&request.body(()).unwrap()).map(|refusal| refusal.status())
    }

    #[test]
    fn names_of_others_are_refused() {
        let guard = Guard::new(&["tunnels.corp.example".into()], "bastion-1.corp.example");
        for host in [
            "127.0.0.1:9464",
            "[::1]:9464",
            "10.1.2.3",
            "localhost:9464",
            "LOCALHOST",
            "bastion-1:9464",
            "bastion-1.corp.example",
            "tunnels.corp.example.",
        ] {
            assert_eq!(status(&guard, Method::GET, &[host]), None, "{host}");
        }
        for host in ["evil.example", "localhost.evil.example:9464", "127.0.0.1.evil.example", "", ":80"] {
            assert_eq!(status(&guard, Method::GET, &[host]), Some(StatusCode::MISDIRECTED_REQUEST), "{host}");
        }
        assert_eq!(status(&guard, Method::GET, &[]), None);
        let two = status(&guard, Method::GET, &["localhost", "evil.example"]);
        assert_eq!(two, Some(StatusCode::MISDIRECTED_REQUEST));
    }

    #[test]
    fn nothing_can_be_changed() {
        let guard = Guard::new(&[], "");
        for method in [Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS, Method::TRACE] {
            assert_eq!(status(&guard, method, &["localhost"]), Some(StatusCode::METHOD_NOT_ALLOWED));
        }
        assert_eq!(status(&guard, Method::HEAD, &["localhost"]), None);
    }
}
