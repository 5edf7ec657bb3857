//! A plugin as a process: the stand-in of either line, or the stock plugin.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

use autossm_lab::standin::version::{self, NEW_LINE, OLD_LINE, Version};

use crate::fake::{API_HOST, PROXY_USER, SOON};

/// The stand-in of the old line and of the new one, and the stock plugin where it is given.
pub fn plugins() -> Vec<PathBuf> {
    let standin = |line| version::named(Path::new(env!("CARGO_BIN_EXE_standin-plugin")), line).unwrap();
    let stock = std::env::var_os("AUTOSSM_TEST_PLUGIN").map(PathBuf::from);
    [standin(OLD_LINE), standin(NEW_LINE)].into_iter().chain(stock).collect()
}

/// Which version a plugin says that it is.
pub fn version_of(path: &Path) -> Version {
    let output = std::process::Command::new(path).arg("--version").env_clear().output().unwrap();
    Version::parse(&String::from_utf8(output.stdout).unwrap())
}

/// A running plugin and what it has printed.
pub struct Plugin {
    pub child: Child,
    stdout: ChildStdout,
    printed: String,
    directory: TempDir,
    pub version: Version,
}

impl Plugin {
    pub fn start(path: &Path, proxy: u16, authorities: &Path, session: &str) -> Self {
        Self::start_for(path, proxy, authorities, session, &format!("https://{API_HOST}"), &[])
    }

    /// The same with another endpoint, and with variables beside those of every plugin.
    pub fn start_for(
        path: &Path,
        proxy: u16,
        authorities: &Path,
        session: &str,
        endpoint: &str,
        variables: &[&str],
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let environment = HashMap::from([
            ("AWS_SSM_START_SESSION_RESPONSE_1", session.to_owned()),
            ("HTTPS_PROXY", format!("http://{PROXY_USER}@127.0.0.1:{}", proxy)),
            ("SSL_CERT_DIR", authorities.display().to_string()),
            ("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE".into()),
            ("AWS_SECRET_ACCESS_KEY", "none".into()),
            ("TMPDIR", directory.path().display().to_string()),
        ]);
        let mut child = Command::new(path)
            .args([
                "AWS_SSM_START_SESSION_RESPONSE_1",
                "us-west-2",
                "StartSession",
                "",
                r#"{"Target":"i-1"}"#,
            ])
            .arg(endpoint)
            .env_clear()
            .envs(environment)
            .envs(variables.iter().map(|name| (name, "true")))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let stdout = child.stdout.take().unwrap();
        Self { child, stdout, printed: String::new(), directory, version: version_of(path) }
    }

    /// Reads until `text` has been printed.
    pub async fn until(&mut self, text: &str) {
        let mut bytes = [0; 4096];
        while !self.printed.contains(text) {
            let read = timeout(SOON, self.stdout.read(&mut bytes)).await;
            let length = read.unwrap_or_else(|_| panic!("no {text:?} in {:?}", self.printed)).unwrap();
            assert_ne!(length, 0, "ended without {text:?}: {:?}", self.printed);
            self.printed.push_str(std::str::from_utf8(&bytes[..length]).unwrap());
        }
    }

    /// The local port.
    pub async fn port(&mut self) -> u16 {
        self.until("Waiting for connections...\n").await;
        let port = self.printed.split("Port ").nth(1).and_then(|rest| rest.split(' ').next());
        port.unwrap().parse().unwrap()
    }

    /// Waits for the end: all that was printed, the port's number replaced, and the status.
    pub async fn ended(mut self) -> (String, ExitStatus) {
        let mut rest = String::new();
        timeout(SOON, self.stdout.read_to_string(&mut rest)).await.expect("still there").unwrap();
        let status = timeout(SOON, self.child.wait()).await.unwrap().unwrap();
        let printed = self.printed + &rest;
        let port = printed.split("Port ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap_or("none");
        (printed.replace(&format!("Port {port} "), "Port N "), status)
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().unwrap().cast_signed()), signal).unwrap();
    }

    pub fn socket_files(&self) -> usize {
        let entries = std::fs::read_dir(self.directory.path()).unwrap().flatten();
        entries
            .filter(|entry| entry.file_name().to_string_lossy().ends_with("_session_manager_plugin_mux.sock"))
            .count()
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}
