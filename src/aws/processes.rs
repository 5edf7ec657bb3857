//! The processes that a credential provider starts. aws-config runs a `credential_process` without a limit of time, and
//! lets it go on when nobody waits for it any more: one that hangs would stay, and the next beside it.

use std::future::poll_fn;
use std::pin::pin;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use procfs::process::Process;
use tokio::time::timeout;

/// Runs `future` for at most `limit`. If it is not over by then, the processes that it has started are killed, with all
/// that they have started themselves.
pub(super) async fn within<F: Future>(limit: Duration, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut started = Vec::new();
    // Whatever this thread has more of after a poll than before was started by it.
    let polled = poll_fn(|context| {
        let before = children("thread-self");
        let poll = future.as_mut().poll(context);
        if poll.is_pending() {
            started.extend(children("thread-self").into_iter().filter(|child| !before.contains(child)));
        }
        poll
    });
    let output = timeout(limit, polled).await.ok();
    if output.is_none() {
        // The future still has them: none that has ended is forgotten, nor its number another's.
        started.retain(|child| is_ours(*child));
        started.into_iter().for_each(end);
    }
    output
}

fn is_ours(child: Pid) -> bool {
    let stat = Process::new(child.as_raw()).and_then(|process| process.stat());
    stat.is_ok_and(|stat| stat.ppid == Pid::this().as_raw())
}

/// The parent first, so that it starts no others.
fn end(process: Pid) {
    let threads = std::fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let below =
        threads.flat_map(|thread| children(&format!("{process}/task/{}", thread.file_name().display())));
    let below: Vec<_> = below.collect();
    let _ = kill(process, Signal::SIGKILL);
    below.into_iter().for_each(end);
}

/// The processes that a thread has started, by its folder in `/proc`; none where that cannot be read.
fn children(thread: &str) -> Vec<Pid> {
    let list = std::fs::read_to_string(format!("/proc/{thread}/children")).unwrap_or_default();
    list.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).map(Pid::from_raw).collect()
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    #[tokio::test]
    async fn what_hangs_is_ended_with_all_that_it_has_started() {
        assert_eq!(within(Duration::from_secs(5), async { 1 }).await, Some(1));
        // The shell's own child holds the pipe's other end as long as it lives.
        let (end, mut pipe) = tokio::net::unix::pipe::pipe().unwrap();
        let end = end.into_blocking_fd().unwrap();
        let hangs = async {
            let mut command = tokio::process::Command::new("sh");
            command.args(["-c", "sleep 1000; true"]).stdout(end).status().await
        };
        assert!(within(Duration::from_millis(300), hangs).await.is_none());
        let read = timeout(Duration::from_secs(10), pipe.read_u8()).await.expect("it was ended");
        assert_eq!(read.unwrap_err().kind(), std::io::ErrorKind::UnexpectedEof);
    }
}
