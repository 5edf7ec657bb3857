//! The lab as a program of its own.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use serde_json::Value;

#[test]
fn commands_are_lines_and_so_are_answers() {
    let mut child =
        Command::new(env!("CARGO_BIN_EXE_lab")).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut answer = || serde_json::from_str::<Value>(&lines.next().unwrap().unwrap()).unwrap();
    let addresses = answer();
    assert!(addresses["api_url"].as_str().unwrap().starts_with("http://127.0.0.1:"));
    let authority = std::fs::read_to_string(addresses["ca_file"].as_str().unwrap()).unwrap();
    assert!(authority.starts_with("-----BEGIN CERTIFICATE-----"));
    let mut ask = |command: &str| {
        writeln!(input, "{command}").unwrap();
        answer()
    };
    assert_eq!(ask("close 1000 Bye")["closed"], 0);
    assert_eq!(ask("refuse 20s")["seconds"], 20.0);
    assert_eq!(ask("faults")["network"], "Refusing");
    assert_eq!(ask("clear")["cleared"], true);
    assert_eq!(ask("faults")["network"], "Up");
    assert_eq!(ask("status")["start"]["processed"], 0);
    assert!(ask("nonsense")["error"].is_string());
    drop(input);
    assert!(child.wait().unwrap().success());
    let directory = std::path::Path::new(addresses["ca_file"].as_str().unwrap()).parent().unwrap();
    assert!(!directory.exists());
}
