//! Which plugin it is, asked once for each file.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

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

/// The versions of the plugins that were asked. A file that has changed since is asked again.
#[derive(Debug, Default)]
pub struct Versions(Mutex<HashMap<PathBuf, (SystemTime, Version)>>);

impl Versions {
    /// None asked yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The version of `plugin`. One that is old, or of which the age cannot be known, is warned of when it is asked.
    ///
    /// Fails if it is too old to be used, or does not answer within 5 s.
    pub async fn check(&self, plugin: &Path) -> Result<Version, Failure> {
        let modified = std::fs::metadata(plugin)
            .and_then(|file| file.modified())
            .map_err(|e| needs_change(plugin, format!("cannot be read: {e}")))?;
        let known = self.lock().get(plugin).filter(|known| known.0 == modified).map(|known| known.1);
        let version = match known {
            Some(version) => version,
            None => {
                let version = ask(plugin).await?;
                warn(plugin, version);
                self.lock().insert(plugin.to_owned(), (modified, version));
                version
            }
        };
        if version < OLDEST && version != FROM_SOURCE {
            let text = format!(
                "is version {version}, older than {OLDEST}: it would show the session's token to every user"
            );
            return Err(needs_change(plugin, format!("{text}; install a newer session-manager-plugin")));
        }
        Ok(version)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<PathBuf, (SystemTime, Version)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Version {
    /// What the operator should know of a plugin of this version; `None` where all is well.
    pub fn shortcoming(self) -> Option<String> {
        if self == FROM_SOURCE {
            Some("the plugin was built from source and does not say how old it is".to_owned())
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
    let _ = child.wait().await;
    let text = answer
        .map_err(|_| {
            needs_change(plugin, format!("does not answer --version within {} s", PATIENCE.as_secs()))
        })?
        .map_err(|e| needs_change(plugin, format!("does not answer --version: {e}")))?;
    let text = String::from_utf8_lossy(&text);
    text.lines().find_map(parse).ok_or_else(|| {
        let said: String = text.trim().chars().take(100).collect();
        needs_change(plugin, format!("is no session-manager-plugin: to --version it says {said:?}"))
    })
}

/// Why a plugin could not be started.
pub(super) fn spawn_failure(plugin: &Path, error: &std::io::Error) -> Failure {
    use std::io::ErrorKind;
    let class = match error.kind() {
        ErrorKind::NotFound | ErrorKind::PermissionDenied => Class::NeedsChange,
        // No memory, too many processes, a file that is just being replaced: these pass.
        _ => Class::Network,
    };
    Failure::new(class, format!("{} cannot be started: {error}", plugin.display()))
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
        for answer in ["echo hello", "true", "head -c 100000 /dev/zero"] {
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
        let pid = std::fs::read_to_string(folder.path().join("pid")).unwrap();
        assert!(!Path::new("/proc").join(pid.trim()).exists(), "it was killed and reaped");
    }

    #[test]
    fn reads_versions() {
        assert_eq!(parse(" 1.2.650.0 \r"), Some(Version([1, 2, 650, 0])));
        for wrong in ["", "1.2.3", "1.2.3.4.5", "1.2.x.4", "1.2.3.99999999999", "-1.2.3.4"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
