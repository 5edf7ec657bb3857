//! Who may use a control socket: root, the daemon's own user, and the members of the group `autossm`.
//!
//! Whether somebody is a member may be known to a directory at the other end of a network only, perhaps at the other end of
//! this very tunnel. So what can be told without it is told first, and the rest is asked in other threads and for a limited
//! time: no tunnel stands still for it.

use std::ffi::CString;
use std::fmt;
use std::fs;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use nix::unistd::{Gid, Group, Uid, User, geteuid, getgrouplist, getuid};
use tokio::net::unix::UCred;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tracing::warn;

/// The group whose members may see and command the tunnels, where the host has it.
pub const GROUP: &str = "autossm";

/// A name service that has not answered after this is not waited for: a client's patience is 5 s.
const ANSWERING: Duration = Duration::from_secs(2);
/// Threads that a name service which hangs can keep.
const THREADS: usize = 4;
/// Whom the kernel shows where a user namespace does not have a user, unless the host says otherwise.
const OVERFLOW: u32 = 65_534;

/// What the host knows of users and groups. Each call may take as long as a network does.
pub(super) trait Names: Send + Sync {
    /// Whether the user, whose own group is `group`, has `wanted` as a further one.
    fn is_member(&self, user: Uid, group: Gid, wanted: Gid) -> bool;
    /// The user's name.
    fn name(&self, user: Uid) -> Option<String>;
}

/// As `nsswitch.conf` has it.
struct Host;

impl Names for Host {
    fn is_member(&self, user: Uid, group: Gid, wanted: Gid) -> bool {
        let name = self.name(user).and_then(|name| CString::new(name).ok());
        name.and_then(|name| getgrouplist(&name, group).ok()).is_some_and(|groups| groups.contains(&wanted))
    }

    fn name(&self, user: Uid) -> Option<String> {
        User::from_uid(user).ok().flatten().map(|user| user.name)
    }
}

/// Asked in threads of their own, by few at once, and not waited for for ever.
#[derive(Clone)]
struct Asked {
    names: Arc<dyn Names>,
    threads: Arc<Semaphore>,
}

impl Asked {
    fn new(names: Arc<dyn Names>) -> Self {
        Self { names, threads: Arc::new(Semaphore::new(THREADS)) }
    }

    /// None where nothing came in time.
    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&dyn Names) -> T + Send + 'static,
    ) -> Option<T> {
        let asked = async {
            let thread = self.threads.clone().acquire_owned().await.ok()?;
            let names = self.names.clone();
            let asked = spawn_blocking(move || {
                let answer = question(&*names);
                drop(thread);
                answer
            });
            asked.await.ok()
        };
        timeout(ANSWERING, asked).await.ok().flatten()
    }
}

/// Decides who is let in. The file's permissions (0660) say the same; this holds where somebody has changed them.
#[derive(Clone)]
pub struct Access {
    /// Root, and the daemon's own.
    users: [Uid; 2],
    group: Option<Gid>,
    /// In a user namespace of few users (`PrivateUsers=` of systemd) all others look like this one: there the file's
    /// permissions have to do. None where the kernel shows everybody as who they are.
    overflow: Option<Uid>,
    asked: Asked,
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { users, group, overflow, asked: _ } = self;
        let mut all = f.debug_struct("Access");
        all.field("users", users).field("group", group).field("overflow", overflow).finish_non_exhaustive()
    }
}

/// Why somebody is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// They may not.
    Stranger,
    /// Nobody could say in time whether they may.
    NotKnown,
}

impl Access {
    /// As this host has it now.
    pub fn of_host() -> Self {
        Self {
            users: [Uid::from_raw(0), geteuid()],
            group: group_of_host(),
            overflow: (!knows_everybody()).then(overflow),
            asked: Asked::new(Arc::new(Host)),
        }
    }

    /// The group that a socket is given to.
    pub fn group(&self) -> Option<Gid> {
        self.group
    }

    /// Whether whoever has connected may ask.
    pub(super) async fn admit(&self, peer: &UCred) -> Result<(), Refusal> {
        let (user, group) = (Uid::from_raw(peer.uid()), Gid::from_raw(peer.gid()));
        if self.users.contains(&user) || self.group == Some(group) || self.overflow == Some(user) {
            return Ok(());
        }
        let Some(wanted) = self.group else { return Err(Refusal::Stranger) };
        match self.asked.ask(move |names| names.is_member(user, group, wanted)).await {
            Some(true) => Ok(()),
            Some(false) => Err(Refusal::Stranger),
            None => Err(Refusal::NotKnown),
        }
    }

    /// Who that is, for the log. `claim` is the name that they give themselves: it is believed, and said to be no more
    /// than that, where the kernel does not show who it is.
    pub(super) async fn name(&self, user: u32, claim: Option<&str>) -> String {
        let user = Uid::from_raw(user);
        if self.overflow == Some(user) {
            let claim: String =
                claim.unwrap_or_default().chars().filter(|c| !c.is_control()).take(64).collect();
            return match claim.trim() {
                "" => format!("a member of the group {GROUP}"),
                name => format!("{name} (by their own word)"),
            };
        }
        if user.is_root() {
            return "root".to_owned();
        }
        let name = self.asked.ask(move |names| names.name(user)).await.flatten();
        name.unwrap_or_else(|| format!("user {user}"))
    }
}

/// The name of whoever runs this process, where it can be had.
pub(super) async fn own_name() -> Option<String> {
    let user = getuid();
    Asked::new(Arc::new(Host)).ask(move |names| names.name(user)).await.flatten()
}

/// The package makes the group in the host's own file. Where there is none the name service is asked, and a daemon that
/// starts must not wait for it any longer than one that runs.
fn group_of_host() -> Option<Gid> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let group = Group::from_name(GROUP).ok().flatten();
        // Nobody may wait any more.
        let _ = sender.send(group.map(|group| group.gid));
    });
    receiver.recv_timeout(ANSWERING).unwrap_or_else(|_| {
        warn!("the name service does not answer: the group {GROUP} is not known until the next start");
        None
    })
}

/// Whom the kernel shows for a user that this process's namespace does not have.
fn overflow() -> Uid {
    let text = fs::read_to_string("/proc/sys/kernel/overflowuid");
    Uid::from_raw(text.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(OVERFLOW))
}

/// Whether this process's user namespace has all users in it.
fn knows_everybody() -> bool {
    fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| maps_everybody(&map))
}

fn maps_everybody(map: &str) -> bool {
    map.lines().any(|line| {
        let mut numbers = line.split_whitespace();
        numbers.nth(2).and_then(|count| count.parse::<u64>().ok()).is_some_and(|count| count > 65_536)
    })
}

#[cfg(test)]
impl Access {
    /// One that knows nobody by itself, and asks `names`.
    pub(super) fn that_asks(names: Arc<dyn Names>) -> Self {
        let users = [Uid::from_raw(4242); 2];
        Self { users, group: Some(Gid::from_raw(4242)), overflow: None, asked: Asked::new(names) }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixStream;

    use super::*;

    struct Nobody;

    impl Names for Nobody {
        fn is_member(&self, _: Uid, _: Gid, _: Gid) -> bool {
            false
        }

        fn name(&self, _: Uid) -> Option<String> {
            None
        }
    }

    #[tokio::test]
    async fn the_own_user_is_let_in_and_a_stranger_is_not() {
        let (here, _there) = UnixStream::pair().unwrap();
        let peer = here.peer_cred().unwrap();
        assert_eq!(Access::of_host().admit(&peer).await, Ok(()));
        let stranger = Access::that_asks(Arc::new(Nobody));
        assert_eq!(stranger.admit(&peer).await, Err(Refusal::Stranger));
        let without_group = Access { group: None, ..stranger.clone() };
        assert_eq!(without_group.admit(&peer).await, Err(Refusal::Stranger));
        let same_group = Access { group: Some(Gid::from_raw(peer.gid())), ..stranger };
        assert_eq!(same_group.admit(&peer).await, Ok(()));
    }

    #[tokio::test]
    async fn who_looks_like_nobody_is_let_in_and_named_by_their_own_word() {
        let (here, _there) = UnixStream::pair().unwrap();
        let peer = here.peer_cred().unwrap();
        let access = |overflow| Access { overflow: Some(overflow), ..Access::that_asks(Arc::new(Nobody)) };
        assert_eq!(access(Uid::from_raw(peer.uid())).admit(&peer).await, Ok(()));
        let private = access(Uid::from_raw(OVERFLOW));
        for (claim, name) in [
            (Some("alice"), "alice (by their own word)"),
            (Some("\x1b\n"), "a member of the group autossm"),
            (None, "a member of the group autossm"),
        ] {
            assert_eq!(private.name(OVERFLOW, claim).await, name);
        }
        assert_eq!(private.name(0, Some("alice")).await, "root");
        assert_eq!(private.name(4711, Some("alice")).await, "user 4711", "a claim is not needed there");
    }

    #[test]
    fn a_namespace_of_few_users_is_recognised() {
        assert!(maps_everybody("         0          0 4294967295\n"));
        assert!(!maps_everybody("         0          0          1\n       998        998          1\n"));
        assert!(!maps_everybody(""));
    }
}
