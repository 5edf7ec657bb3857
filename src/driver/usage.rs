//! What the process has open, at trace level only: something that is never given back shows in months, not in days.

use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::interval;
use tracing::level_filters::LevelFilter;
use tracing::trace;

const EVERY: Duration = Duration::from_secs(1);

/// Whether anybody wants to know: `--log-level info,autossm::driver::usage=trace`.
pub(super) fn is_wanted() -> bool {
    // Not `enabled!`: asked that way, the layers that do not want the answer (the record of events) miss the next line,
    // which is about something else.
    LevelFilter::current() == LevelFilter::TRACE
}

/// Tells it every second.
pub(super) async fn tell() {
    let mut ticks = interval(EVERY);
    loop {
        ticks.tick().await;
        let tasks = Handle::current().metrics().num_alive_tasks();
        // The folder cannot be read from outside: the process is not dumpable.
        let descriptors = procfs::process::Process::myself().and_then(|process| process.fd_count());
        trace!(event = "usage", tasks, descriptors = descriptors.unwrap_or_default(), "in use");
    }
}
