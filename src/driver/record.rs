//! Which sessions this tunnel has at the service: a file for each, so that the next process can terminate those that a
//! crash or a hanging service has left there. Only ever its own, never "all sessions of this target".

use std::io;
use std::path::{Path, PathBuf};

use crate::control::place;

/// A file name's limit on every file system of Linux, in bytes.
const LONGEST_NAME: usize = 255;
/// Records looked at: more than a tunnel's sessions of a lifetime of crashes.
const MAX_RECORDS: usize = 1_000;

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
    pub(super) fn open(tunnel_folder: &Path) -> io::Result<Self> {
        let folder = tunnel_folder.join("sessions");
        place::make(tunnel_folder, place::STATE_MODE)?;
        place::make(&folder, place::STATE_MODE)?;
        Ok(Self { folder })
    }

    /// The sessions that are on record. What is no name of a record is somebody else's, and left alone.
    pub(super) fn sessions(&self) -> io::Result<Vec<String>> {
        let mut sessions = Vec::new();
        for entry in std::fs::read_dir(&self.folder)?.take(MAX_RECORDS) {
            sessions.extend(entry?.file_name().to_str().and_then(session_id));
        }
        Ok(sessions)
    }

    pub(super) fn add(&self, session_id: &str) -> io::Result<()> {
        std::fs::write(self.path(session_id)?, b"")
    }

    pub(super) fn remove(&self, session_id: &str) -> io::Result<()> {
        match std::fs::remove_file(self.path(session_id)?) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }

    fn path(&self, session_id: &str) -> io::Result<PathBuf> {
        let name = file_name(session_id).ok_or(io::ErrorKind::InvalidFilename)?;
        Ok(self.folder.join(name))
    }
}

/// The service chooses the id, and it must not lead out of the folder: letters, digits and what ids have beside them stand
/// for themselves, and everything else for its bytes, `%2F` for a slash. `None` if no file can have such a name.
fn file_name(session_id: &str) -> Option<String> {
    let mut name = String::with_capacity(session_id.len());
    for (at, byte) in session_id.bytes().enumerate() {
        match byte {
            b'.' if at == 0 => name.push_str("%2E"),
            _ if byte.is_ascii_alphanumeric() || b"-_.@+=,".contains(&byte) => name.push(byte.into()),
            _ => name.push_str(&format!("%{byte:02X}")),
        }
    }
    (1..=LONGEST_NAME).contains(&name.len()).then_some(name)
}

/// The session of which this is the record's file name.
fn session_id(name: &str) -> Option<String> {
    let (mut bytes, mut rest) = (Vec::with_capacity(name.len()), name.as_bytes());
    while let Some((byte, tail)) = rest.split_first() {
        let escaped = tail.split_at_checked(2).filter(|_| *byte == b'%');
        let (byte, tail) = match escaped {
            Some((digits, tail)) => (u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?, tail),
            None => (*byte, tail),
        };
        bytes.push(byte);
        rest = tail;
    }
    let id = String::from_utf8(bytes).ok()?;
    (file_name(&id)? == name).then_some(id)
}

/// Whatever the service calls a session: its file lies in the folder, and stands for this session and no other one.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(data: &[u8]) {
    use std::path::{Component, Path};

    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Some(name) = file_name(text) {
        let mut components = Path::new(&name).components();
        assert!(matches!(components.next(), Some(Component::Normal(_))) && components.next().is_none());
        assert_eq!(session_id(&name).as_deref(), Some(text));
    }
    if let Some(id) = session_id(text) {
        assert_eq!(file_name(&id).as_deref(), Some(text));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survives_the_process_that_wrote_it() {
        let folder = tempfile::tempdir().unwrap();
        let record = Record::open(&folder.path().join("db")).unwrap();
        record.add("user-0123").unwrap();
        record.add("../../escape").unwrap();
        let again = Record::open(&folder.path().join("db")).unwrap();
        let mut sessions = again.sessions().unwrap();
        sessions.sort();
        assert_eq!(sessions, ["../../escape", "user-0123"]);
        again.remove("user-0123").unwrap();
        again.remove("user-0123").unwrap();
        assert_eq!(record.sessions().unwrap(), ["../../escape"]);
        assert_eq!(
            std::fs::read_dir(folder.path()).unwrap().count(),
            1,
            "nothing beside the tunnel's folder"
        );
    }

    #[test]
    fn ids_that_no_file_can_have_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let record = Record::open(&folder.path().join("db")).unwrap();
        for id in ["", &"x".repeat(256), &"/".repeat(86)] {
            assert_eq!(record.add(id).unwrap_err().kind(), io::ErrorKind::InvalidFilename);
        }
        for id in [".", "..", "a\0b", "someone@example.com-0a1b2c", "ä\n"] {
            record.add(id).unwrap();
            assert_eq!(record.sessions().unwrap(), [id]);
            record.remove(id).unwrap();
        }
    }

    #[test]
    fn files_of_others_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let record = Record::open(&folder.path().join("db")).unwrap();
        for name in [".swp", "a b", "%2f", "%", "%zz", "x%41", "lost+found~"] {
            std::fs::write(folder.path().join("db/sessions").join(name), b"").unwrap();
        }
        assert_eq!(record.sessions().unwrap(), [""; 0]);
    }
}
