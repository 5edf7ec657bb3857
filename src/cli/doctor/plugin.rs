//! The plugin: whether it is there, and new enough.

use std::collections::BTreeSet;

use futures_util::future::join_all;

use super::finding::Finding;
use crate::config::Tunnel;
use crate::plugin::find::find;
use crate::plugin::version::Versions;

const CHECK: &str = "plugin";
const UPDATE: &str = "install a newer session-manager-plugin";

/// Of each that the tunnels name, in order.
pub(super) async fn checks(tunnels: &[&Tunnel]) -> Vec<Finding> {
    let plugins: BTreeSet<&str> = tunnels.iter().map(|tunnel| tunnel.plugin.as_str()).collect();
    join_all(plugins.into_iter().map(check)).await
}

async fn check(plugin: &str) -> Finding {
    let path = match find(plugin) {
        Ok(path) => path,
        Err(failure) => return Finding::failure_of(CHECK, &failure.text, ""),
    };
    match Versions::new().check(&path).await {
        Err(failure) => Finding::failure_of(CHECK, &failure.text, UPDATE),
        Ok(version) => {
            let message = format!("{}, version {version}", path.display());
            match version.shortcoming() {
                None => Finding::ok(CHECK, message),
                Some(words) => Finding::warning(CHECK, format!("{message}: {words}"), UPDATE),
            }
        }
    }
}
