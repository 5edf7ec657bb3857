//! The page: three files, in the program. No other host is asked for anything, and the browser is told so.

use http::HeaderValue;
use http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use http::{HeaderName, Response};
use http_body_util::Full;

use super::answers::{Answer, full};

/// Only what comes from here, and nothing that is written into the page itself.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'";

const FILES: [(&str, &str, &str); 3] = [
    ("/", "text/html; charset=utf-8", include_str!("page/page.html")),
    ("/page.css", "text/css; charset=utf-8", include_str!("page/page.css")),
    ("/page.js", "text/javascript; charset=utf-8", include_str!("page/page.js")),
];

/// The file of this path, if it is one of them.
pub fn file(path: &str) -> Option<Response<Answer>> {
    let (_, kind, text) = FILES.iter().find(|(name, ..)| *name == path)?;
    let mut response = Response::new(full(Full::from(*text)));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    // The three belong together, and an upgrade changes them.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(
        HeaderName::from_static("cross-origin-opener-policy"),
        HeaderValue::from_static("same-origin"),
    );
    Some(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_small_and_asks_nobody_else() {
        let all: String = FILES.iter().map(|(.., text)| *text).collect();
        assert!(all.len() < 100 * 1024, "{} bytes", all.len());
        // Names of XML, which nobody fetches.
        let text = all.replace("http://www.w3.org/2000/svg", "");
        for foreign in ["http://", "https://", "//cdn", "@import", "innerHTML", "eval("] {
            assert!(!text.contains(foreign), "{foreign}");
        }
    }
}
