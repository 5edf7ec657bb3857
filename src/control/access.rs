//! Who may use a control socket: root, the daemon's own user, and the members of the group `autossm`.

use std::ffi::CString;

use nix::unistd::{Gid, Group, Uid, User, geteuid, getgrouplist};
use tokio::net::unix::UCred;

/// The group whose members may see and command the tunnels, where the host has it.
pub const GROUP: &str = "autossm";

/// Decides who is let in. The file's permissions (0660) say the same; this holds where somebody has changed them.
#[derive(Clone, Debug)]
pub struct Access {
    own: Uid,
    group: Option<Gid>,
    /// The kernel shows everybody as who they are. In a user namespace of few users (`PrivateUsers=` of systemd) all
    /// others look like nobody: there the file's permissions have to do.
    knows_everybody: bool,
}

impl Access {
    /// As this host has it now.
    pub fn of_host() -> Self {
        let group = Group::from_name(GROUP).ok().flatten().map(|group| group.gid);
        Self { own: geteuid(), group, knows_everybody: knows_everybody() }
    }

    /// The group that a socket is given to.
    pub fn group(&self) -> Option<Gid> {
        self.group
    }

    /// Whether whoever has connected may ask.
    pub fn admits(&self, peer: &UCred) -> bool {
        let (user, group) = (Uid::from_raw(peer.uid()), Gid::from_raw(peer.gid()));
        user.is_root()
            || user == self.own
            || self.group.is_some_and(|wanted| wanted == group || is_member(user, group, wanted))
            || (!self.knows_everybody
                && User::from_uid(user).ok().flatten().is_none_or(|user| user.name == "nobody"))
    }
}

/// A user's name, or the number where there is none.
pub(super) fn name(user: u32) -> String {
    let found = User::from_uid(Uid::from_raw(user)).ok().flatten();
    found.map_or_else(|| format!("user {user}"), |user| user.name)
}

/// Whether the user has the group as a further one.
fn is_member(user: Uid, group: Gid, wanted: Gid) -> bool {
    let name = User::from_uid(user).ok().flatten().and_then(|user| CString::new(user.name).ok());
    name.and_then(|name| getgrouplist(&name, group).ok()).is_some_and(|groups| groups.contains(&wanted))
}

/// Whether this process's user namespace has all users in it.
fn knows_everybody() -> bool {
    std::fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| maps_everybody(&map))
}

fn maps_everybody(map: &str) -> bool {
    map.lines().any(|line| {
        let mut numbers = line.split_whitespace();
        numbers.nth(2).and_then(|count| count.parse::<u64>().ok()).is_some_and(|count| count > 65_536)
    })
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixStream;

    use super::*;

    #[tokio::test]
    async fn the_own_user_is_let_in_and_a_stranger_is_not() {
        let (here, _there) = UnixStream::pair().unwrap();
        let peer = here.peer_cred().unwrap();
        assert!(Access::of_host().admits(&peer));
        let stranger = Access { own: Uid::from_raw(4242), group: None, knows_everybody: true };
        assert_eq!(stranger.admits(&peer), geteuid().is_root());
        let same_group = Access { group: Some(Gid::from_raw(peer.gid())), ..stranger };
        assert!(same_group.admits(&peer));
    }

    #[test]
    fn a_namespace_of_few_users_is_recognised() {
        assert!(maps_everybody("         0          0 4294967295\n"));
        assert!(!maps_everybody("         0          0          1\n       998        998          1\n"));
        assert!(!maps_everybody(""));
    }
}
