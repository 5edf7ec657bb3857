//! The lab in the foreground: prints a line of JSON with its addresses, then takes a command a line on standard input
//! and answers each with a line of JSON. Ends with its input, or on SIGINT or SIGTERM.

use std::io::Write;

use autossm_lab::options::Options;
use autossm_lab::{Lab, control};
use clap::Parser;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::signal::unix::{SignalKind, signal};

/// A simulated Session Manager on loopback.
#[derive(Parser)]
#[command(after_help = control::HELP)]
struct Arguments {
    /// Port of the API, plain HTTP.
    #[arg(long, default_value_t = 0)]
    api_port: u16,
    /// Port of the data channel without TLS.
    #[arg(long, default_value_t = 0)]
    ws_port: u16,
    /// Port of data channel and API with TLS.
    #[arg(long, default_value_t = 0)]
    tls_port: u16,
    /// Region in the host names of stream URLs.
    #[arg(long, default_value = "us-west-2")]
    region: String,
    /// Stay until a signal when the input ends.
    #[arg(long)]
    stay: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let arguments = Arguments::parse();
    let lab = Lab::start(Options {
        api_port: arguments.api_port,
        ws_port: arguments.ws_port,
        tls_port: arguments.tls_port,
        region: arguments.region,
        ..Options::default()
    })
    .await?;
    say(&json!({
        "api_url": lab.api_url(),
        "stream_endpoint_ws": lab.stream_endpoint_ws(),
        "stream_endpoint_wss": lab.stream_endpoint_wss(),
        "ca_file": lab.ca_file(),
        "destinations": lab.addresses().destinations,
    }))?;
    let mut interrupted = signal(SignalKind::interrupt())?;
    let mut terminated = signal(SignalKind::terminate())?;
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let mut open = true;
    loop {
        let line = tokio::select! {
            _ = interrupted.recv() => break,
            _ = terminated.recv() => break,
            line = lines.next_line(), if open => line?,
        };
        match line {
            Some(line) if line.trim().is_empty() => {}
            Some(line) => {
                let answer = control::perform(&lab, &line);
                say(&answer.unwrap_or_else(|error| json!({ "error": format!("{error:#}") })))?;
            }
            None if arguments.stay => open = false,
            None => break,
        }
    }
    // The thread that reads standard input cannot be interrupted and would keep the runtime from ending.
    drop(lab);
    std::process::exit(0)
}

fn say(answer: &Value) -> std::io::Result<()> {
    let mut output = std::io::stdout().lock();
    writeln!(output, "{answer}")?;
    output.flush()
}
