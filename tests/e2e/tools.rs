//! Programs of others that some tests need. Where one is missing the test says so, past the harness that would keep it to
//! itself, and how to get it. With `AUTOSSM_TEST_ALL=1`, as in continuous integration, it fails: what is not looked at is
//! not known to work.

use std::io::Write as _;
use std::path::PathBuf;

/// A program of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tool {
    Chromium,
    Promtool,
    Prometheus,
}

impl Tool {
    /// By its names, the one of the environment that says where it is, and the package.
    fn known(self) -> (&'static [&'static str], &'static str, &'static str) {
        match self {
            Self::Chromium => {
                (&["chromium", "chromium-browser", "google-chrome"], "AUTOSSM_TEST_CHROMIUM", "chromium")
            }
            Self::Promtool => (&["promtool"], "AUTOSSM_TEST_PROMTOOL", "prometheus"),
            Self::Prometheus => (&["prometheus"], "AUTOSSM_TEST_PROMETHEUS", "prometheus"),
        }
    }
}

/// Where it is; `None` if the tests have to do without.
pub fn program(tool: Tool) -> Option<PathBuf> {
    let (names, variable, package) = tool.known();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::var_os(variable).map(PathBuf::from).or_else(|| {
        std::env::split_paths(&path)
            .flat_map(|folder| names.iter().map(move |name| folder.join(name)))
            .find(|program| program.is_file())
    });
    if found.is_none() {
        let remedy = format!(
            "{} is not installed.\n  Debian, Ubuntu:  apt-get install --no-install-recommends {package}\n  \
             elsewhere:       {variable}=/path/to/{}",
            names[0], names[0]
        );
        missing(&remedy);
    }
    found
}

/// Says that something cannot be tested, and why.
pub fn missing(why: &str) {
    assert!(std::env::var_os("AUTOSSM_TEST_ALL").is_none(), "{why}");
    // `eprintln!` is what the harness takes away from tests that pass.
    let _ = writeln!(std::io::stderr(), "NOT TESTED: {why}");
}
