//! Programs of others that some tests need. Where one is missing the test fails and says how to get it: what is not
//! looked at is not known to work. `AUTOSSM_TEST_WITHOUT=chromium,prometheus` says that this is meant.

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

/// Where it is; `None` if the environment says that the tests are to do without.
pub fn program(tool: Tool) -> Option<PathBuf> {
    let (names, variable, package) = tool.known();
    if std::env::var("AUTOSSM_TEST_WITHOUT").is_ok_and(|list| list.split(',').any(|one| one == package)) {
        eprintln!("NOT TESTED: AUTOSSM_TEST_WITHOUT has {package}");
        return None;
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::var_os(variable).map(PathBuf::from).or_else(|| {
        std::env::split_paths(&path)
            .flat_map(|folder| names.iter().map(move |name| folder.join(name)))
            .find(|program| program.is_file())
    });
    Some(found.unwrap_or_else(|| {
        panic!(
            "{} is not installed.\n  Debian, Ubuntu:  apt-get install --no-install-recommends {package}\n  \
             elsewhere:       {variable}=/path/to/{}\n  or leave out what needs it, and know less:  \
             AUTOSSM_TEST_WITHOUT={package}",
            names[0], names[0]
        )
    }))
}
