//! The way to the service: dialling, the signed upgrade, the message that opens the data channel, and all of it again
//! after each loss.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use futures_util::SinkExt;
use http::header::HOST;
use http::{Request, StatusCode, Uri};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Map, Value};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite::Message;
use uuid::Uuid;

use super::Event;
use super::link::{self, Link};
use super::upgrade::{self, NotUpgraded, upgrade};
use crate::aws::api::{Api, Resumption};
use crate::aws::sign::sign_upgrade;
use crate::config::StreamEndpoint;
use crate::network::{Network, Peer};
use crate::tunnel::failure::{Class, Failure};

const UPGRADE_TIMEOUT: Duration = Duration::from_secs(10);
const FIRST_DELAY: Duration = Duration::from_millis(200);
/// Shorter than the usual `failover_after`: a pause of our own should not be what a second session is started for.
const MAX_DELAY: Duration = Duration::from_secs(4);

/// Opens the data channel of one session.
pub struct Dialler {
    /// The session's id.
    pub session_id: String,
    /// Resumes the session, and has the credentials for the upgrade.
    pub api: Arc<dyn Api>,
    /// Where to dial instead of the stream URL's host.
    pub endpoint: Option<StreamEndpoint>,
    /// The way there.
    pub network: Network,
}

/// What the data channel is opened with, once.
pub struct Ticket {
    /// The full address, with what the service put into its query.
    pub stream_url: String,
    /// Good for one opening.
    pub token: SecretString,
}

/// What came of the attempts to open the data channel.
pub enum Outcome {
    /// It is open, and the opening message has been sent.
    Opened {
        /// To the service.
        link: Box<Link>,
        /// Made, the successful one included.
        attempts: u32,
        /// For the next time.
        backoff: Backoff,
    },
    /// The session does not exist any more.
    Gone,
}

/// Tells from outside whether an opening message may have reached the service: from then on a data channel that was open
/// before may bring nothing more.
#[derive(Clone, Debug, Default)]
pub struct Commitment(Arc<AtomicBool>);

impl Commitment {
    fn make(&self) {
        self.0.store(true, Relaxed);
    }

    /// Whether it is sent, or being sent.
    pub fn is_made(&self) -> bool {
        self.0.load(Relaxed)
    }
}

impl Dialler {
    /// Opens the data channel, however long it takes: with `ticket` if there is one, then with fresh ones. Every
    /// failure is told.
    pub async fn open(
        self: Arc<Self>,
        mut ticket: Option<Ticket>,
        opening: OpeningMessage,
        mut backoff: Backoff,
        commitment: Commitment,
        events: mpsc::Sender<Event>,
    ) -> Outcome {
        let mut attempts = 0;
        loop {
            let delay = backoff.delay(rand::random_range(0.5..1.0));
            if !delay.is_zero() {
                // Without a receiver the session is about to be closed.
                let _ = events.send(Event::RetryIn(delay)).await;
            }
            sleep(delay).await;
            attempts += 1;
            match self.attempt(ticket.take(), &opening, &commitment).await {
                Ok(Some(link)) => return Outcome::Opened { link: Box::new(link), attempts, backoff },
                Ok(None) => return Outcome::Gone,
                Err(failure) => {
                    backoff.failed();
                    // Without a receiver the session is about to be closed.
                    let _ = events.send(Event::ResumeFailed(failure)).await;
                }
            }
        }
    }

    async fn attempt(
        &self,
        ticket: Option<Ticket>,
        opening: &OpeningMessage,
        commitment: &Commitment,
    ) -> Result<Option<Link>, Failure> {
        let ticket = match ticket {
            Some(ticket) => ticket,
            None => match self.api.resume_session(&self.session_id).await? {
                Resumption::Resumed { token, stream_url } => Ticket { stream_url, token },
                Resumption::Gone => return Ok(None),
            },
        };
        let url: Uri =
            ticket.stream_url.parse().map_err(|e| failed(format!("the stream URL is no URL: {e}")))?;
        let request = self.request(&url).await?;
        let (tls, host, port) = self.place(&url)?;
        let connection = match tls {
            true => self.network.connect_tls(host, port).await?,
            // Loopback alone.
            false => self.network.connect(host, port).await?,
        };
        let mut socket = match timeout(UPGRADE_TIMEOUT, upgrade(connection, request)).await {
            Ok(Ok(socket)) => socket,
            Ok(Err(error)) => return Err(refused(error, &self.network.peer(host, port)?)),
            Err(_) => return Err(failed("the data channel's upgrade took over 10 s")),
        };
        let opening = opening.with_token(&ticket.token);
        commitment.make();
        let sent = timeout(UPGRADE_TIMEOUT, socket.send(Message::text(opening.expose_secret())));
        sent.await
            .map_err(|_| failed("the data channel took no message"))?
            .map_err(|e| failed(format!("the data channel took no message: {}", link::words(&e))))?;
        Ok(Some(Link::new(socket)))
    }

    /// Where to: whether with TLS, host and port.
    fn place<'a>(&'a self, url: &'a Uri) -> Result<(bool, &'a str, u16), Failure> {
        match &self.endpoint {
            Some(endpoint) => Ok((endpoint.tls, endpoint.host.as_str(), endpoint.port)),
            None => {
                let host = url.host().ok_or_else(|| failed("the stream URL has no host"))?;
                Ok((true, host.trim_matches(['[', ']']), url.port_u16().unwrap_or(443)))
            }
        }
    }

    async fn request(&self, url: &Uri) -> Result<Request<()>, Failure> {
        let host = url.authority().ok_or_else(|| failed("the stream URL has no host"))?;
        let host = host.as_str().parse().map_err(|e| failed(format!("the stream URL's host: {e}")))?;
        let mut request = upgrade::request(url).map_err(|e| failed(e.to_string()))?;
        request.headers_mut().insert(HOST, host);
        let credentials = self.api.credentials().await?;
        sign_upgrade(request, &credentials, self.api.region(), SystemTime::now())
    }
}

fn failed(text: impl Into<String>) -> Failure {
    Failure::new(Class::Network, text)
}

/// Why the connection to `peer` has become no data channel.
fn refused(error: NotUpgraded, peer: &Peer) -> Failure {
    match error {
        NotUpgraded::Answered(answer) if answer.is_for_browsers() => {
            let Failure { class, text } = answer.instead_of("a WebSocket", peer);
            Failure::new(class, format!("the data channel's upgrade: {text}"))
        }
        // The service's own words, as a rule.
        NotUpgraded::Answered(answer) => {
            let hint = match answer.status() {
                StatusCode::FORBIDDEN => {
                    "; do the credentials allow ssmmessages:OpenDataChannel, and does a VPC endpoint's policy?"
                }
                _ => "",
            };
            Failure::new(answer.class(), format!("the data channel's upgrade was refused: {answer}{hint}"))
        }
        NotUpgraded::Wrong(fault) => failed(format!(
            "the data channel's upgrade: {peer} has answered with HTTP 101 Switching Protocols, but {fault}; something on \
             the way has to let WebSockets pass"
        )),
        NotUpgraded::NoAnswer(error) => failed(format!("the data channel's upgrade failed: {error}")),
    }
}

/// Waiting between attempts: 0.2 s, doubled after each failure up to 5 s, and none before the first attempt.
#[derive(Clone, Copy, Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// One more failure in a row.
    pub fn failed(&mut self) {
        self.failures = self.failures.saturating_add(1);
    }

    /// The wait before the next attempt; `jitter` is a random number from 0.5 to 1.
    fn delay(self, jitter: f64) -> Duration {
        let Some(doublings) = self.failures.checked_sub(1) else { return Duration::ZERO };
        (FIRST_DELAY * 2u32.pow(doublings.min(10))).min(MAX_DELAY).mul_f64(jitter)
    }
}

/// The plugin's first message, which opens the data channel and is sent again each time, with another token.
#[derive(Clone)]
pub struct OpeningMessage(Map<String, Value>);

impl OpeningMessage {
    /// From the plugin's text. The token in it is a stand-in and forgotten.
    pub fn parse(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok().map(Self)
    }

    pub(super) fn with_token(&self, token: &SecretString) -> SecretString {
        let mut fields = self.0.clone();
        fields.insert("TokenValue".to_owned(), token.expose_secret().into());
        fields.insert("RequestId".to_owned(), Uuid::new_v4().to_string().into());
        Value::Object(fields).to_string().into()
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use http::header::CONTENT_TYPE;

    use super::*;
    use crate::gateway::upgrade::Fault;
    use crate::network::Answer;

    #[test]
    fn backoff_doubles_from_200_ms_to_4_s() {
        let mut backoff = Backoff::default();
        let mut delays = Vec::new();
        for _ in 0..8 {
            delays.push(backoff.delay(1.0).as_millis());
            backoff.failed();
        }
        assert_eq!(delays, [0, 200, 400, 800, 1600, 3200, 4000, 4000]);
        (0..100).for_each(|_| backoff.failed());
        assert_eq!(backoff.delay(0.5), MAX_DELAY / 2);
    }

    #[test]
    fn the_opening_message_keeps_what_the_plugin_says_of_itself() {
        let text = r#"{"MessageSchemaVersion":"1.0","RequestId":"old","TokenValue":"stand-in","ClientId":"c","ClientVersion":"1.2.3"}"#;
        let opening = OpeningMessage::parse(text).unwrap().with_token(&"real".into());
        let opening: Value = serde_json::from_str(opening.expose_secret()).unwrap();
        assert_eq!((&opening["TokenValue"], &opening["ClientId"]), (&"real".into(), &"c".into()));
        assert_ne!(opening["RequestId"], "old");
        assert!(OpeningMessage::parse("[]").is_none());
    }

    #[test]
    fn refusals_have_a_class_and_say_what_came() {
        let peer = Peer::direct("ssmmessages.us-west-2.amazonaws.com", 443);
        let refusal = |status: u16, content_type: &'static str, body: &str| {
            let headers = [(CONTENT_TYPE, HeaderValue::from_static(content_type))].into_iter().collect();
            let answer = Answer::new(StatusCode::from_u16(status).unwrap(), &headers, body.as_bytes());
            refused(NotUpgraded::Answered(answer), &peer)
        };
        let said = |status| refusal(status, "application/json", "{\"message\":\"no\n\"}");
        assert_eq!(said(403).class, Class::Access);
        assert_eq!(said(429).class, Class::Throttled);
        assert_eq!(said(500).class, Class::Network);
        assert!(
            said(403).text.contains(r#"HTTP 403 Forbidden, application/json: “{"message":"no "}”; "#),
            "{}",
            said(403)
        );
        assert!(said(403).text.contains("ssmmessages:OpenDataChannel"), "{}", said(403));
        let page = refusal(200, "text/html", "<html><title>Sign in</title>");
        assert_eq!(page.class, Class::Network);
        assert!(
            page.text.starts_with(
                "the data channel's upgrade: ssmmessages.us-west-2.amazonaws.com:443 has answered with HTTP 200 OK, a \
                 page (text/html) “Sign in” instead of a WebSocket; "
            ),
            "{page}"
        );
        let wrong = refused(NotUpgraded::Wrong(Fault::Accept(None)), &peer);
        assert!(
            wrong.text.contains("443 has answered with HTTP 101") && wrong.text.contains("WebSockets pass")
        );
    }
}
