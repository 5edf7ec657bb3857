//! The figures as `docs/reliability.md` has them.

use std::fmt::Write as _;
use std::path::Path;

use crate::run::{Figures, Usage};
use crate::soak::Sample;
use crate::table::{Results, Row};

/// A column: what it is called, and its cell.
type Column = (&'static str, fn(&Figures) -> String);

const COLUMNS: [Column; 7] = [
    ("refused", |figures| figures.refused.to_string()),
    ("failed", |figures| figures.failed.to_string()),
    ("cut with the session", |figures| figures.cut.to_string()),
    ("longest wait, s", |figures| format!("{:.1}", figures.longest_wait.as_secs_f64())),
    ("served again after, s", |figures| format!("{:.1}", figures.recovery.as_secs_f64())),
    ("long-lived cut", |figures| figures.cuts.to_string()),
    ("StartSession", |figures| figures.starts.to_string()),
];
/// Of rows with transfers.
const MORE_COLUMNS: [Column; 3] = [
    ("longest wait afterwards, s", |figures| format!("{:.1}", figures.late.as_secs_f64())),
    ("transfers complete", |figures| figures.transfers[0].to_string()),
    ("transfers reset", |figures| figures.transfers[1].to_string()),
];

/// One line for each fault, of those with or without transfers; the cells of the four tunnels are parted by slashes.
pub fn table(rows: &[Row], results: &[Results], transfers: bool) -> String {
    let more = if transfers { &MORE_COLUMNS[..] } else { &[] };
    let columns: Vec<_> = COLUMNS.iter().chain(more).collect();
    let names: Vec<_> = columns.iter().map(|(name, _)| *name).collect();
    let mut text = format!("| fault | {} |\n{}|\n", names.join(" | "), "|---".repeat(1 + columns.len()));
    for (row, results) in rows.iter().zip(results).filter(|(row, _)| row.has_transfers() == transfers) {
        let cells = columns.iter().map(|(_, cell)| {
            let of_tunnels = results.iter().map(|figures| figures.as_ref().map_or("–".into(), cell));
            of_tunnels.collect::<Vec<_>>().join(" / ")
        });
        let _ = writeln!(text, "| {} | {} |", row.name, cells.collect::<Vec<_>>().join(" | "));
    }
    text
}

/// What came of a day, and the daemon at the end of each hour.
pub fn soak(form: &str, summary: &str, samples: &[Sample]) -> String {
    let mut text = format!(
        "**With {form}:** {summary}\n\n| hour | resident, kB | descriptors | tasks | connections so far |\n|---|---|---|---|---|\n"
    );
    for Sample { hour, resident, usage, connections } in samples {
        let Usage { tasks, descriptors } = usage;
        let _ = writeln!(text, "| {hour} | {resident} | {descriptors} | {tasks} | {connections} |");
    }
    text
}

/// Puts `text` between the marks of this part of the page.
pub fn write(part: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reliability.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let (begin, end) = (format!("<!-- {part} -->\n"), format!("<!-- end of {part} -->"));
    let (before, rest) = page.split_once(&begin).unwrap();
    let (_, after) = rest.split_once(&end).unwrap();
    std::fs::write(&path, format!("{before}{begin}\n{text}\n{end}{after}")).unwrap();
    println!("written: docs/reliability.md, {part}");
}
