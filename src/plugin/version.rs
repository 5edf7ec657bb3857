//! Which plugin it is, asked once for each file.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use futures_util::future::{BoxFuture, FutureExt as _, Shared};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt, BufReader};

use super::clean_command;
use crate::tunnel::failure::{Class, Failure};

/// An older one takes the session's token as an argument, which shows it to every user of the host.
const OLDEST: Version = Version([1, 2, 536, 0]);
/// An older one does not sign the data channel's request, and AWS no longer supports it.
const SUPPORTED: Version = Version([1, 2, 764, 0]);
/// What a build from the public source says, whichever it is.
const FROM_SOURCE: Version = Version([1, 2, 0, 0]);
/// For an answer to `--version`.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest answer that is read, in bytes.
const ANSWER: u64 = 4096;

/// Such as 1.2.764.0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub [u32; 4]);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d] = self.0;
        write!(f, "{a}.{b}.{c}.{d}")
    }
}

/// An answer that has come or is being waited for, by as many as want it.
type Answer = Shared<BoxFuture<'static, Result<Version, Failure>>>;

/// The versions of the plugins that were asked. A file that has changed since is asked again.
#[derive(Debug, Default)]
pub struct Versions(Mutex<HashMap<PathBuf, (SystemTime, Answer)>>);

impl Versions {
    /// None asked yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The version of `plugin`. One that is old, or of which the age cannot be known, is warned of when it is asked. However
    /// many want to know at the same time, it is asked once.
    ///
    /// Fails if it is too old to be used, or does not answer within 5 s.
    pub async fn check(&self, plugin: &Path) -> Result<Version, Failure> {
        let modified = std::fs::metadata(plugin)
            .and_then(|file| file.modified())
            .map_err(|e| needs_change(plugin, format!("cannot be read: {e}")))?;
        let version = self.answer(plugin, modified).await?;
        if version < OLDEST && version != FROM_SOURCE {
            let text = format!(
                "is version {version}, older than {OLDEST}: it would show the session's token to every user"
            );
            return Err(needs_change(plugin, format!("{text}; install a newer session-manager-plugin")));
        }
        Ok(version)
    }

    fn answer(&self, plugin: &Path, modified: SystemTime) -> Answer {
        let mut answers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let holds = |(of, answer): &&(SystemTime, Answer)| {
            // Whoever waits for a failure has it; whoever comes later asks again.
            *of == modified && !matches!(answer.peek(), Some(Err(_)))
        };
        if let Some((_, answer)) = answers.get(plugin).filter(holds) {
            return answer.clone();
        }
        let path = plugin.to_owned();
        let answer = async move { ask(&path).await.inspect(|version| warn(&path, *version)) };
        let answer = answer.boxed().shared();
        answers.insert(plugin.to_owned(), (modified, answer.clone()));
        answer
    }
}

impl Version {
    /// What the operator should know of a plugin of this version; `None` where all is well.
    pub fn shortcoming(self) -> Option<String> {
        if self == FROM_SOURCE {
            // Agents take it for one of 2022, see `gateway::agent_clock`.
            Some(
                "the plugin was built from source and does not say how old it is: agents end its sessions after 30 to 60 s without \
                 a client's data; so they are sent a keep-alive every 10 s, whatever `keepalive` says, but not in encrypted \
                 sessions nor with `gateway = \"observe\"`"
                    .to_owned(),
            )
        } else if (OLDEST..SUPPORTED).contains(&self) {
            Some(format!("the plugin is older than {SUPPORTED}, which AWS supports no longer"))
        } else {
            None
        }
    }
}

fn warn(plugin: &Path, version: Version) {
    let plugin = plugin.display();
    if let Some(shortcoming) = version.shortcoming() {
        tracing::warn!(%plugin, %version, "{shortcoming}");
    }
}

async fn ask(plugin: &Path) -> Result<Version, Failure> {
    let mut command = clean_command(plugin);
    let spawned = command.arg("--version").env("HOME", "/").stderr(std::process::Stdio::null()).spawn();
    let mut child = spawned.map_err(|e| spawn_failure(plugin, &e))?;
    let group = child.id().and_then(|id| i32::try_from(id).ok());
    let stdout = child.stdout.take();
    let answer = async {
        let mut text = Vec::new();
        if let Some(stdout) = stdout {
            BufReader::new(stdout).take(ANSWER).read_to_end(&mut text).await?;
        }
        Ok::<_, std::io::Error>(text)
    };
    let answer = tokio::time::timeout(PATIENCE, answer).await;
    // Whether it has answered or not, nothing of it stays.
    if let Some(group) = group {
        let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
    }
    let status = child.wait().await;
    let silent = |what: String| Failure::new(Class::Network, format!("{} {what}", plugin.display()));
    // A host that has just been started, or has no memory left: these pass.
    let text = answer
        .map_err(|_| silent(format!("does not answer --version within {} s", PATIENCE.as_secs())))?
        .map_err(|e| silent(format!("does not answer --version: {e}")))?;
    if text.is_empty()
        && let Ok(status) = status
        && !status.success()
    {
        return Err(silent(format!("does not answer --version: {status}")));
    }
    let text = String::from_utf8_lossy(&text);
    text.lines().find_map(parse).ok_or_else(|| {
        let said: String = text.trim().chars().take(100).collect();
        needs_change(plugin, format!("is no session-manager-plugin: to --version it says {said:?}"))
    })
}

/// Why a plugin could not be started.
pub(super) fn spawn_failure(plugin: &Path, error: &std::io::Error) -> Failure {
    Failure::new(class(error), format!("{} cannot be started: {error}", plugin.display()))
}

/// Whether somebody has to do something about an error of the operating system's.
pub(super) fn class(error: &std::io::Error) -> Class {
    use std::io::ErrorKind;
    match error.kind() {
        ErrorKind::NotFound
        | ErrorKind::PermissionDenied
        | ErrorKind::NotADirectory
        | ErrorKind::ReadOnlyFilesystem => Class::NeedsChange,
        // No memory, no room on the disk, too many processes, a file that is just being replaced: these pass.
        _ => Class::Network,
    }
}

fn needs_change(plugin: &Path, what: impl fmt::Display) -> Failure {
    Failure::new(Class::NeedsChange, format!("{} {what}", plugin.display()))
}

fn parse(line: &str) -> Option<Version> {
    let mut numbers = line.trim().split('.').map(|part| part.parse().ok());
    let version = [numbers.next()??, numbers.next()??, numbers.next()??, numbers.next()??];
    numbers.next().is_none().then_some(Version(version))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugin::process::tests::{script, started};

    /// A plugin whose every run adds a line to `runs`.
    fn says(folder: &Path, answer: &str) -> PathBuf {
        script(folder, &format!("echo run >> {}/runs\n{answer}", folder.display()))
    }

    async fn check(versions: &Versions, plugin: &Path) -> Result<Version, Failure> {
        started(async || versions.check(plugin).await).await
    }

    #[tokio::test]
    async fn old_ones_are_refused_and_those_from_source_are_not() {
        for (answer, expected) in [
            ("1.2.535.9", None),
            ("1.1.999.0", None),
            ("1.2.536.0", Some([1, 2, 536, 0])),
            ("1.2.763.0", Some([1, 2, 763, 0])),
            ("1.2.835.0", Some([1, 2, 835, 0])),
            ("1.2.0.0", Some([1, 2, 0, 0])),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let plugin = says(folder.path(), &format!("echo {answer}"));
            let result = check(&Versions::new(), &plugin).await;
            match expected {
                Some(version) => assert_eq!(result, Ok(Version(version))),
                None => {
                    let failure = result.unwrap_err();
                    assert_eq!(failure.class, Class::NeedsChange);
                    assert!(failure.text.contains("older than 1.2.536.0"), "{failure}");
                }
            }
        }
    }

    #[tokio::test]
    async fn is_asked_once_until_the_file_changes() {
        let folder = tempfile::tempdir().unwrap();
        let plugin = says(folder.path(), "echo 1.2.764.0");
        let versions = Versions::new();
        let runs = || std::fs::read_to_string(folder.path().join("runs")).unwrap().lines().count();
        for _ in 0..2 {
            check(&versions, &plugin).await.unwrap();
            assert_eq!(runs(), 1);
        }
        let file = std::fs::File::open(&plugin).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        drop(file);
        check(&versions, &plugin).await.unwrap();
        assert_eq!(runs(), 2);
    }

    #[tokio::test]
    async fn something_else_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        for answer in ["echo hello", "true", "echo hello; exit 1", "head -c 100000 /dev/zero"] {
            let plugin = says(folder.path(), answer);
            let failure = check(&Versions::new(), &plugin).await.unwrap_err();
            assert_eq!(failure.class, Class::NeedsChange);
            assert!(failure.text.contains("is no session-manager-plugin"), "{failure}");
        }
    }

    #[tokio::test]
    async fn one_that_does_not_answer_is_ended() {
        let folder = tempfile::tempdir().unwrap();
        let plugin = script(folder.path(), "echo $$ > \"${0%/*}/pid\"\nsleep 600");
        let failure = check(&Versions::new(), &plugin).await.unwrap_err();
        assert!(failure.text.contains("does not answer --version within 5 s"), "{failure}");
        assert_eq!(failure.class, Class::Network, "a slow host is no reason to wait for somebody");
        let pid = std::fs::read_to_string(folder.path().join("pid")).unwrap();
        assert!(!Path::new("/proc").join(pid.trim()).exists(), "it was killed and reaped");
    }

    #[tokio::test]
    async fn one_that_is_killed_before_it_answers_is_asked_again_soon() {
        let folder = tempfile::tempdir().unwrap();
        let again = folder.path().join("again");
        let lines = format!("[ -e {0} ] && echo 1.2.764.0 && exit\n: > {0}\nkill -9 $$", again.display());
        let plugin = says(folder.path(), &lines);
        let versions = Versions::new();
        let failure = check(&versions, &plugin).await.unwrap_err();
        assert_eq!(failure.class, Class::Network);
        assert!(failure.text.contains("does not answer --version: signal: 9"), "{failure}");
        assert_eq!(check(&versions, &plugin).await, Ok(Version([1, 2, 764, 0])), "a failure is not kept");
    }

    /// A process with 200 tunnels.
    #[tokio::test]
    async fn those_that_ask_together_share_an_answer() {
        let folder = tempfile::tempdir().unwrap();
        let runs = || std::fs::read_to_string(folder.path().join("runs")).unwrap().lines().count();
        for (answer, well) in [("sleep 0.2; echo 1.2.764.0", true), ("sleep 0.2; exit 1", false)] {
            let plugin = says(folder.path(), answer);
            let answers = started(async || {
                let versions = Versions::new();
                let answers = (0..200).map(|_| versions.check(&plugin));
                let answers = futures_util::future::join_all(answers).await;
                answers.into_iter().collect::<Result<Vec<_>, _>>()
            });
            assert_eq!(answers.await.is_ok(), well);
            assert_eq!(runs(), 1);
            std::fs::remove_file(folder.path().join("runs")).unwrap();
        }
    }

    #[test]
    fn a_full_disk_passes_and_a_missing_folder_does_not() {
        use nix::errno::Errno;
        let class = |errno: Errno| class(&std::io::Error::from(errno));
        for passes in
            [Errno::ENOSPC, Errno::EDQUOT, Errno::ENOMEM, Errno::EAGAIN, Errno::EMFILE, Errno::ETXTBSY]
        {
            assert_eq!(class(passes), Class::Network, "{passes}");
        }
        for stays in [Errno::ENOENT, Errno::EACCES, Errno::EPERM, Errno::ENOTDIR, Errno::EROFS] {
            assert_eq!(class(stays), Class::NeedsChange, "{stays}");
        }
    }

    #[test]
    fn reads_versions() {
        assert_eq!(parse(" 1.2.650.0 \r"), Some(Version([1, 2, 650, 0])));
        for wrong in ["", "1.2.3", "1.2.3.4.5", "1.2.x.4", "1.2.3.99999999999", "-1.2.3.4"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
