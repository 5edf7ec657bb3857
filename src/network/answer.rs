//! PURE. What answered over HTTP, where it was not what had been asked for: a captive portal's page, a proxy's error.

use std::fmt;

use http::header::{CONTENT_TYPE, LOCATION};
use http::{HeaderMap, StatusCode, Uri};

use super::Peer;
use crate::tunnel::failure::{Class, Failure};

/// Longest words of an answer that are repeated, in characters.
const WORDS: usize = 200;

/// An answer, as far as it can be told on a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    status: StatusCode,
    /// Without its parameters.
    content_type: Option<String>,
    kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    /// HTML, with its title.
    Page(Option<String>),
    /// Elsewhere: scheme and host alone, because what follows may hold a secret.
    Redirect(Option<String>),
    /// An error's words, or a text for people.
    Text(String),
    /// For programs. It may be a service's, cut or changed, and hold a token: nothing of it is repeated.
    Other,
}

impl Answer {
    /// Takes in an answer; `body` may be its beginning alone.
    pub fn new(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Self {
        let header = |name| headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()));
        let content_type = header(CONTENT_TYPE)
            .map(|value| words(value.split(';').next().unwrap_or_default()).to_ascii_lowercase())
            .filter(|name| !name.is_empty());
        let text = String::from_utf8_lossy(body);
        let kind = match &content_type {
            _ if status.is_redirection() => {
                let place = header(LOCATION).and_then(|place| place.parse::<Uri>().ok());
                Kind::Redirect(
                    place.and_then(|place| Some(format!("{}://{}", place.scheme()?, place.host()?))),
                )
            }
            _ if is_html(&text) => Kind::Page(title(&text)),
            Some(name) if name == "text/html" && text.trim().is_empty() => Kind::Page(None),
            Some(name) if name == "text/plain" => Kind::Text(words(&text)),
            _ if status.is_client_error() || status.is_server_error() => Kind::Text(words(&text)),
            _ => Kind::Other,
        };
        Self { status, content_type, kind }
    }

    /// Whether the headers say that a page for a browser follows. What follows may be something else all the same: some
    /// frameworks say so of everything.
    pub fn says_page(headers: &HeaderMap) -> bool {
        let value = headers.get(CONTENT_TYPE).map(|value| value.as_bytes().to_ascii_lowercase());
        value.is_some_and(|value| value.starts_with(b"text/html") || value.starts_with(b"application/xhtml"))
    }

    /// Its status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// Whether it is for a browser, which no service that is called here speaks to.
    pub fn is_for_browsers(&self) -> bool {
        matches!(self.kind, Kind::Page(_) | Kind::Redirect(_))
    }

    /// What its status means for the next attempt.
    pub fn class(&self) -> Class {
        match self.status.as_u16() {
            401 | 403 => Class::Access,
            429 => Class::Throttled,
            _ => Class::Network,
        }
    }

    /// The failure that it is where `wanted` was to come from `peer`: what came, from whom, and what an operator can do.
    pub fn instead_of(&self, wanted: &str, peer: &Peer) -> Failure {
        let mut text = format!("{peer} has answered with {self} instead of {wanted}");
        // A server's error passes by itself.
        if !self.status.is_server_error() {
            text += &format!("; {}", peer.remedy());
        }
        Failure::new(self.class(), text)
    }
}

/// `HTTP 200 OK, a page (text/html) “Sign in”`.
impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HTTP {}", self.status.as_u16())?;
        if let Some(reason) = self.status.canonical_reason() {
            write!(f, " {reason}")?;
        }
        if let Kind::Redirect(place) = &self.kind {
            return place.as_ref().map_or(Ok(()), |place| write!(f, ", which leads to {place}"));
        }
        let content_type = self.content_type.as_deref();
        match (&self.kind, content_type) {
            (Kind::Page(_), Some(name)) => write!(f, ", a page ({name})")?,
            (Kind::Page(_), None) => f.write_str(", a page")?,
            (_, Some(name)) => write!(f, ", {name}")?,
            (_, None) => {}
        }
        match &self.kind {
            Kind::Page(None) => f.write_str(" without a title"),
            Kind::Page(Some(title)) => write!(f, " “{title}”"),
            Kind::Text(said) if !said.is_empty() => write!(f, ": “{said}”"),
            _ => Ok(()),
        }
    }
}

fn is_html(text: &str) -> bool {
    let text = text.trim_start_matches(['\u{feff}', ' ', '\t', '\r', '\n']);
    // XHTML begins as XML does, and so does what some of AWS's APIs say.
    let is_xhtml = || text.starts_with("<?xml") && find(text, "<html").is_some();
    let starts = |with: &str| text.get(..with.len()).is_some_and(|start| start.eq_ignore_ascii_case(with));
    ["<!doctype html", "<html", "<head", "<title", "<body", "<!--"].into_iter().any(starts) || is_xhtml()
}

fn title(page: &str) -> Option<String> {
    let after = &page[find(page, "<title")?..];
    let inside = &after[after.find('>')? + 1..];
    let title = words(&inside[..find(inside, "</title").unwrap_or(inside.len())]);
    let entities =
        [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&#39;", "'"), ("&nbsp;", " "), ("&amp;", "&")];
    let title =
        entities.into_iter().fold(title, |title, (entity, character)| title.replace(entity, character));
    Some(title).filter(|title| !title.is_empty())
}

/// Where a word of ASCII begins, whatever the case of its letters.
fn find(text: &str, word: &str) -> Option<usize> {
    text.as_bytes().windows(word.len()).position(|part| part.eq_ignore_ascii_case(word.as_bytes()))
}

/// Fit for a log line: on one line, without control characters, and not too long.
fn words(text: &str) -> String {
    let text = text.split(char::is_whitespace).filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
    text.chars().filter(|c| !c.is_control()).take(WORDS).collect()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn answer(status: u16, headers: &[(&'static str, &'static str)], body: &str) -> Answer {
        let headers =
            headers.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value)));
        Answer::new(StatusCode::from_u16(status).unwrap(), &headers.collect(), body.as_bytes())
    }

    #[test]
    fn an_answer_is_told_by_status_content_type_and_title() {
        let html = [("content-type", "text/html; charset=utf-8")];
        for (status, headers, body, words) in [
            (
                200,
                &html[..],
                "<!DOCTYPE html>\n<html><head>\n<TITLE lang=en>Guest\n\tWi-Fi &amp; more</Title>",
                "HTTP 200 OK, a page (text/html) “Guest Wi-Fi & more”",
            ),
            (
                503,
                &html,
                "<html><body>busy",
                "HTTP 503 Service Unavailable, a page (text/html) without a title",
            ),
            (200, &html, "", "HTTP 200 OK, a page (text/html) without a title"),
            (200, &[], "\u{feff} <html><title>a\u{1b}[31mb", "HTTP 200 OK, a page “a[31mb”"),
            (
                200,
                &[("content-type", "application/xhtml+xml")],
                "<?xml version=\"1.0\"?><html><title>X</title>",
                "HTTP 200 OK, a page (application/xhtml+xml) “X”",
            ),
            (
                302,
                &[("location", "http://portal.example/login?token=hunter2"), ("content-type", "text/html")],
                "<html><title>Found</title>",
                "HTTP 302 Found, which leads to http://portal.example",
            ),
            (307, &[("location", "/login")], "", "HTTP 307 Temporary Redirect"),
            (
                200,
                &[("content-type", "text/plain")],
                "Blocked by\r\npolicy",
                "HTTP 200 OK, text/plain: “Blocked by policy”",
            ),
            (
                200,
                &[("content-type", "application/x-amz-json-1.1")],
                "{\"TokenValue\":\"hunter2",
                "HTTP 200 OK, application/x-amz-json-1.1",
            ),
            (
                403,
                &[("content-type", "application/json")],
                "{\"message\":\"no\"}\n",
                "HTTP 403 Forbidden, application/json: “{\"message\":\"no\"}”",
            ),
            (599, &[], "", "HTTP 599"),
        ] {
            assert_eq!(answer(status, headers, body).to_string(), words);
        }
        let long = format!("<html><title>{}</title>", "ä".repeat(1 << 16));
        assert!(answer(200, &html, &long).to_string().chars().count() < 300);
        // What a framework calls a page and is none.
        assert!(!answer(200, &html, "{\"Code\":\"Success\"}").is_for_browsers());
    }

    #[test]
    fn a_failure_says_who_answered_and_what_to_do() {
        let peer = |proxy: Option<&str>| Peer {
            host: "ssm.us-west-2.amazonaws.com".into(),
            port: 443,
            proxy: proxy.map(str::to_owned),
        };
        let page = |status| answer(status, &[("content-type", "text/html")], "<html><title>No</title>");
        let failure = page(200).instead_of("the API's answer", &peer(None));
        assert_eq!(failure.class, Class::Network);
        assert!(
            failure.text.starts_with(
                "ssm.us-west-2.amazonaws.com:443 has answered with HTTP 200 OK, a page (text/html) “No” instead of \
                 the API's answer; "
            ) && failure.text.contains("captive portal")
                && failure.text.contains("HTTPS_PROXY"),
            "{failure}"
        );
        let failure = page(403).instead_of("the API's answer", &peer(Some("proxy:3128")));
        assert_eq!(failure.class, Class::Access);
        assert!(
            failure.text.contains("443 through the proxy proxy:3128 has")
                && failure.text.contains("NO_PROXY"),
            "{failure}"
        );
        assert_eq!(page(429).class(), Class::Throttled);
        let failure = page(502).instead_of("the API's answer", &peer(None));
        assert!(failure.text.ends_with("instead of the API's answer"), "{failure}");
    }
}
