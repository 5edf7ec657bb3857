//! Which sessions this tunnel has at the service: a file for each, so that the next process can terminate those that a
//! crash or a hanging service has left there. Only ever its own, never "all sessions of this target".

use std::io;
use std::path::PathBuf;

/// The folder with one empty file for each session, named by its id. A session's id is no secret.
#[derive(Clone, Debug)]
pub(super) struct Record {
    folder: PathBuf,
}

impl Record {
    /// Opens the record in the tunnel's folder.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub(super) fn open(tunnel_folder: PathBuf) -> io::Result<Self> {
        let folder = tunnel_folder.join("sessions");
        std::fs::create_dir_all(&folder)?;
        Ok(Self { folder })
    }

    /// The sessions that are on record.
    pub(super) fn sessions(&self) -> io::Result<Vec<String>> {
        std::fs::read_dir(&self.folder)?
            .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
            .collect()
    }

    pub(super) fn add(&self, session_id: &str) -> io::Result<()> {
        std::fs::write(self.path(session_id), b"")
    }

    pub(super) fn remove(&self, session_id: &str) -> io::Result<()> {
        match std::fs::remove_file(self.path(session_id)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }

    /// The service chooses the id: a slash in one must not lead out of the folder.
    fn path(&self, session_id: &str) -> PathBuf {
        self.folder.join(session_id.replace('/', "_"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survives_the_process_that_wrote_it() {
        let folder = tempfile::tempdir().unwrap();
        let record = Record::open(folder.path().join("db")).unwrap();
        record.add("user-0123").unwrap();
        record.add("../../escape").unwrap();
        let again = Record::open(folder.path().join("db")).unwrap();
        let mut sessions = again.sessions().unwrap();
        sessions.sort();
        assert_eq!(sessions, [".._.._escape", "user-0123"]);
        again.remove("user-0123").unwrap();
        again.remove("user-0123").unwrap();
        assert_eq!(record.sessions().unwrap(), [".._.._escape"]);
    }
}
