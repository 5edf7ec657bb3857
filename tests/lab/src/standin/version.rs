//! PURE. The versions of the stock plugin that the stand-in can be, and what changed with each.
//!
//! | from | change |
//! |---|---|
//! | 1.2.764.0 | the upgrade of the data channel is signed |
//! | 1.2.804.0 | version 2 of the SDK: a call about the session is made once, whatever the error, and none where FIPS or dual-stack names are asked for beside an explicit endpoint |
//! | 1.2.835.0 | a resumed data channel is opened at the fresh stream URL |

use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// Names the version to say and to behave like.
pub const VARIABLE: &str = "AUTOSSM_STANDIN_VERSION";
/// The oldest version that AWS supports, and the one that the stand-in is if nothing else is said.
pub const OLD_LINE: &str = "1.2.764.0";
/// The first version that resumes with what ResumeSession returns.
pub const NEW_LINE: &str = "1.2.835.0";
/// What the program's name begins with where a version follows.
const PROGRAM: &str = "standin-plugin-";

/// Such as 1.2.764.0; what cannot be read is older than all.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(Vec<u32>);

impl Version {
    /// Reads the numbers up to the first that is none.
    pub fn parse(text: &str) -> Self {
        Self(text.trim().split('.').map_while(|number| number.parse().ok()).collect())
    }

    /// Whether the upgrade is signed.
    pub fn signs(&self) -> bool {
        self.is_from(OLD_LINE)
    }

    /// Whether its API calls are made by version 2 of the SDK.
    pub fn has_new_sdk(&self) -> bool {
        self.is_from("1.2.804.0")
    }

    /// Whether it goes to the stream URL that ResumeSession returns, and not to its first one.
    pub fn follows_stream_url(&self) -> bool {
        self.is_from(NEW_LINE)
    }

    fn is_from(&self, version: &str) -> bool {
        *self >= Self::parse(version)
    }
}

/// The version to be: as the variable says, else as the program's own name does, which an environment that is cleared leaves
/// alone.
pub fn chosen(variable: Option<String>, program: &str) -> String {
    let name = Path::new(program).file_name().and_then(|name| name.to_str()).unwrap_or_default();
    variable.unwrap_or_else(|| name.strip_prefix(PROGRAM).unwrap_or(OLD_LINE).to_owned())
}

/// The stand-in `program` under a name by which it is this version. A name that leads elsewhere, as in a folder that was copied,
/// is made again.
///
/// # Errors
/// The name cannot be made beside the program.
pub fn named(program: &Path, version: &str) -> io::Result<PathBuf> {
    let path = program.with_file_name(format!("{PROGRAM}{version}"));
    let target = Path::new(program.file_name().unwrap_or_default());
    if path.read_link().is_ok_and(|leads| leads == target) {
        return Ok(path);
    }
    // Others may do the same at the same time.
    let made = path.with_extension(format!("{}.new", uuid::Uuid::new_v4()));
    symlink(target, &made)?;
    std::fs::rename(made, &path)?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_change_comes_with_its_version() {
        for (version, expected) in [
            ("", [false; 3]),
            ("1.2.0.0", [false; 3]),
            ("1.2.763.9", [false; 3]),
            ("1.2.764.0", [true, false, false]),
            ("1.2.803.0", [true, false, false]),
            ("1.2.804.0", [true, true, false]),
            ("1.2.835.0\n", [true; 3]),
            ("1.3.0.0", [true; 3]),
        ] {
            let line = Version::parse(version);
            assert_eq!([line.signs(), line.has_new_sdk(), line.follows_stream_url()], expected, "{version}");
        }
    }

    #[test]
    fn a_version_is_chosen_by_variable_or_name() {
        assert_eq!(chosen(None, "/target/debug/standin-plugin"), OLD_LINE);
        assert_eq!(chosen(None, "session-manager-plugin"), OLD_LINE);
        assert_eq!(chosen(None, "/target/debug/standin-plugin-1.2.835.0"), NEW_LINE);
        assert_eq!(chosen(Some("1.2.650.0".into()), "standin-plugin-1.2.835.0"), "1.2.650.0");
    }

    #[test]
    fn a_name_leads_to_the_program_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("standin-plugin");
        let path = folder.path().join("standin-plugin-1.2.835.0");
        std::fs::write(&program, "a program").unwrap();
        symlink("/elsewhere/standin-plugin", &path).unwrap();
        for _ in 0..2 {
            assert_eq!(named(&program, NEW_LINE).unwrap(), path);
            assert_eq!(std::fs::read_to_string(&path).unwrap(), "a program");
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}
