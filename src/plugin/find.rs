//! Where the plugin is.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};

use crate::tunnel::failure::{Class, Failure};

/// Where AWS's packages put it; not in the `PATH` that systemd gives to services.
const PACKAGED: &str = "/usr/local/sessionmanagerplugin/bin";
const INSTALL: &str = "install AWS's session-manager-plugin package, or set `plugin` to its path";

/// The plugin's path: `plugin` itself if there is a slash in it, else the first program of that name in `PATH` and then
/// in the folder of AWS's packages.
///
/// Fails, saying where it was looked for, if there is none that may be executed.
pub fn find(plugin: &str) -> Result<PathBuf, Failure> {
    find_in(plugin, std::env::var_os("PATH").as_deref())
}

fn find_in(plugin: &str, path: Option<&OsStr>) -> Result<PathBuf, Failure> {
    let missing = |what: String| Failure::new(Class::NeedsChange, format!("{what}; {INSTALL}"));
    if plugin.contains('/') {
        let path = PathBuf::from(plugin);
        return match is_program(&path) {
            true => Ok(path),
            false => Err(missing(format!("{plugin} is no program that may be executed"))),
        };
    }
    let listed = path.map(|path| std::env::split_paths(path).collect::<Vec<_>>()).unwrap_or_default();
    // A relative folder would be the daemon's working directory.
    let folders: Vec<_> =
        listed.into_iter().filter(|folder| folder.is_absolute()).chain([PathBuf::from(PACKAGED)]).collect();
    let found = folders.iter().map(|folder| folder.join(plugin)).find(|path| is_program(path));
    found.ok_or_else(|| {
        let folders: Vec<_> = folders.iter().map(|folder| folder.display().to_string()).collect();
        missing(format!("{plugin} was not found in {}", folders.join(":")))
    })
}

fn is_program(path: &Path) -> bool {
    path.is_file() && access(path, AccessFlags::X_OK).is_ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn put(folder: &Path, name: &str, mode: u32) -> PathBuf {
        std::fs::create_dir_all(folder).unwrap();
        let path = folder.join(name);
        std::fs::write(&path, "#!/bin/sh\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn the_first_program_in_path_is_taken() {
        let root = tempfile::tempdir().unwrap();
        let [a, b, c] = ["a", "b", "c"].map(|name| root.path().join(name));
        put(&a, "smp", 0o644);
        std::fs::create_dir_all(b.join("smp")).unwrap();
        let program = put(&c, "smp", 0o755);
        let path = std::env::join_paths([&a, &b, &c]).unwrap();
        assert_eq!(find_in("smp", Some(&path)).unwrap(), program);
    }

    #[test]
    fn a_path_is_taken_as_it_is() {
        let root = tempfile::tempdir().unwrap();
        let program = put(root.path(), "smp", 0o755);
        assert_eq!(find_in(program.to_str().unwrap(), None).unwrap(), program);
        let data = put(root.path(), "data", 0o644);
        let failure = find_in(data.to_str().unwrap(), None).unwrap_err();
        assert_eq!(failure.class, Class::NeedsChange);
        assert!(failure.text.contains("data is no program") && failure.text.contains("install"), "{failure}");
    }

    #[test]
    fn a_missing_one_says_where_it_was_looked_for() {
        let failure = find_in("no-such-plugin", Some(OsStr::new("/nonexistent/bin:relative"))).unwrap_err();
        assert_eq!(failure.class, Class::NeedsChange);
        let place =
            "no-such-plugin was not found in /nonexistent/bin:/usr/local/sessionmanagerplugin/bin; install";
        assert!(failure.text.contains(place), "{failure}");
    }
}
