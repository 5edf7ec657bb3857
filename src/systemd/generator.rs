//! What systemd has to know of the configuration: called by `autossm-generator` at boot and at each `daemon-reload`.
//!
//! In the folder that systemd gives, it makes
//! - a link that has `autossm.target` want `autossm@NAME.service`, for each enabled tunnel;
//! - or one to `autossm-config.service`, which shows what is wrong with the file;
//! - drop-ins with what depends on the host: its systemd, and whether AWS's package of the plugin is installed.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::config;

/// Where packages put units.
const UNITS: &str = "/usr/lib/systemd/system";
/// Where AWS's packages put the plugin.
const PLUGIN: &str = "/usr/local/sessionmanagerplugin";

/// What drop-ins depend on.
#[derive(Clone, Copy, Debug)]
pub struct Host {
    /// The major version of systemd.
    pub systemd: u32,
    /// Whether the plugin is where AWS's packages put it.
    pub packaged_plugin: bool,
}

impl Host {
    /// This host. A systemd that does not tell its version is taken for an old one.
    pub fn this() -> Self {
        Self { systemd: systemd_version().unwrap_or(0), packaged_plugin: Path::new(PLUGIN).is_dir() }
    }
}

/// Makes links and drop-ins in `folder` for the configuration at `path`.
///
/// # Errors
/// The folder cannot be written to.
pub fn generate(path: &Path, folder: &Path, host: Host) -> io::Result<()> {
    drop_ins(folder, host)?;
    match config::load(path) {
        Ok(config) => {
            let mut names = config.tunnels.iter().filter(|tunnel| tunnel.enabled).map(|tunnel| &tunnel.name);
            names.try_for_each(|name| want(folder, "autossm@.service", &format!("autossm@{name}.service")))
        }
        // As the package leaves it, until somebody writes a tunnel into it.
        Err(_) if config::has_no_tunnel(path) => Ok(()),
        Err(_) => want(folder, "autossm-config.service", "autossm-config.service"),
    }
}

fn want(folder: &Path, unit: &str, link: &str) -> io::Result<()> {
    let wants = folder.join("autossm.target.wants");
    fs::create_dir_all(&wants)?;
    symlink(Path::new(UNITS).join(unit), wants.join(link))
}

fn drop_ins(folder: &Path, host: Host) -> io::Result<()> {
    let drop_ins = folder.join("autossm@.service.d");
    fs::create_dir_all(&drop_ins)?;
    if host.systemd >= 253 {
        // systemd sends SIGHUP itself and waits for the end of the reload. The unit's own command must not send another.
        fs::write(
            drop_ins.join("20-notify-reload.conf"),
            "[Service]\nType=notify-reload\nExecReload=\nExecReload=/usr/bin/autossm check --quiet\n",
        )?;
    }
    if host.packaged_plugin {
        // A bind mount alone would make its mount point on the host's disk, where there is no such file, for all users
        // of the plugin. On a file system of the unit's own nothing of the host is touched.
        fs::write(
            drop_ins.join("20-plugin-log.conf"),
            format!(
                "[Service]\nTemporaryFileSystem={PLUGIN}:ro\nBindReadOnlyPaths=-{PLUGIN}/bin\n\
                 BindReadOnlyPaths=-/usr/share/autossm/seelog.xml:{PLUGIN}/seelog.xml\n"
            ),
        )?;
    }
    Ok(())
}

/// `systemctl` and the manager come from one package.
fn systemd_version() -> Option<u32> {
    let mut command = Command::new("/usr/bin/systemctl");
    let output = command.arg("--version").stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    parse_version(&String::from_utf8_lossy(&output.stdout))
}

/// `systemd 252 (252.38-1~deb12u1)`
fn parse_version(text: &str) -> Option<u32> {
    let version = text.strip_prefix("systemd ")?.split_whitespace().next()?;
    version.split(['.', '~', '-']).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: Host = Host { systemd: 252, packaged_plugin: false };
    const NEW: Host = Host { systemd: 257, packaged_plugin: true };

    fn tunnel(name: &str, port: u16, enabled: bool) -> String {
        format!(
            "[[tunnel]]\nname = \"{name}\"\nlisten = \"127.0.0.1:{port}\"\ntarget = \"i-12345678\"\n\
             remote_port = 1\nenabled = {enabled}\n"
        )
    }

    /// Every file and link beneath the folder.
    fn generated(text: Option<&str>, host: Host) -> Vec<String> {
        let place = tempfile::tempdir().unwrap();
        let (config, folder) = (place.path().join("config.toml"), place.path().join("normal"));
        if let Some(text) = text {
            fs::write(&config, text).unwrap();
        }
        fs::create_dir(&folder).unwrap();
        generate(&config, &folder, host).unwrap();
        let mut found = Vec::new();
        for inner in fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()) {
            for entry in fs::read_dir(&inner).unwrap().map(|entry| entry.unwrap().path()) {
                let name = entry.strip_prefix(&folder).unwrap().display().to_string();
                let to = fs::read_link(&entry).map(|to| format!(" -> {}", to.display()));
                found.push(name + &to.unwrap_or_default());
            }
        }
        found.sort();
        found
    }

    #[test]
    fn every_enabled_tunnel_is_wanted() {
        let text = tunnel("billing-db", 1, true) + &tunnel("spare", 2, false) + &tunnel("web", 3, true);
        let link = |name: &str| {
            format!("autossm.target.wants/autossm@{name}.service -> /usr/lib/systemd/system/autossm@.service")
        };
        assert_eq!(generated(Some(&text), OLD), [link("billing-db"), link("web")]);
    }

    #[test]
    fn a_bad_file_gives_the_unit_that_shows_it() {
        let config = "autossm.target.wants/autossm-config.service -> \
                      /usr/lib/systemd/system/autossm-config.service";
        for text in ["[[tunnel]]\nname = 3\n", "what is this", "[tunnels]\n", "\u{0}"] {
            assert_eq!(generated(Some(text), OLD), [config], "{text}");
        }
    }

    #[test]
    fn a_file_without_tunnels_gives_nothing() {
        for text in ["", "# [[tunnel]]\n", "[defaults]\nregion = \"us-west-2\"\n"] {
            assert!(generated(Some(text), OLD).is_empty(), "{text}");
        }
        assert!(generated(None, OLD).is_empty());
    }

    #[test]
    fn drop_ins_are_for_the_host() {
        let expected = ["autossm@.service.d/20-notify-reload.conf", "autossm@.service.d/20-plugin-log.conf"];
        assert_eq!(generated(None, NEW), expected);
    }

    #[test]
    fn versions_of_distributions_are_understood() {
        assert_eq!(parse_version("systemd 252 (252.38-1~deb12u1)\n+PAM"), Some(252));
        assert_eq!(parse_version("systemd 252 (252.16-1.amzn2023.0.2)"), Some(252));
        assert_eq!(parse_version("systemd 258~rc1 (258~rc1-1)"), Some(258));
        assert_eq!(parse_version("elogind 255"), None);
    }
}
