//! Plugins that outlive their daemon. Where it is killed and no control group ends with it (in a container, in the
//! foreground), they would run for ever: so each is noted, and the next daemon ends what is left.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use procfs::process::{ProcState, Process};
use tracing::{debug, info};

/// A note's file is named by this and the process's id.
const PREFIX: &str = "plugin-";

/// The note of one running plugin. Removed when this is dropped.
#[derive(Debug)]
pub(super) struct Note(PathBuf);

impl Note {
    /// Puts down in `folder` which process this is.
    pub(super) fn write(folder: &Path, pid: Pid) -> io::Result<Self> {
        let identity = identity(pid).ok_or_else(|| io::Error::other("its state in /proc cannot be read"))?;
        let path = folder.join(format!("{PREFIX}{pid}"));
        fs::write(&path, identity)?;
        Ok(Self(path))
    }
}

impl Drop for Note {
    fn drop(&mut self) {
        // Whoever reads it later compares.
        let _ = fs::remove_file(&self.0);
    }
}

/// Ends every plugin noted in `folder` that still runs, with its process group. A process's id may be another's by now:
/// the note has when it was started, and in which boot.
pub fn end_all(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.parse().ok());
        let Some(pid) = pid.filter(|pid| *pid > 1).map(Pid::from_raw) else { continue };
        let noted = fs::read_to_string(entry.path()).ok();
        if noted.is_none() || noted != identity(pid) {
            continue;
        }
        let pid_number = pid.as_raw();
        match killpg(pid, Signal::SIGKILL) {
            Ok(()) => info!(
                event = "survivor_ended",
                pid = pid_number,
                "ended the plugin {pid}, which has outlived its daemon"
            ),
            Err(error) => debug!(pid = pid_number, %error, "a plugin that has outlived its daemon stays"),
        }
    }
}

/// What no other process of this host has had or will have. `None` if there is no such process, or if it does not lead its
/// group, as every plugin does.
fn identity(pid: Pid) -> Option<String> {
    let stat = Process::new(pid.as_raw()).and_then(|process| process.stat()).ok()?;
    let runs = !matches!(stat.state(), Ok(ProcState::Zombie | ProcState::Dead));
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    (runs && stat.pgrp == stat.pid).then(|| format!("{} {}\n", stat.starttime, boot.trim()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
    use std::process::{Child, Command};

    use super::*;

    fn sleeper() -> (Child, Pid) {
        let child = Command::new("sleep").arg("600").process_group(0).spawn().unwrap();
        let pid = Pid::from_raw(child.id().cast_signed());
        (child, pid)
    }

    #[test]
    fn ends_what_is_noted_and_only_if_it_is_still_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let (mut noted, pid) = sleeper();
        std::mem::forget(Note::write(folder.path(), pid).unwrap());
        // Its number went to another process.
        let (mut other, other_pid) = sleeper();
        let name = |pid: Pid| folder.path().join(format!("{PREFIX}{pid}"));
        let text = fs::read_to_string(name(pid)).unwrap();
        let (start, boot) = text.split_once(' ').unwrap();
        fs::write(name(other_pid), format!("{} {boot}", start.parse::<u64>().unwrap() - 1)).unwrap();
        // A note that was cut off, and those that no process can have.
        let (mut third, third_pid) = sleeper();
        fs::write(name(third_pid), "").unwrap();
        for name in ["plugin-0", "plugin-1", "plugin--1", "plugin-x", "plugin-99999999999", "ca"] {
            fs::write(folder.path().join(name), &text).unwrap();
        }
        end_all(folder.path());
        assert_eq!(noted.wait().unwrap().signal(), Some(Signal::SIGKILL as i32));
        assert!(other.try_wait().unwrap().is_none() && third.try_wait().unwrap().is_none());
        for mut child in [other, third] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    #[test]
    fn after_another_boot_nothing_is_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let (mut child, pid) = sleeper();
        let note = Note::write(folder.path(), pid).unwrap();
        let text = fs::read_to_string(&note.0).unwrap();
        let (start, _) = text.split_once(' ').unwrap();
        fs::write(&note.0, format!("{start} 00000000-0000-0000-0000-000000000000\n")).unwrap();
        end_all(folder.path());
        assert!(child.try_wait().unwrap().is_none());
        let path = note.0.clone();
        drop(note);
        assert!(!path.exists());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
