//! The figures as `docs/reliability.md` has them.

use std::fmt::Write as _;
use std::path::Path;

use crate::run::{Figures, Usage};
use crate::soak::Sample;
use crate::table::{Results, Row};

/// One line for each fault; the cells of the four tunnels are parted by slashes.
pub fn table(rows: &[Row], results: &[Results]) -> String {
    let mut text = String::from(
        "| fault | refused | failed | cut with the session | longest wait, s | served again after, s | long-lived cut | \
         StartSession |\n|---|---|---|---|---|---|---|---|\n",
    );
    let cells = |results: &Results, cell: &dyn Fn(&Figures) -> String| {
        let cells = results.iter().map(|figures| figures.as_ref().map_or("–".into(), cell));
        cells.collect::<Vec<_>>().join(" / ")
    };
    for (row, results) in rows.iter().zip(results) {
        let columns: [&dyn Fn(&Figures) -> String; 7] = [
            &|figures| figures.refused.to_string(),
            &|figures| figures.failed.to_string(),
            &|figures| figures.cut.to_string(),
            &|figures| format!("{:.1}", figures.longest_wait.as_secs_f64()),
            &|figures| format!("{:.1}", figures.recovery.as_secs_f64()),
            &|figures| figures.cuts.to_string(),
            &|figures| figures.starts.to_string(),
        ];
        let columns: Vec<_> = columns.into_iter().map(|cell| cells(results, cell)).collect();
        let _ = writeln!(text, "| {} | {} |", row.name, columns.join(" | "));
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
