//! The configuration file.

use std::io::ErrorKind;
use std::path::Path;

use super::finding::Finding;
use crate::config::{self, Config};

/// The configuration, and what there is to say of it. Without one: whether this user may read the file at all.
pub(super) fn read(path: &Path) -> (Result<Config, bool>, Finding) {
    const CHECK: &str = "configuration";
    let shown = path.display();
    if std::fs::File::open(path).is_err_and(|error| error.kind() == ErrorKind::PermissionDenied) {
        let remedy = "run autossm doctor as root, or as the service's user: sudo -u autossm autossm doctor";
        let message =
            format!("this user may not read {shown}; nothing is known of the tunnels, nor looked at");
        return (Err(false), Finding::warning(CHECK, message, remedy));
    }
    match config::load(path) {
        Ok(config) => {
            let all = config.tunnels.len();
            let enabled = config.tunnels.iter().filter(|tunnel| tunnel.enabled).count();
            let message = format!("{shown}: tunnels: {all}, enabled: {enabled}");
            (Ok(config), Finding::ok(CHECK, message))
        }
        Err(problems) => {
            let first = problems.list.first();
            let place = first.and_then(|problem| problem.position);
            let place = place.map_or(String::new(), |at| format!(":{}:{}", at.line, at.column));
            let (what, help) = first.map_or(("cannot be used", ""), |problem| (&problem.what, &problem.help));
            let more = match problems.list.len().saturating_sub(1) {
                0 => String::new(),
                more => format!("; and more, {more} in all: autossm check --config {shown}"),
            };
            let message = format!("{}{place}: {what}", problems.file);
            (Err(true), Finding::failure(CHECK, message, format!("{help}{more}")))
        }
    }
}
