//! Which tunnels are to run, by what systemd starts at boot: one that does not come back must not be forgotten. Only the
//! names of links are read; the configuration is not for this process.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Where the links are: the generator's, and those of `systemctl enable` and `mask`.
pub const UNITS: [&str; 3] = ["/run/systemd/generator", "/run/systemd/system", "/etc/systemd/system"];

/// What wants the tunnels. It counts where it is started at boot itself.
const TARGET: &str = "autossm.target";
/// What the generator has the target want instead of tunnels if it cannot read the configuration.
const TROUBLE: &str = "autossm-config.service";

/// The tunnels that are started at boot and not masked; `None` while that is not known, because of an error in the
/// configuration.
pub fn tunnels(units: &[PathBuf]) -> Option<BTreeSet<String>> {
    let wants = units.iter().map(|directory| directory.join(format!("{TARGET}.wants")));
    let links: BTreeSet<String> = wants.flat_map(|wants| names(&wants)).collect();
    if links.contains(TROUBLE) {
        return None;
    }
    let masked = |unit: &str| {
        let paths = units.iter().map(|directory| directory.join(unit));
        paths.filter_map(|path| fs::read_link(path).ok()).any(|to| to == Path::new("/dev/null"))
    };
    if links.is_empty() || masked(TARGET) || !units.iter().any(|directory| enables(directory)) {
        return Some(BTreeSet::new());
    }
    let named = |link: &String| Some(link.strip_prefix("autossm@")?.strip_suffix(".service")?.to_owned());
    Some(links.iter().filter(|link| !masked(link)).filter_map(named).collect())
}

/// Whether something in this directory wants the target.
fn enables(directory: &Path) -> bool {
    let folders = names(directory)
        .into_iter()
        .filter(|name| [".wants", ".requires"].iter().any(|end| name.ends_with(end)));
    folders.map(|folder| directory.join(folder).join(TARGET)).any(|link| link.symlink_metadata().is_ok())
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    struct Host(tempfile::TempDir);

    impl Host {
        fn new() -> Self {
            let host = Self(tempfile::tempdir().unwrap());
            host.link("etc/multi-user.target.wants/autossm.target", "/usr/lib/systemd/system/autossm.target");
            host.link(
                "etc/autossm.target.wants/autossm@by-hand.service",
                "/usr/lib/systemd/system/autossm@.service",
            );
            for name in ["billing-db", "search"] {
                host.link(
                    &format!("generator/autossm.target.wants/autossm@{name}.service"),
                    "/usr/lib/systemd/system/autossm@.service",
                );
            }
            host
        }

        fn link(&self, path: &str, to: &str) {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            symlink(to, path).unwrap();
        }

        fn remove(&self, path: &str) {
            fs::remove_file(self.0.path().join(path)).unwrap();
        }

        fn tunnels(&self) -> Option<Vec<String>> {
            let units = ["generator", "etc", "nothing"].map(|directory| self.0.path().join(directory));
            tunnels(&units).map(Vec::from_iter)
        }
    }

    #[test]
    fn what_is_started_at_boot_is_expected() {
        let host = Host::new();
        assert_eq!(host.tunnels().unwrap(), ["billing-db", "by-hand", "search"]);
        host.link("etc/autossm@search.service", "/dev/null");
        assert_eq!(host.tunnels().unwrap(), ["billing-db", "by-hand"], "one is masked");
        host.link("etc/autossm@billing-db.service", "/usr/local/autossm@.service");
        assert_eq!(host.tunnels().unwrap().len(), 2, "one has a unit of its own");
        host.remove("etc/multi-user.target.wants/autossm.target");
        assert_eq!(host.tunnels().unwrap(), [] as [&str; 0], "the target is not enabled");
        host.link("etc/app.service.requires/autossm.target", "/usr/lib/systemd/system/autossm.target");
        assert_eq!(host.tunnels().unwrap().len(), 2);
        host.link("etc/autossm.target", "/dev/null");
        assert_eq!(host.tunnels().unwrap(), [] as [&str; 0], "the target is masked");
    }

    #[test]
    fn a_configuration_with_errors_says_nothing_of_its_tunnels() {
        let host = Host::new();
        host.link(
            "generator/autossm.target.wants/autossm-config.service",
            "/usr/lib/systemd/system/autossm-config.service",
        );
        assert_eq!(host.tunnels(), None);
        assert_eq!(tunnels(&[]).unwrap().len(), 0, "no systemd");
    }
}
