//! `autossm web` as an operator runs it, and those who ask it.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::daemon::{PATIENCE, PROGRAM};

/// A running `autossm web`.
pub struct Web {
    process: Child,
    pub address: SocketAddr,
}

/// What it has answered.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// As it came, with small letters.
    pub head: String,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }
}

impl Web {
    /// Over the tunnels in this runtime directory.
    pub async fn start(runtime_dir: &Path) -> Self {
        Self::start_with(runtime_dir, &[]).await
    }

    /// The same, with more arguments.
    pub async fn start_with(runtime_dir: &Path, more: &[&OsStr]) -> Self {
        let mut process = Command::new(PROGRAM)
            .args(["web", "--log-format", "json", "--listen", "127.0.0.1:0", "--runtime-dir"])
            .arg(runtime_dir)
            .args(more)
            .env_clear()
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let first = timeout(PATIENCE, lines.next_line()).await.unwrap().unwrap().expect("it ends at once");
        let first: serde_json::Value = serde_json::from_str(&first).unwrap();
        assert_eq!(first["event"], "web_listening", "{first}");
        let address = first["listen"].as_str().unwrap().parse().unwrap();
        // Read on, so that it never waits for us; what goes wrong is shown with a failing test.
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                eprintln!("autossm web: {line}");
            }
        });
        Self { process, address }
    }

    /// A figure of `/proc/PID/status`, in megabytes.
    pub fn memory(&self, name: &str) -> u64 {
        let pid = self.process.id().expect("it runs");
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.ask(&format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.address)).await
    }

    pub async fn get_as(&self, path: &str, accept: &str) -> Answer {
        let head = format!("Host: localhost\r\nAccept: {accept}\r\nConnection: close");
        self.ask(&format!("GET {path} HTTP/1.1\r\n{head}\r\n\r\n")).await
    }

    /// Sends this as it is, and reads until the end.
    pub async fn ask(&self, request: &str) -> Answer {
        let mut stream = self.open(request).await;
        let mut text = Vec::new();
        timeout(PATIENCE, stream.read_to_end(&mut text)).await.expect("an end").unwrap();
        let text = String::from_utf8(text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or_default();
        Answer { status, head: head.to_lowercase(), body: body.to_owned() }
    }

    /// Sends this, and leaves what comes to the caller. With HTTP/1.0 a stream comes as it is.
    pub async fn open(&self, request: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        stream
    }

    /// Waits until so many tunnels are known.
    pub async fn knows(&self, tunnels: usize) {
        let began = std::time::Instant::now();
        while self.get("/readyz").await.json()["tunnels"] != tunnels
            || self.get("/api/tunnels").await.json()["tunnels"].as_array().map(Vec::len) != Some(tunnels)
        {
            assert!(began.elapsed() < PATIENCE, "never {tunnels} tunnels");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }
}
