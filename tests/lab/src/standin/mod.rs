//! The stand-in for the stock `session-manager-plugin`: its command line, its words, and its failings, so that what
//! supervises the plugin can be tested where the plugin is not installed.
//!
//! It takes the same arguments and environment, prints the same bytes, and goes wrong in the same ways: a budget of
//! six tries to resume and then silence with an open port, death by traffic, one receive budget for all clients, no
//! half-close, a lone line feed turned into a carriage return, status 0 whatever happened. It is of the old line or of the new
//! one, as [`version`] has it.
//!
//! Left out: agents older than the mux (3.0.196.0) and than its silenced keep-alive (3.1.1511.0), random challenges in the encryption context,
//! local Unix sockets, credentials from profiles, and most log lines.

pub mod api;
pub mod channel;
pub mod command;
pub mod console;
pub mod dial;
pub mod handshake;
pub mod mux;
pub mod port;
pub mod proxy;
pub mod resume;
pub mod retry;
pub mod sign;
pub mod stdio;
pub mod trust;
pub mod version;
pub mod websocket;

use http::Uri;
use tokio::sync::mpsc;

use channel::DataChannel;
use command::{Command, Start};
use console::{Level, log, print};

/// Runs the plugin with the arguments that follow the program's name; returns its exit status.
pub async fn run(program: &str, arguments: &[String]) -> u8 {
    let version = version::chosen(std::env::var(version::VARIABLE).ok(), program);
    match command::parse(arguments, &version, |name| std::env::var(name).ok()) {
        Command::Print(text) => print(&text),
        Command::Crash(words) => {
            eprintln!("{words}\n\ngoroutine 1 [running]:");
            return 2;
        }
        Command::Start(start) => {
            if let Err(error) = session(start, version).await {
                log(Level::Error, &format!("Cannot perform start session: {error}"));
                print(&format!("Cannot perform start session: {error}\n"));
            }
        }
    }
    0
}

async fn session(start: Start, version: String) -> Result<(), String> {
    print(&format!("\nStarting session with SessionId: {}\n", start.session.session_id));
    let url = start.session.stream_url.parse::<Uri>().ok().filter(resume::is_session_manager);
    let url = url.ok_or("the stream URL is no endpoint of AWS Session Manager")?;
    let (told, mut kind_known) = mpsc::channel(1);
    let channel = DataChannel::new(start, url, version, told);
    tokio::select! {
        () = channel.ended.cancelled() => Ok(()),
        result = async {
            channel.open_first().await;
            tokio::spawn(channel.clone().resend());
            if kind_known.recv().await != Some(true) {
                return Err("unable to determine SessionType".into());
            }
            let kind = channel.handshake().kind;
            if kind == Some(handshake::PORT) {
                port::run(&channel).await
            } else {
                stdio::shell(&channel).await
            }
        } => result,
    }
}
