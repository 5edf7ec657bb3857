//! Opening the data channel's WebSocket, and opening it again after it was closed: ResumeSession, the new token, the
//! same address as before or in the new line the fresh one, one budget of tries, and after that nothing more.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::{Request, Uri};
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use super::channel::{DataChannel, lock};
use super::console::{Level, log, print};
use super::websocket::{self, Connection, PING, Reader, TEXT};
use super::{dial, sign, trust};
use crate::wire::handshake::OpenDataChannel;

/// From the first packet to the answer of the upgrade.
const OPENING: Duration = Duration::from_secs(45);
const PING_INTERVAL: Duration = Duration::from_secs(5 * 60);
/// Failed reads in a row before the channel is opened again.
const FAILED_READS: u32 = 5;

/// Whether the plugin accepts this address of a data channel: an encrypted one of Session Manager.
pub fn is_session_manager(url: &Uri) -> bool {
    let host = url.host().unwrap_or_default();
    let aws = [".amazonaws.com", ".amazonaws.com.cn", ".api.aws"].iter().any(|end| host.ends_with(end));
    let service = host.split('.').any(|label| label == "ssmmessages" || label == "ssmmessages-fips");
    url.scheme_str() == Some("wss") && aws && service
}

impl DataChannel {
    /// Opens the channel, within one budget of tries. If it is used up, nobody hears of it.
    pub async fn open_first(self: &Arc<Self>) {
        let Err(error) = self.open().await else {
            return;
        };
        let session = &self.session;
        log(
            Level::Error,
            &format!("Retrying connection for data channel id: {session} failed with error: {error}"),
        );
        self.with_retries(false).await;
    }

    /// Sends one WebSocket message.
    ///
    /// # Errors
    /// The channel is closed, or broken; in words.
    pub(super) async fn send(&self, opcode: u8, bytes: &[u8]) -> Result<(), String> {
        let connection = lock(&self.connection).clone();
        match connection {
            Some(connection) if self.open.load(Ordering::SeqCst) => connection.send(opcode, bytes).await,
            _ => Err("Can't send message: Connection is closed.".into()),
        }
    }

    async fn open(self: &Arc<Self>) -> Result<(), String> {
        let opened = timeout(OPENING, self.upgrade()).await.unwrap_or_else(|_| Err("i/o timeout".into()));
        let (connection, reader) = opened.map_err(|error| {
            log(Level::Error, &format!("Failed to dial websocket: {error}"));
            format!("failed to open data channel with error: {error}")
        })?;
        let connection = Arc::new(connection);
        *lock(&self.connection) = Some(connection.clone());
        self.open.store(true, Ordering::SeqCst);
        tokio::spawn(self.clone().ping());
        tokio::spawn(self.clone().read(connection, reader));
        let first = OpenDataChannel {
            message_schema_version: "1.0".into(),
            request_id: Uuid::new_v4().to_string(),
            token_value: lock(&self.token).clone(),
            client_id: self.client.to_string(),
            client_version: self.version.clone(),
        };
        let first = serde_json::to_vec(&first).map_err(|error| error.to_string())?;
        self.send(TEXT, &first).await.map_err(|error| format!("error sending token for handshake: {error}"))
    }

    async fn upgrade(&self) -> Result<(Connection, Reader), String> {
        let url = self.url();
        log(Level::Info, &format!("Opening websocket connection to: {url}"));
        let path = url.path_and_query().map_or("/", |path| path.as_str());
        let mut request = Request::get(path).body(()).map_err(|error| error.to_string())?;
        let host = url.authority().map(ToString::to_string).unwrap_or_default();
        if self.line.signs() && !path.contains("X-Amz-") {
            let credentials = sign::credentials().await?;
            sign::apply(&mut request, &host, b"", ("ssmmessages", &self.api.region), credentials)?;
        }
        let port = url.port_u16().unwrap_or(443);
        let link = dial::dial(url.host().unwrap_or_default(), port, Some(trust::system()?)).await?;
        websocket::open(link, &url, request).await
    }

    /// Where the data channel is opened.
    fn url(&self) -> Uri {
        lock(&self.url).clone()
    }

    async fn reopen(self: &Arc<Self>) -> Result<(), String> {
        let connection = lock(&self.connection).clone();
        if self.open.swap(false, Ordering::SeqCst)
            && let Some(connection) = connection
        {
            connection.close().await;
        }
        self.open().await.map_err(|error| {
            format!("failed to reconnect data channel {} with error: {error}", self.url())
        })?;
        log(Level::Info, &format!("Successfully reconnected to data channel: {}", self.url()));
        Ok(())
    }

    async fn resume(self: &Arc<Self>) -> Result<(), String> {
        let resumption = self.api.resume(&self.session).await.map_err(|error| {
            log(Level::Error, &format!("Resume Session failed: {error}"));
            log(Level::Error, &format!("Failed to get token: {error}"));
            error
        })?;
        match resumption.token.filter(|token| !token.is_empty()) {
            Some(token) => *lock(&self.token) = token,
            None => {
                print(&format!("Session: {} timed out.\n", self.session));
                self.ended.cancel();
                std::future::pending::<()>().await;
            }
        }
        let fresh = resumption.stream_url.filter(|url| self.line.follows_stream_url() && !url.is_empty());
        if let Some(fresh) = fresh {
            *lock(&self.url) = fresh.parse().map_err(|error| format!("parse {fresh}: {error}"))?;
        }
        self.reopen().await
    }

    async fn with_retries(self: &Arc<Self>, resume: bool) {
        let mut failed = 0;
        loop {
            let result = if resume { self.resume().await } else { self.reopen().await };
            let Err(error) = result else {
                return;
            };
            failed += 1;
            match self.schedule.wait(failed) {
                Some(wait) => sleep(wait).await,
                // The silent zombie: the process lives, the port is open, and nothing flows.
                None => return log(Level::Error, &error),
            }
        }
    }

    /// One task more with each opening, as in the stock plugin: none of them ends while openings succeed.
    async fn ping(self: Arc<Self>) {
        while self.open.load(Ordering::SeqCst) {
            if let Err(error) = self.send(PING, b"keepalive").await {
                return log(Level::Error, &format!("Error while sending websocket ping: {error}"));
            }
            sleep(PING_INTERVAL).await;
        }
    }

    /// Reads until the connection is closed, then opens the next one. Boxed because it starts its own successor.
    fn read(
        self: Arc<Self>,
        connection: Arc<Connection>,
        mut reader: Reader,
    ) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(async move {
            let mut failed = 0;
            while !connection.is_closed() {
                match reader.next(&connection).await {
                    Ok(message) => {
                        failed = 0;
                        self.receive(message).await;
                    }
                    Err(_) if connection.is_closed() => return,
                    Err(error) => {
                        failed += 1;
                        if failed < FAILED_READS {
                            log(
                                Level::Debug,
                                &format!(
                                    "An error happened when receiving the message. Retried times: {failed}, Error: {error}, Messagetype: -1"
                                ),
                            );
                            continue;
                        }
                        log(
                            Level::Error,
                            &format!("Reach the retry limit {FAILED_READS} for receive messages."),
                        );
                        log(
                            Level::Error,
                            &format!(
                                "Trying to reconnect the session: {} with seq num: {}",
                                self.url(),
                                self.next_number()
                            ),
                        );
                        return self.with_retries(true).await;
                    }
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_session_managers_addresses_are_taken() {
        for (url, good) in [
            ("wss://ssmmessages.us-west-2.amazonaws.com/v1/data-channel/s", true),
            ("wss://ssmmessages-fips.us-east-1.amazonaws.com/v1", true),
            ("wss://ssmmessages.cn-north-1.amazonaws.com.cn/v1", true),
            ("wss://vpce-1-2.ssmmessages.us-east-1.vpce.amazonaws.com/v1", true),
            ("wss://ssmmessages.us-east-1.api.aws/v1", true),
            ("ws://ssmmessages.us-west-2.amazonaws.com/v1", false),
            ("wss://127.0.0.1:8443/v1", false),
            ("wss://ssmmessages.us-west-2.amazonaws.com.example.org/v1", false),
            ("wss://s3.us-west-2.amazonaws.com/v1", false),
        ] {
            assert_eq!(is_session_manager(&url.parse().unwrap()), good, "{url}");
        }
    }
}
