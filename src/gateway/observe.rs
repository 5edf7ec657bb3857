//! For sites that allow no TLS termination: the plugin's connections are passed on as they are, and only watched.

use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::Event;
use super::link::Connection;

const BUFFER: usize = 16 << 10;

/// Carries bytes both ways until either side ends. For the data channel its opening and closing are told.
pub async fn tunnel(
    mut plugin: impl Connection,
    mut service: TcpStream,
    channel: Option<&mpsc::Sender<Event>>,
) {
    tell(channel, Event::ChannelOpened).await;
    let reason = match copy_bidirectional_with_sizes(&mut plugin, &mut service, BUFFER, BUFFER).await {
        Ok(_) => "closed".to_owned(),
        Err(error) => error.to_string(),
    };
    tell(channel, Event::ChannelClosed { code: None, reason }).await;
}

async fn tell(channel: Option<&mpsc::Sender<Event>>, event: Event) {
    if let Some(events) = channel {
        // Without a receiver the session is about to be closed.
        let _ = events.send(event).await;
    }
}
