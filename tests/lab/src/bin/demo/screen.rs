//! The live table: drawn over itself on a terminal, as lines elsewhere.

use std::io::{IsTerminal as _, Write as _, stdout};
use std::time::{Duration, Instant};

use autossm_lab::load::Seen;
use autossm_lab::status::Status;

use crate::daemon::Daemon;

/// The latest lines of the story on a terminal.
const LINES: usize = 8;
/// Elsewhere the table is printed this often.
const EVERY: Duration = Duration::from_secs(5);

pub struct Screen {
    began: Instant,
    live: bool,
    /// Rows drawn last time.
    drawn: usize,
    /// Lines of the story told so far, and when the table was printed, where it is not live.
    told: usize,
    printed: Option<Instant>,
}

impl Screen {
    pub fn new() -> Self {
        Self { began: Instant::now(), live: stdout().is_terminal(), drawn: 0, told: 0, printed: None }
    }

    pub fn draw(&mut self, seen: &Seen, service: &Status, daemon: &Daemon) {
        let failed = seen.failed(&daemon.ends());
        let cut = seen.failures().count() - failed.len();
        let long = &seen.long_lived;
        let table = [
            ("running for", format!("{} s", self.began.elapsed().as_secs())),
            ("connections made", format!("{}, waiting {}", seen.attempts.len(), seen.waiting)),
            ("failed", failed.len().to_string()),
            ("cut together with their session", cut.to_string()),
            ("longest wait", format!("{:.1} s", seen.longest_wait().as_secs_f64())),
            (
                "the connection that stays open",
                format!("{} s old, {} messages, cut {}×", long.age.as_secs(), long.messages, long.cuts.len()),
            ),
            (
                "data channels opened, sessions started",
                format!("{}, {}", service.opened, service.start.succeeded),
            ),
        ];
        let lines = daemon.lines();
        let tell = |line: &crate::daemon::Line| {
            let at = line.at.saturating_duration_since(self.began).as_secs_f64();
            let who = if line.by_autossm { "    autossm:" } else { ">>" };
            format!("{at:6.1} s  {who} {}", line.text)
        };
        let mut rows: Vec<String> = Vec::new();
        if self.live {
            rows.extend(table.iter().map(|(name, value)| format!("{name:<40} {value}")));
            rows.push(String::new());
            rows.extend(lines.iter().skip(lines.len().saturating_sub(LINES)).map(tell));
        } else {
            rows.extend(lines.iter().skip(self.told).map(tell));
            if self.printed.is_none_or(|at| at.elapsed() >= EVERY) {
                self.printed = Some(Instant::now());
                let short: Vec<_> = table.iter().map(|(name, value)| format!("{name}: {value}")).collect();
                rows.push(format!("          {}", short.join(" · ")));
            }
        }
        self.told = lines.len();
        self.print(&rows);
    }

    fn print(&mut self, rows: &[String]) {
        let mut text = String::new();
        if self.live && self.drawn > 0 {
            text += &format!("\x1b[{}A", self.drawn);
        }
        for row in rows {
            // A row that the terminal would break would push the table down.
            let row: String = if self.live { row.chars().take(width()).collect() } else { row.clone() };
            text += &row;
            text += if self.live { "\x1b[K\n" } else { "\n" };
        }
        if self.live {
            text += "\x1b[J";
            self.drawn = rows.len();
        }
        let mut out = stdout().lock();
        // A closed pipe ends the demonstration by itself soon.
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }
}

fn width() -> usize {
    std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok()).unwrap_or(100)
}
