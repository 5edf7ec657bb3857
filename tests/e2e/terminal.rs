//! A pseudo-terminal: what an operator sees of a command that runs on one.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::process::Stdio;

use rustix::fs::{Mode, OFlags, open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::sync::watch;

use crate::daemon::PATIENCE;

pub struct Terminal {
    keyboard: File,
    /// All that was written to it.
    screen: watch::Receiver<String>,
    theirs: OwnedFd,
}

impl Terminal {
    pub fn new(columns: u16) -> Self {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&ours).unwrap();
        unlockpt(&ours).unwrap();
        let name = ptsname(&ours, Vec::new()).unwrap();
        let theirs = open(&name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
        let size = Winsize { ws_row: 40, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&theirs, size).unwrap();
        let keyboard = File::from(ours);
        let mut reader = keyboard.try_clone().unwrap();
        let (sender, screen) = watch::channel(String::new());
        // It ends with the last of those that have the other side open.
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                sender.send_modify(|text| text.push_str(&String::from_utf8_lossy(&buffer[..count])));
            }
        });
        Self { keyboard, screen, theirs }
    }

    /// For a command's standard input, output or error.
    pub fn stdio(&self) -> Stdio {
        self.theirs.try_clone().unwrap().into()
    }

    pub fn types(&mut self, text: &str) {
        self.keyboard.write_all(text.as_bytes()).unwrap();
    }

    /// Waits until what was written is as wanted.
    pub async fn shows(&self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        let mut screen = self.screen.clone();
        let waited = tokio::time::timeout(PATIENCE, screen.wait_for(|text| wanted(text))).await;
        match waited {
            Ok(Ok(text)) => text.clone(),
            _ => panic!("never shown: {what}\n{:?}", *self.screen.borrow()),
        }
    }
}
