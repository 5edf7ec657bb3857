//! Sessions without a port: stdin goes to the agent, its data to stdout. A tunnel meets them where its document is a
//! wrong one.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::signal::unix::{SignalKind, signal};

use super::channel::{Consumer, DataChannel};
use super::dial;
use crate::wire::message::payload;

/// How the end of stdin is told.
pub const END: &str = "EOF";
/// The payload type of a terminal's size.
const SIZE: u32 = 3;
const MESSAGE: usize = 1024;

/// Runs a shell session until stdin ends.
///
/// # Errors
/// Always, in the end: [`END`], or what else stopped it, in words.
pub async fn shell(channel: &Arc<DataChannel>) -> Result<(), String> {
    drop(channel.consumer.set(Consumer::Stdout));
    let listen = |kind| signal(kind).map_err(|error| dial::words(&error));
    let (mut interrupt, mut quit) = (listen(SignalKind::interrupt())?, listen(SignalKind::quit())?);
    let stop = SignalKind::from_raw(nix::sys::signal::Signal::SIGTSTP as i32);
    let mut stop = listen(stop)?;
    let signalled = channel.clone();
    tokio::spawn(async move {
        // Signals are the shell's: they do not end the plugin.
        loop {
            let byte = tokio::select! {
                _ = interrupt.recv() => 3,
                _ = quit.recv() => 0x1c,
                _ = stop.recv() => 0x1a,
            };
            // Without a channel the shell does not hear of it.
            drop(signalled.send_input(payload::DATA, vec![byte]).await);
        }
    });
    let size = json!({ "cols": 300, "rows": 100 }).to_string();
    // As for the signals.
    drop(channel.send_input(SIZE, size).await);
    forward(channel).await
}

/// Sends stdin to the agent until it ends.
///
/// # Errors
/// As [`shell`].
pub async fn forward(channel: &DataChannel) -> Result<(), String> {
    let mut stdin = tokio::io::stdin();
    let mut data = [0; MESSAGE];
    loop {
        match stdin.read(&mut data).await {
            Ok(0) => return Err(END.into()),
            Ok(length) => channel.send_input(payload::DATA, data[..length].to_vec()).await?,
            Err(error) => return Err(dial::words(&error)),
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
