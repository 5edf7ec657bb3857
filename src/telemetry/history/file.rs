//! The record of events in the state directory: versioned JSON lines in two files, of which the older one goes when the
//! newer one is full.
//!
//! A line is appended with one write and not waited for to reach the disk: a process that is killed loses nothing, a host
//! that loses its power at most its last seconds. A line that was cut off is passed over, and the next one begins anew.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use crate::control::place;
use crate::control::protocol::{Event, Line, VERSION};

/// A file that has reached this many bytes becomes the older one. Two of them hold some 6000 events: about two months
/// of a tunnel that is closed every hour.
const FULL: u64 = 1 << 20;
/// Bytes at the end that are read at a start: about a thousand events.
const LATEST: u64 = 256 << 10;
/// `autossm why` reads it where no daemon runs: as root, or as a member of the group.
const MODE: u32 = 0o640;
/// A longer line is not one of ours.
const LONGEST: u64 = 64 << 10;

/// The two files.
#[derive(Debug)]
pub struct Files {
    newer: PathBuf,
    older: PathBuf,
}

impl Files {
    /// The files of the tunnel whose folder in the state directory this is.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn open(folder: &Path) -> io::Result<Self> {
        place::make(folder, place::STATE_MODE)?;
        Ok(Self::at(folder))
    }

    /// The same, of a folder that need not be there.
    pub(super) fn at(folder: &Path) -> Self {
        Self { newer: folder.join("events.jsonl"), older: folder.join("events.1.jsonl") }
    }

    /// Appends an event. The file is opened each time: events are rare, descriptors are not to be held for them, and a
    /// file that somebody has removed is made again.
    pub(super) fn append(&self, event: &Event) -> io::Result<()> {
        let mut line = serde_json::to_vec(&Line::new(event))?;
        line.push(b'\n');
        let mut file = self.appended()?;
        let mut size = file.metadata()?.len();
        if size > 0 && size + line.len() as u64 > FULL {
            drop(file);
            fs::rename(&self.newer, &self.older)?;
            file = self.appended()?;
            size = file.metadata()?.len();
        }
        let mut end = [b'\n'];
        if size > 0 {
            file.read_exact_at(&mut end, size - 1)?;
        }
        if end != [b'\n'] {
            // Whoever wrote last was cut off.
            line.insert(0, b'\n');
        }
        file.write_all(&line)
    }

    fn appended(&self) -> io::Result<File> {
        let file = OpenOptions::new().create(true).append(true).read(true).mode(MODE).open(&self.newer)?;
        if file.metadata()?.len() == 0 {
            // It is new, and the unit's umask has taken the group's permission away.
            file.set_permissions(fs::Permissions::from_mode(MODE))?;
        }
        Ok(file)
    }

    /// Every event, oldest first, until `next` wants no more.
    pub(super) fn read(&self, next: impl FnMut(Event) -> bool) -> io::Result<()> {
        self.read_from(u64::MAX, next)
    }

    /// The latest events, oldest first: enough to go on with.
    pub(super) fn latest(&self, mut next: impl FnMut(Event)) -> io::Result<()> {
        self.read_from(LATEST, |event| {
            next(event);
            true
        })
    }

    /// The events of the last `bytes`.
    fn read_from(&self, bytes: u64, mut next: impl FnMut(Event) -> bool) -> io::Result<()> {
        // In this order, because the newer file may become the older one in between: then it is read twice, and what it
        // has left out the second time.
        let newer = opened(&self.newer)?;
        let older = opened(&self.older)?;
        let size = newer.as_ref().map_or(Ok(0), |file| file.metadata().map(|metadata| metadata.len()))?;
        let (mut seen, mut wanted) = (0, true);
        for (file, bytes) in [(older, bytes.saturating_sub(size)), (newer, bytes)] {
            let Some(file) = file else { continue };
            if wanted && bytes > 0 {
                lines(file, bytes, |event| {
                    if event.seq > seen {
                        seen = event.seq;
                        wanted = next(event);
                    }
                    wanted
                })?;
            }
        }
        Ok(())
    }
}

fn opened(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The events in the last `bytes` of a file. What is no event of this version is passed over.
fn lines(mut file: File, bytes: u64, mut next: impl FnMut(Event) -> bool) -> io::Result<()> {
    let size = file.metadata()?.len();
    let skipped = size.saturating_sub(bytes);
    file.seek(SeekFrom::Start(skipped))?;
    let mut reader = BufReader::with_capacity(16 << 10, file);
    if skipped > 0 {
        // The rest of a line.
        reader.skip_until(b'\n')?;
    }
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = reader.by_ref().take(LONGEST).read_until(b'\n', &mut line)?;
        if read == 0 {
            return Ok(());
        }
        if line.last() != Some(&b'\n') {
            reader.skip_until(b'\n')?;
            continue;
        }
        if let Ok(line) = serde_json::from_slice::<Line<Event>>(&line)
            && line.v == VERSION
            && !next(line.body)
        {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(seq: u64, message: &str) -> Event {
        Event { seq, message: message.to_owned(), ..Event::default() }
    }

    fn numbers(files: &Files) -> Vec<u64> {
        let mut numbers = Vec::new();
        files
            .read(|event| {
                numbers.push(event.seq);
                true
            })
            .unwrap();
        numbers
    }

    #[test]
    fn a_line_that_was_cut_off_costs_only_itself() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::open(folder.path()).unwrap();
        files.append(&event(1, "whole")).unwrap();
        files.append(&event(2, "cut")).unwrap();
        let text = fs::read(&files.newer).unwrap();
        for kept in [text.len() - 1, text.len() - 20, text.len() / 2 + 2] {
            fs::write(&files.newer, &text[..kept]).unwrap();
            assert_eq!(numbers(&files), [1], "{kept}");
            files.append(&event(3, "after")).unwrap();
            assert!(matches!(numbers(&files)[..], [1, 3] | [1, 2, 3]), "{kept}: {:?}", numbers(&files));
        }
    }

    #[test]
    fn what_is_no_event_is_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::open(folder.path()).unwrap();
        let mut text = b"\n\xff\xfe\n{}\n{\"v\":2,\"seq\":9}\nnull\n[1]\n".to_vec();
        text.extend(vec![b'x'; 200_000]);
        text.push(b'\n');
        fs::write(&files.newer, text).unwrap();
        files.append(&event(4, "an event")).unwrap();
        assert_eq!(numbers(&files), [4]);
    }

    #[test]
    fn the_size_is_capped_and_the_latest_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::open(folder.path()).unwrap();
        let message = "x".repeat(10_000);
        for seq in 1..=400 {
            files.append(&event(seq, &message)).unwrap();
        }
        let size = |path: &Path| fs::metadata(path).unwrap().len();
        assert!(size(&files.newer) <= FULL && size(&files.older) <= FULL);
        let kept = numbers(&files);
        assert!(kept.len() > 100 && kept.last() == Some(&400), "{kept:?}");
        assert!(kept.windows(2).all(|pair| pair[0] + 1 == pair[1]));
        let mut latest = Vec::new();
        files.latest(|event| latest.push(event.seq)).unwrap();
        assert!((20..=26).contains(&latest.len()) && latest.last() == Some(&400), "{latest:?}");
    }

    #[test]
    fn a_file_that_was_removed_is_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::open(folder.path()).unwrap();
        files.append(&event(1, "")).unwrap();
        fs::remove_file(&files.newer).unwrap();
        assert_eq!(numbers(&files), [0_u64; 0]);
        files.append(&event(2, "")).unwrap();
        assert_eq!(numbers(&files), [2]);
    }
}
