//! What users are shown is right: the example, and the reference.

use std::fs;

use autossm::config;

use crate::{parse, root};

fn keys() -> impl Iterator<Item = &'static str> {
    config::key_names().chain(config::probe_key_names()).chain(config::hook_key_names())
}

#[test]
fn the_example_is_right_and_shows_every_key() {
    let path = root().join("config.example.toml");
    let config = config::load(&path).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(config.tunnels.len(), 3);
    // What stands behind a `#` is right too.
    let text = fs::read_to_string(path).unwrap();
    let shown = |line: &str| {
        let key = line.strip_prefix("# ").and_then(|line| line.split_once(" = ")).map(|(key, _)| key);
        key.is_some_and(|key| keys().any(|name| name == key))
    };
    let lines = text.lines().map(|line| if shown(line) { &line[2..] } else { line });
    let text = lines.collect::<Vec<_>>().join("\n");
    parse(&text).unwrap_or_else(|problems| panic!("{problems}"));
    for key in keys() {
        if ["probe", "send", "expect"].contains(&key) {
            assert!(text.contains("[tunnel.probe]"), "the example lacks a probe");
            continue;
        }
        assert!(text.lines().any(|line| line.starts_with(&format!("{key} = "))), "the example lacks `{key}`");
    }
}

/// `AUTOSSM_BLESS=1 cargo test --test config` writes the tables again.
#[test]
fn the_references_are_current() {
    let path = root().join("docs/configuration.md");
    let mut text = fs::read_to_string(&path).unwrap();
    let tables = [config::reference(), config::probe_reference(), config::hook_reference()];
    let mut from = 0;
    for table in tables {
        let start =
            from + text[from..].find("cargo test --test config` -->\n").expect("where the table begins");
        let start = start + text[start..].find('\n').unwrap() + 1;
        let end = start + text[start..].find("<!-- end -->").expect("where the table ends");
        if std::env::var_os("AUTOSSM_BLESS").is_some() {
            text.replace_range(start..end, &table);
        } else {
            assert_eq!(&text[start..end], table, "stale: run AUTOSSM_BLESS=1 cargo test --test config");
        }
        from = start + table.len();
    }
    if std::env::var_os("AUTOSSM_BLESS").is_some() {
        fs::write(&path, text).unwrap();
    }
}

/// The files' blocks of TOML are meant to be copied.
#[test]
fn what_the_reference_shows_is_right() {
    let text = fs::read_to_string(root().join("docs/configuration.md")).unwrap();
    let blocks: Vec<&str> =
        text.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(!blocks.is_empty());
    for block in blocks {
        parse(block).unwrap_or_else(|problems| panic!("{problems}"));
    }
}
