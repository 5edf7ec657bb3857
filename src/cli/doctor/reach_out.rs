//! The way to AWS: whether the API and the data channels' host answer, through the proxy in use, and what time it is there.

use std::time::{Duration, SystemTime};

use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;
use bytes::Bytes;
use http::header::{DATE, HOST, USER_AGENT};
use http::{Request, StatusCode, Uri};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use tokio::time::{Instant, timeout};

use super::PATIENCE;
use super::finding::Finding;
use crate::network::{Connection, Network};

/// A signature whose time is further off is refused: 5 minutes, of every service of AWS that verifies them.
///
/// <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-troubleshooting.html>
const REFUSED: Duration = Duration::from_secs(300);
/// Off by this much, something is wrong with the clock already.
const DOUBTFUL: Duration = Duration::from_secs(30);

/// Somebody who can be connected to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Host {
    pub tls: bool,
    pub name: String,
    pub port: u16,
}

impl Host {
    /// Of the API's URL.
    pub fn of_url(url: &str) -> Option<Self> {
        let uri: Uri = url.parse().ok()?;
        let tls = uri.scheme_str() != Some("http");
        let name = uri.host()?.trim_matches(['[', ']']).to_owned();
        Some(Self { tls, name, port: uri.port_u16().unwrap_or(if tls { 443 } else { 80 }) })
    }

    fn authority(&self) -> String {
        let Self { name, port, .. } = self;
        if name.contains(':') { format!("[{name}]:{port}") } else { format!("{name}:{port}") }
    }
}

/// What has become of a request.
struct Answer {
    status: StatusCode,
    /// The service's time less ours, where it says its own.
    ahead: Option<i64>,
    took: Duration,
}

/// Asks the host for `/`: any answer will do. What was found, and by how many seconds its clock is ahead of ours, where that
/// is known; none at all if it cannot be reached.
pub(super) async fn reach(
    check: &'static str,
    what: &str,
    host: &Host,
    network: &Network,
) -> (Finding, Option<Option<i64>>) {
    let authority = host.authority();
    let through = match network.proxy_for(&host.name, host.port) {
        Ok(Some(proxy)) => format!(" through the proxy {proxy}"),
        Ok(None) => String::new(),
        Err(failure) => return (Finding::failure_of(check, &failure.text, "mend HTTPS_PROXY"), None),
    };
    let about = format!("{what} {authority}{through}");
    let asked = timeout(PATIENCE, async {
        let stream = match host.tls {
            true => network.connect_tls(&host.name, host.port).await,
            // Only on this host.
            false => network.connect_directly(&host.name, host.port).await,
        };
        get(stream.map_err(|failure| failure.text)?, &authority).await
    });
    let words = match asked.await {
        Ok(Ok(answer)) => {
            let message = format!("{about} answers after {} ms", answer.took.as_millis());
            return match answer.status {
                // Of a proxy that asks for a password in front of everything.
                StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
                    let remedy = "set HTTPS_PROXY to http://USER:PASSWORD@HOST:PORT";
                    (Finding::failure(check, format!("{message}: HTTP 407"), remedy), None)
                }
                _ => (Finding::ok(check, message), Some(answer.ahead)),
            };
        }
        Ok(Err(words)) => words,
        Err(_) => format!("no answer within {} s", PATIENCE.as_secs()),
    };
    let mut message = format!("{about} cannot be reached: {words}");
    if words.contains("certificate") {
        let issuer = timeout(PATIENCE, network.certificate_issuer(&host.name, host.port)).await;
        if let Ok(Some(issuer)) = issuer {
            message += &format!("; the certificate was issued by {issuer}");
        }
        let remedy = "if your own network has put itself in between: name the PEM file of its authority in `ca_file`, or \
                      in AWS_CA_BUNDLE in the daemon's environment";
        return (Finding::failure(check, message, remedy), None);
    }
    let remedy = match through.is_empty() {
        true => {
            "let this host out to it (security group, network ACL, firewall, DNS; or a VPC endpoint), or set HTTPS_PROXY"
        }
        false => "see whether the proxy runs and lets this host out to it, or name it in NO_PROXY",
    };
    (Finding::failure(check, message, remedy), None)
}

async fn get(stream: Box<dyn Connection>, authority: &str) -> Result<Answer, String> {
    let began = Instant::now();
    let request = Request::get("/").header(HOST, authority).header(USER_AGENT, "autossm");
    let request = request.body(Empty::<Bytes>::new()).map_err(|e| e.to_string())?;
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|e| e.to_string())?;
    let exchange = async move { sender.send_request(request).await };
    // The connection ends with its sender.
    let (answer, _) = tokio::join!(exchange, connection);
    let answer = answer.map_err(|e| e.to_string())?;
    let took = began.elapsed();
    let date = answer.headers().get(DATE).and_then(|date| date.to_str().ok());
    let date = date.and_then(|date| DateTime::from_str(date, Format::HttpDate).ok());
    let ours = DateTime::from(SystemTime::now()).secs();
    Ok(Answer { status: answer.status(), ahead: date.map(|date| date.secs() - ours), took })
}

/// Whether this host's clock will do. `ahead`: by how many seconds the service's is.
pub(super) fn clock(ahead: Option<i64>) -> Finding {
    const CHECK: &str = "clock";
    const REMEDY: &str =
        "set this host's clock by NTP: timedatectl set-ntp true, or chronyd (169.254.169.123 on EC2)";
    let Some(ahead) = ahead else {
        return Finding::skipped(CHECK, "the service does not say what time it is");
    };
    let off = Duration::from_secs(ahead.unsigned_abs());
    let way = if ahead > 0 { "behind" } else { "ahead" };
    let message = format!("this host's clock is {} s {way}", off.as_secs());
    if off > REFUSED {
        Finding::failure(CHECK, format!("{message}: AWS refuses what is signed by it"), REMEDY)
    } else if off > DOUBTFUL {
        Finding::warning(CHECK, format!("{message}; AWS refuses what is signed more than 5 min off"), REMEDY)
    } else {
        Finding::ok(CHECK, "this host's clock agrees with the service's")
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;

    #[test]
    fn a_clock_that_is_off_is_told_before_aws_refuses_it() {
        for (ahead, verdict, words) in [
            (Some(0), Verdict::Ok, "agrees"),
            (Some(-30), Verdict::Ok, "agrees"),
            (Some(31), Verdict::Warning, "31 s behind"),
            (Some(-300), Verdict::Warning, "300 s ahead"),
            (Some(301), Verdict::Failure, "301 s behind"),
            (Some(i64::MIN), Verdict::Failure, "ahead"),
            (None, Verdict::Skipped, "does not say"),
        ] {
            let found = clock(ahead);
            assert_eq!(found.verdict, verdict, "{ahead:?}");
            assert!(found.message.contains(words), "{}", found.message);
        }
    }

    #[test]
    fn hosts_of_urls() {
        let host = |url| Host::of_url(url).map(|host| (host.tls, host.authority()));
        assert_eq!(
            host("https://ssm.eu-west-1.amazonaws.com"),
            Some((true, "ssm.eu-west-1.amazonaws.com:443".into()))
        );
        assert_eq!(host("http://[::1]:4566/x"), Some((false, "[::1]:4566".into())));
        assert_eq!(host("/"), None);
    }
}
