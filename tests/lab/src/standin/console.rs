//! What the plugin writes to stdout: its words, and its log lines where the installed log configuration has a console.
//!
//! Nothing is buffered, as in the stock plugin: a line may reach the reader in two pieces, and a log line may stand
//! inside another line.

use std::io::{ErrorKind, Write, stdout};
use std::sync::LazyLock;
use std::time::SystemTime;

/// The stock plugin's log configuration. Without it nothing is logged.
const CONFIGURATION: &str = "/usr/local/sessionmanagerplugin/seelog.xml";

/// A log line's weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Details.
    Debug,
    /// News.
    Info,
    /// Something looks wrong.
    Warn,
    /// Something failed.
    Error,
}

static LEVEL: LazyLock<Option<Level>> =
    LazyLock::new(|| console_level(&std::fs::read_to_string(CONFIGURATION).unwrap_or_default()));

/// Writes `text` at once, as it is.
pub fn print(text: &str) {
    print_bytes(text.as_bytes());
}

/// Writes `bytes` at once, as they are.
pub fn print_bytes(bytes: &[u8]) {
    let mut out = stdout().lock();
    let written = out.write_all(bytes).and_then(|()| out.flush());
    if written.is_err_and(|error| error.kind() == ErrorKind::BrokenPipe) {
        // Go's runtime ends a program whose stdout has no reader any more, with SIGPIPE's status.
        std::process::exit(141);
    }
}

/// Writes a log line, if there is a console for lines of this level.
pub fn log(level: Level, text: &str) {
    if LEVEL.is_some_and(|least| level >= least) {
        let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        let now = now.trim_end_matches('Z').replace('T', " ");
        print(&format!("{now} {} {text}\n", format!("{level:?}").to_uppercase()));
    }
}

/// The least level that the configuration sends to a console; `None` if it has no console.
fn console_level(configuration: &str) -> Option<Level> {
    configuration.contains("<console").then_some(())?;
    let least = configuration.split_once("minlevel=\"").and_then(|(_, rest)| rest.split('"').next());
    match least.unwrap_or("trace") {
        "trace" | "debug" => Some(Level::Debug),
        "info" => Some(Level::Info),
        "warn" => Some(Level::Warn),
        "error" | "critical" => Some(Level::Error),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_console_makes_log_lines() {
        assert_eq!(console_level(""), None);
        assert_eq!(console_level(r#"<seelog minlevel="debug"><outputs><file/></outputs>"#), None);
        assert_eq!(
            console_level(r#"<seelog minlevel="info"><outputs><console/></outputs>"#),
            Some(Level::Info)
        );
        assert_eq!(console_level("<seelog><outputs><console formatid=\"f\"/>"), Some(Level::Debug));
        assert_eq!(console_level(r#"<seelog minlevel="off"><outputs><console/>"#), None);
    }
}
