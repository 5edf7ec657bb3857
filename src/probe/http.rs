//! `GET`, and the status of the answer.

use tokio::io::{AsyncRead, AsyncWrite};

use super::{Bad, Destination, expect, send, wrong};

/// Ports that a `Host` need not name.
const USUAL: [u16; 2] = [80, 443];

pub(super) async fn get<S>(
    mut stream: S,
    destination: Destination<'_>,
    path: &str,
    status: Option<u16>,
) -> Result<(), Bad>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let host = match destination.host {
        Some(address) if address.contains(':') => format!("[{address}]"),
        Some(host) => host.to_owned(),
        None => "localhost".to_owned(),
    };
    let port = destination.port;
    let host = if USUAL.contains(&port) { host } else { format!("{host}:{port}") };
    let version = env!("CARGO_PKG_VERSION");
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: autossm/{version}\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    );
    send(&mut stream, request.as_bytes()).await?;
    expect(&mut stream, |bytes| judge(bytes, status)).await
}

fn judge(bytes: &[u8], wanted: Option<u16>) -> Option<Result<(), Bad>> {
    let start = b"HTTP/1.".as_slice();
    if !bytes.starts_with(start) && !start.starts_with(bytes) {
        return Some(wrong("does not speak HTTP", bytes));
    }
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    let line = String::from_utf8_lossy(bytes.get(..end).unwrap_or_default());
    let Some(status) = line.split_ascii_whitespace().nth(1).and_then(|status| status.parse::<u16>().ok())
    else {
        return Some(wrong("does not speak HTTP", bytes));
    };
    let good = wanted.map_or(status < 500, |wanted| status == wanted);
    Some(if good { Ok(()) } else { Err(Bad::Answer(format!("it answers with the status {status}"))) })
}
