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
use tokio_tungstenite::client_async_with_config;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::{Error, Message};
use uuid::Uuid;

use super::Event;
use super::breach::plain;
use super::link::{self, Connection, Link};
use crate::aws::api::{Api, Resumption};
use crate::aws::sign::sign_upgrade;
use crate::config::StreamEndpoint;
use crate::network::Network;
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
        let request = self.upgrade(&url).await?;
        let connection = self.dial(&url).await?;
        let upgraded = client_async_with_config(request, connection, Some(link::config()));
        let (mut socket, _) = timeout(UPGRADE_TIMEOUT, upgraded)
            .await
            .map_err(|_| failed("the data channel's upgrade took over 10 s"))?
            .map_err(refused)?;
        let opening = opening.with_token(&ticket.token);
        commitment.make();
        let sent = timeout(UPGRADE_TIMEOUT, socket.send(Message::text(opening.expose_secret())));
        sent.await
            .map_err(|_| failed("the data channel took no message"))?
            .map_err(|e| failed(format!("the data channel took no message: {}", link::words(&e))))?;
        Ok(Some(Link::new(socket)))
    }

    async fn dial(&self, url: &Uri) -> Result<Box<dyn Connection>, Failure> {
        let (tls, host, port) = match &self.endpoint {
            Some(endpoint) => (endpoint.tls, endpoint.host.as_str(), endpoint.port),
            None => {
                let host = url.host().ok_or_else(|| failed("the stream URL has no host"))?;
                (true, host.trim_matches(['[', ']']), url.port_u16().unwrap_or(443))
            }
        };
        match tls {
            true => self.network.connect_tls(host, port).await,
            // Loopback alone.
            false => self.network.connect(host, port).await,
        }
    }

    async fn upgrade(&self, url: &Uri) -> Result<Request<()>, Failure> {
        let host = url.authority().ok_or_else(|| failed("the stream URL has no host"))?;
        let request = Request::builder()
            .uri(url)
            .header(HOST, host.as_str())
            .header("Connection", "Upgrade")
            .header("Upgrade", "websocket")
            .header("Sec-WebSocket-Version", "13")
            .header("Sec-WebSocket-Key", generate_key())
            .body(())
            .map_err(|e| failed(e.to_string()))?;
        let credentials = self.api.credentials().await?;
        sign_upgrade(request, &credentials, self.api.region(), SystemTime::now())
    }
}

fn failed(text: impl Into<String>) -> Failure {
    Failure::new(Class::Network, text)
}

/// A refusal in the service's own words, or whatever else went wrong.
fn refused(error: Error) -> Failure {
    let Error::Http(response) = error else {
        return failed(format!("the data channel's upgrade failed: {}", link::words(&error)));
    };
    let class = match response.status() {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Class::Access,
        StatusCode::TOO_MANY_REQUESTS => Class::Throttled,
        _ => Class::Network,
    };
    let body = String::from_utf8_lossy(response.body().as_deref().unwrap_or_default()).into_owned();
    let words = plain(&body);
    Failure::new(class, format!("the data channel's upgrade was refused: {} {words}", response.status()))
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
    use super::*;

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
    fn refusals_have_a_class_and_the_services_words() {
        let refusal = |status| {
            let body = Some(b"{\"message\":\"no\n\"}".to_vec());
            refused(Error::Http(Box::new(http::Response::builder().status(status).body(body).unwrap())))
        };
        assert_eq!(refusal(403).class, Class::Access);
        assert_eq!(refusal(429).class, Class::Throttled);
        assert_eq!(refusal(500).class, Class::Network);
        assert!(refusal(403).text.ends_with(r#"403 Forbidden {"message":"no"}"#));
    }
}
