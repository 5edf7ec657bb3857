//! The configuration as its users meet it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on has failed"
)]

mod anything;
mod command;
mod print;
mod shown;
mod wrong;

use std::path::Path;

use autossm::config::{self, Config, Position, Problems};

/// Line 1 to 5 of most cases, without an error.
const GOOD: &str = "\
[[tunnel]]
name = \"a\"
listen = \"127.0.0.1:1\"
target = \"i-12345678\"
remote_port = 5432
";

fn parse(text: &str) -> Result<Config, Problems> {
    config::parse("config.toml", text)
}

/// What is said of `text`, as `LINE:COLUMN: WHAT` and help.
fn said(text: &str) -> Vec<(String, String)> {
    let problems = parse(text).expect_err(text);
    let one = |problem: config::Problem| {
        let Position { line, column } = problem.position.unwrap();
        (format!("{line}:{column}: {}", problem.what), problem.help)
    };
    problems.list.into_iter().map(one).collect()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
