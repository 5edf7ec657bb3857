//! Where the control sockets are, and the records beside them.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// The file in a tunnel's folder.
pub const FILE: &str = "control.sock";
/// The permissions of folders in the state directory: their group may read what is in them.
pub const STATE_MODE: u32 = 0o750;
/// The folder of all that systemd or root has started.
pub const SYSTEM: &str = "/run/autossm";

/// The folder of a tunnel in a process's runtime or state directory. A systemd unit with `RuntimeDirectory=autossm/%i`
/// and `StateDirectory=autossm/%i` gives the process directories that are the tunnel's own.
pub fn folder(directory: &Path, tunnel: &str) -> PathBuf {
    let is_own = directory.file_name().is_some_and(|name| name == tunnel)
        && directory.parent().and_then(Path::file_name).is_some_and(|parent| parent == "autossm");
    if is_own { directory.to_owned() } else { directory.join(tunnel) }
}

/// Makes a folder with these permissions, whatever the process's umask is (the unit's is 0077). One that is there already
/// stays as it is.
///
/// # Errors
/// It cannot be made.
pub fn make(folder: &Path, mode: u32) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    fs::DirBuilder::new().recursive(true).mode(mode).create(folder)?;
    fs::set_permissions(folder, fs::Permissions::from_mode(mode))
}

/// Where a client looks: in the directory that was asked for, else in the host's and in its user's.
pub fn directories(asked: Option<&Path>) -> Vec<PathBuf> {
    if let Some(asked) = asked {
        return vec![asked.to_owned()];
    }
    let own = std::env::var_os("XDG_RUNTIME_DIR").filter(|path| !path.is_empty());
    let own = own.map(|base| Path::new(&base).join("autossm"));
    std::iter::once(PathBuf::from(SYSTEM)).chain(own).collect()
}

/// Every control socket in these directories by the tunnel's name; of two of one name the first directory's.
pub fn sockets(directories: &[PathBuf]) -> BTreeMap<String, PathBuf> {
    let mut found = BTreeMap::new();
    for directory in directories {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let path = entry.path().join(FILE);
            let Ok(name) = entry.file_name().into_string() else { continue };
            if path.symlink_metadata().is_ok() {
                found.entry(name).or_insert(path);
            }
        }
    }
    found
}

/// The socket of one tunnel; where there is none, the path at which it would be.
pub fn socket(directories: &[PathBuf], tunnel: &str) -> PathBuf {
    let mut paths = directories.iter().map(|directory| directory.join(tunnel).join(FILE));
    let first = paths.next().unwrap_or_default();
    if first.symlink_metadata().is_ok() {
        return first;
    }
    paths.find(|path| path.symlink_metadata().is_ok()).unwrap_or(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_s_own_directory_is_the_tunnel_s_folder() {
        let of = |dir: &str, tunnel| folder(Path::new(dir), tunnel).display().to_string();
        assert_eq!(of("/run/autossm/db", "db"), "/run/autossm/db");
        assert_eq!(of("/run/autossm", "db"), "/run/autossm/db");
        assert_eq!(of("/run/autossm", "autossm"), "/run/autossm/autossm");
        assert_eq!(of("/tmp/db", "db"), "/tmp/db/db");
    }

    #[test]
    fn sockets_are_found_by_their_tunnels_names() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for path in
            [one.path().join("a"), two.path().join("a"), two.path().join("b"), two.path().join("_x1y2")]
        {
            fs::create_dir(&path).unwrap();
            if !path.ends_with("_x1y2") {
                fs::write(path.join(FILE), "").unwrap();
            }
        }
        let directories = [one.path().to_owned(), two.path().to_owned(), "/nonexistent".into()];
        let found = sockets(&directories);
        assert_eq!(found.keys().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(found["a"], one.path().join("a").join(FILE));
        assert_eq!(socket(&directories, "b"), two.path().join("b").join(FILE));
        assert_eq!(socket(&directories, "c"), one.path().join("c").join(FILE));
    }
}
