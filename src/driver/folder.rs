//! A process's own folder in the runtime directory. It is removed with the process; that of a process that was killed,
//! by the next one, and with it what still runs of its plugins.

use std::fs::{self, DirEntry, File, Permissions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;
use tempfile::TempDir;
use tracing::debug;

use crate::plugin::survivor;

/// No tunnel's name begins like this: their folders lie in the same directory.
const PREFIX: &str = "_";
/// So often another process may take a new folder for abandoned before it is locked.
const ATTEMPTS: usize = 100;

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
    /// Nothing here waits for a lock, and nobody else can hold one: the directory is open to all users of the host, the
    /// folders in it are not.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn make(runtime_dir: &Path) -> io::Result<Self> {
        match fs::read_dir(runtime_dir) {
            Ok(entries) => entries.flatten().for_each(|entry| {
                if let Err(error) = remove_if_abandoned(&entry) {
                    let path = entry.path().display().to_string();
                    debug!(path, %error, "what an earlier process has left could not be removed");
                }
            }),
            Err(error) => debug!(%error, "the runtime directory cannot be read"),
        }
        for _ in 0..ATTEMPTS {
            // Few characters: a plugin's socket must fit into it with 107 bytes.
            let mut builder = tempfile::Builder::new();
            builder.prefix(PREFIX).rand_bytes(4).permissions(Permissions::from_mode(0o700));
            let folder = builder.tempdir_in(runtime_dir)?;
            if let Some(lock) = lock(folder.path())? {
                return Ok(Self { folder, _lock: lock });
            }
        }
        Err(io::Error::new(
            ErrorKind::ResourceBusy,
            format!("other processes remove what is made in {}", runtime_dir.display()),
        ))
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

/// Locks a new folder. `None` if another process was faster, and has removed it or is about to.
fn lock(folder: &Path) -> io::Result<Option<File>> {
    let file = match File::open(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => return Ok(None),
        result => result?,
    }
    let locked = file.metadata()?;
    match fs::symlink_metadata(folder) {
        Ok(there) => Ok((there.ino() == locked.ino() && there.dev() == locked.dev()).then_some(file)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn remove_if_abandoned(entry: &DirEntry) -> io::Result<()> {
    let is_ours = entry.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes());
    if !is_ours || !entry.file_type()?.is_dir() {
        return Ok(());
    }
    let path = entry.path();
    let folder = File::open(&path)?;
    if folder.try_lock().is_err() {
        return Ok(());
    }
    // Nobody else says which processes this user ends.
    if folder.metadata()?.uid() == geteuid().as_raw() {
        survivor::end_all(&path);
    }
    fs::remove_dir_all(&path)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

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
        assert_eq!(fs::metadata(first.path()).unwrap().mode() & 0o777, 0o700, "nobody else can lock it");
        let path = first.path().to_owned();
        drop(first);
        assert!(!path.exists() && second.path().exists());
    }

    /// `flock /run/autossm/NAME sleep inf`, by anybody: the directory can be read by all.
    #[test]
    fn a_lock_on_the_runtime_directory_stops_nobody() {
        let runtime = tempfile::tempdir().unwrap();
        let somebody = File::open(runtime.path()).unwrap();
        somebody.lock().unwrap();
        let (sender, made) = std::sync::mpsc::channel();
        let path = runtime.path().to_owned();
        std::thread::spawn(move || sender.send(Folder::make(&path).unwrap()));
        made.recv_timeout(std::time::Duration::from_secs(20)).expect("it waits for somebody's lock");
    }

    #[test]
    fn a_link_is_not_followed() {
        let (runtime, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(elsewhere.path().join("precious"), "x").unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), runtime.path().join("_link")).unwrap();
        let _folder = Folder::make(runtime.path()).unwrap();
        assert!(elsewhere.path().join("precious").exists());
    }

    /// Each removes what is not locked, while the others are between making a folder and locking it.
    #[test]
    fn those_that_start_together_leave_each_other_alone() {
        let runtime = tempfile::tempdir().unwrap();
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let makers: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        for _ in 0..200 {
                            let folder = Folder::make(runtime.path()).unwrap();
                            fs::write(folder.path().join("file"), "x").expect("its folder is gone");
                        }
                    })
                })
                .collect();
            let cleaner = scope.spawn(|| {
                while !over.load(Relaxed) {
                    for entry in fs::read_dir(runtime.path()).unwrap().flatten() {
                        let _ = remove_if_abandoned(&entry);
                    }
                }
            });
            let results: Vec<_> = makers.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
            over.store(true, Relaxed);
            cleaner.join().unwrap();
            results.into_iter().for_each(|result| result.unwrap());
        });
        assert_eq!(fs::read_dir(runtime.path()).unwrap().count(), 0);
    }
}
