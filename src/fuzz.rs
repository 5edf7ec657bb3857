//! Bad input from every side: the entry points of the fuzz targets in `fuzz/`, compiled for them (`--cfg fuzzing`) and for
//! tests only. Each takes any bytes, and panics if something does not hold. `cargo test` runs every one of them over its
//! corpus, `fuzz/corpus/NAME`, in which the inputs stay that have once found something.

use crate::config;
use crate::control::protocol::{Event, Line, Reply, Request};
use crate::systemd::fdstore;

use serde_json::Value;

/// What a target is: it takes any bytes.
pub type Target = fn(&[u8]);

/// The targets, by name.
pub const TARGETS: [(&str, Target); 11] = [
    ("message", crate::gateway::fuzz::message),
    ("handshake", crate::gateway::fuzz::handshake),
    ("mux", crate::gateway::fuzz::mux),
    ("relay", crate::gateway::fuzz::relay),
    ("connect", crate::gateway::fuzz::connect),
    ("plugin_http", crate::gateway::fuzz::plugin_http),
    ("plugin_output", crate::plugin::output::fuzz),
    ("configuration", configuration),
    ("record", crate::driver::fuzz_record),
    ("control", control),
    ("import", crate::cli::import::fuzz),
];

/// Runs the target of this name. Panics if there is none.
pub fn run(name: &str, data: &[u8]) {
    let target = TARGETS.iter().find(|(target, _)| *target == name);
    assert!(target.is_some(), "there is no target {name}");
    if let Some((_, run)) = target {
        run(data);
    }
}

/// A line of the control socket, or of the events on disk: what is understood is written so that the same is understood again.
fn control(data: &[u8]) {
    /// Text to value to text to value.
    fn again<T: serde::Serialize + serde::de::DeserializeOwned>(data: &[u8]) -> Option<()> {
        let value = serde_json::to_value(serde_json::from_slice::<T>(data).ok()?).ok()?;
        let text = value.to_string();
        let read = serde_json::from_str::<T>(&text).ok().and_then(|value| serde_json::to_value(value).ok());
        assert!(read.as_ref().is_some_and(|read| same(read, &value)), "{text} is understood as {read:?}");
        Some(())
    }
    /// Numbers with a fraction may change in their last digits, each time that they are read.
    fn same(a: &Value, b: &Value) -> bool {
        match (a, b) {
            (Value::Number(a), Value::Number(b)) if a.is_f64() => {
                let both = a.as_f64().zip(b.as_f64());
                both.is_some_and(|(a, b)| (a - b).abs() <= 1e-14 * a.abs())
            }
            (Value::Array(a), Value::Array(b)) => {
                a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b))
            }
            (Value::Object(a), Value::Object(b)) => {
                a.len() == b.len() && a.iter().all(|(name, a)| b.get(name).is_some_and(|b| same(a, b)))
            }
            _ => a == b,
        }
    }
    let _ = (again::<Line<Request>>(data), again::<Line<Reply>>(data), again::<Event>(data));
}

/// A configuration is read, or refused with places that lie within it; and of one that is read, every address has a
/// name that systemd can keep it under.
fn configuration(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match config::parse("config.toml", text) {
        Ok(config) => {
            assert!(!config.tunnels.is_empty());
            for tunnel in &config.tunnels {
                for listen in &tunnel.listen {
                    let name = fdstore::name(&tunnel.name, listen);
                    assert!(
                        name.len() <= 255
                            && name.bytes().all(|byte| (b' '..127).contains(&byte) && byte != b':')
                    );
                }
            }
        }
        Err(problems) => {
            assert!(!problems.list.is_empty() && !problems.to_string().is_empty());
            let lines = text.split('\n').count();
            for position in problems.list.iter().filter_map(|problem| problem.position) {
                assert!(position.line >= 1 && position.line <= lines && position.column >= 1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::{Path, PathBuf};

    use proptest::prelude::*;

    fn inputs(name: &str) -> Vec<PathBuf> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
        let entries = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    /// A panic names its input in the output that the test keeps.
    #[test]
    fn nothing_of_the_corpus_breaks_anything() {
        for (name, target) in TARGETS {
            let inputs = inputs(name);
            assert!(inputs.len() >= 3, "{name} has {} inputs", inputs.len());
            for path in inputs {
                println!("{}", path.display());
                let began = std::time::Instant::now();
                target(&std::fs::read(&path).unwrap());
                println!("  {:?}", began.elapsed());
                assert!(began.elapsed().as_secs() < 5, "{:?}", began.elapsed());
            }
        }
    }

    proptest! {
        /// A fuzzer for those who have none: pieces of the corpus, changed and joined. `PROPTEST_CASES=100000` tries harder.
        #[test]
        fn nothing_like_the_corpus_breaks_anything(
            target in 0..TARGETS.len(),
            seeds in proptest::collection::vec(any::<prop::sample::Index>(), 1..3),
            edits in proptest::collection::vec(
                (any::<prop::sample::Index>(), 0usize..8, proptest::collection::vec(any::<u8>(), 0..5)), 0..6),
        ) {
            let (name, run) = TARGETS[target];
            let mut paths = inputs(name);
            paths.sort();
            let mut data: Vec<u8> = seeds.iter().flat_map(|seed| std::fs::read(seed.get(&paths)).unwrap()).collect();
            for (at, cut, paste) in edits {
                let start = at.index(data.len() + 1);
                let end = (start + cut).min(data.len());
                data.splice(start..end, paste);
            }
            run(&data);
        }
    }

    #[test]
    fn every_target_has_its_program() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
        let manifest = std::fs::read_to_string(folder.join("Cargo.toml")).unwrap();
        for (name, _) in TARGETS {
            let program = std::fs::read_to_string(folder.join(format!("targets/{name}.rs"))).unwrap();
            assert!(program.contains(&format!("autossm::fuzz::run(\"{name}\"")), "{name}");
            assert!(manifest.contains(&format!("path = \"targets/{name}.rs\"")), "{name}");
        }
        assert_eq!(manifest.matches("[[bin]]").count(), TARGETS.len());
    }
}
