//! A process's own folder in the runtime directory. It is removed with the process; that of a process that was killed,
//! by the next one.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use tracing::debug;

/// No tunnel's name begins like this: their folders lie in the same directory.
const PREFIX: &str = "_";

/// A folder that is removed when this is dropped.
#[derive(Debug)]
pub struct Folder {
    folder: TempDir,
    /// Locked as long as the process lives, however it ends.
    _lock: File,
}

impl Folder {
    /// Makes one in `runtime_dir`, and removes those that nobody uses any more.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn make(runtime_dir: &Path) -> io::Result<Self> {
        // Another process that has made its folder and not locked it yet must not lose it.
        let all = File::open(runtime_dir)?;
        all.lock()?;
        if let Err(error) = remove_abandoned(runtime_dir) {
            debug!(%error, "what an earlier process has left could not be removed");
        }
        // Few characters: a plugin's socket must fit into it with 107 bytes.
        let folder = tempfile::Builder::new().prefix(PREFIX).rand_bytes(4).tempdir_in(runtime_dir)?;
        let lock = File::open(folder.path())?;
        lock.lock()?;
        Ok(Self { folder, _lock: lock })
    }

    /// For what the process makes for itself and its plugins.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// For the authority's certificate, which the plugins are to trust.
    pub fn certificates(&self) -> PathBuf {
        self.path().join("ca")
    }
}

fn remove_abandoned(runtime_dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(runtime_dir)? {
        let path = entry?.path();
        let ours =
            path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(PREFIX.as_bytes()));
        if ours && path.is_dir() && File::open(&path)?.try_lock().is_ok() {
            fs::remove_dir_all(&path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_process_has_left_is_removed_and_a_living_ones_folder_is_not() {
        let runtime = tempfile::tempdir().unwrap();
        let abandoned = runtime.path().join("_dead");
        fs::create_dir_all(abandoned.join("ca")).unwrap();
        fs::write(abandoned.join("ca/certificate"), "x").unwrap();
        fs::create_dir(runtime.path().join("billing-db")).unwrap();

        let first = Folder::make(runtime.path()).unwrap();
        let second = Folder::make(runtime.path()).unwrap();
        assert!(!abandoned.exists() && runtime.path().join("billing-db").exists());
        assert!(first.path().exists() && second.path().exists());
        let path = first.path().to_owned();
        drop(first);
        assert!(!path.exists() && second.path().exists());
    }
}
