//! The tunnels of one process: started, reloaded and stopped together.

use std::collections::{BTreeMap, HashMap};
use std::io;

use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;
use tracing::{error, info};

use super::{Command, Driver, Shared};
use crate::config::{self, Listen};
use crate::proxy::{self, BindError, Door, Listener, Proxy};
use crate::tunnel::status::Status;

/// A tunnel whose addresses are bound.
pub struct Bound {
    config: config::Tunnel,
    listeners: Vec<(Listen, Listener)>,
}

/// Binds every address of every tunnel, or says all that cannot be.
///
/// # Errors
/// One for each address.
pub fn bind(tunnels: Vec<config::Tunnel>) -> Result<Vec<Bound>, Vec<BindError>> {
    let (mut bound, mut errors) = (Vec::new(), Vec::new());
    for config in tunnels {
        let listeners = listen(config.listen.iter(), &mut errors);
        bound.push(Bound { config, listeners });
    }
    if errors.is_empty() { Ok(bound) } else { Err(errors) }
}

fn listen<'a>(
    addresses: impl Iterator<Item = &'a Listen>,
    errors: &mut Vec<BindError>,
) -> Vec<(Listen, Listener)> {
    let mut listeners = Vec::new();
    for address in addresses {
        match Listener::bind(address) {
            Ok(listener) => listeners.push((address.clone(), listener)),
            Err(error) => errors.push(error),
        }
    }
    listeners
}

/// Every tunnel that runs in this process.
pub struct Tunnels {
    shared: Shared,
    running: BTreeMap<String, Running>,
    /// Tunnels that are no longer in the configuration and end by themselves.
    leaving: JoinSet<()>,
}

struct Running {
    config: config::Tunnel,
    proxy: std::sync::Arc<Proxy>,
    proxy_settings: watch::Sender<proxy::Settings>,
    doors: HashMap<Listen, Door>,
    commands: mpsc::Sender<Command>,
    status: watch::Receiver<Status>,
    driver: JoinHandle<()>,
}

impl Tunnels {
    /// Starts serving.
    ///
    /// # Errors
    /// A tunnel's folder in the runtime directory cannot be made.
    pub fn start(shared: Shared, bound: Vec<Bound>) -> io::Result<Self> {
        let mut tunnels = Self { shared, running: BTreeMap::new(), leaving: JoinSet::new() };
        for tunnel in bound {
            tunnels.add(tunnel)?;
        }
        Ok(tunnels)
    }

    /// What each tunnel is doing, by name.
    pub fn status(&self) -> Vec<(String, watch::Receiver<Status>)> {
        self.running.iter().map(|(name, running)| (name.clone(), running.status.clone())).collect()
    }

    fn add(&mut self, bound: Bound) -> io::Result<()> {
        let Bound { config, listeners } = bound;
        let (driver, handle) = Driver::new(self.shared.clone(), config.clone())?;
        let (proxy_settings, settings) = watch::channel(proxy::Settings::from(&config));
        let proxy = Proxy::new(config.name.as_str(), handle.routes, settings);
        for (address, _) in &listeners {
            info!(tunnel = config.name, event = "listening", "listening on {address}");
        }
        let doors =
            listeners.into_iter().map(|(address, listener)| (address, proxy.serve(listener))).collect();
        let (commands, status) = (handle.commands, handle.status);
        let driver = tokio::spawn(driver.run());
        let name = config.name.clone();
        self.running.insert(name, Running { config, proxy, proxy_settings, doors, commands, status, driver });
        Ok(())
    }

    /// Makes the running tunnels those of a new configuration. New addresses are bound before anything is changed; if
    /// one cannot be, nothing is changed. Tunnels that are the same are not touched.
    ///
    /// # Errors
    /// One for each address that cannot be bound.
    pub async fn reload(&mut self, wanted: Vec<config::Tunnel>) -> Result<(), Vec<BindError>> {
        let mut errors = Vec::new();
        let mut changes = Vec::new();
        for config in wanted.iter() {
            let now = self.running.get(&config.name);
            if now.is_some_and(|running| running.config == *config) {
                continue;
            }
            let is_new = |address: &&Listen| now.is_none_or(|running| !running.doors.contains_key(address));
            let listeners = listen(config.listen.iter().filter(is_new), &mut errors);
            changes.push(Bound { config: config.clone(), listeners });
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let gone = |name: &&String| !wanted.iter().any(|config| config.name == **name);
        let gone: Vec<_> = self.running.keys().filter(gone).cloned().collect();
        for name in gone {
            info!(tunnel = name, event = "removed", "no longer in the configuration: draining");
            self.remove(&name).await;
        }
        for change in changes {
            let name = change.config.name.clone();
            if self.running.contains_key(&name) {
                info!(tunnel = name, event = "changed", "its configuration has changed");
                self.change(change).await;
            } else if let Err(error) = self.add(change) {
                error!(tunnel = name, %error, "its folder cannot be made");
            }
        }
        Ok(())
    }

    async fn change(&mut self, bound: Bound) {
        let Bound { config, listeners } = bound;
        let Some(running) = self.running.get_mut(&config.name) else { return };
        running.proxy_settings.send_replace(proxy::Settings::from(&config));
        for (address, listener) in listeners {
            info!(tunnel = config.name, event = "listening", "listening on {address}");
            running.doors.insert(address, running.proxy.serve(listener));
        }
        let closed: Vec<_> =
            running.doors.keys().filter(|address| !config.listen.contains(address)).cloned().collect();
        for address in closed {
            if let Some(door) = running.doors.remove(&address) {
                door.close().await;
                info!(tunnel = config.name, event = "closed", "no longer listening on {address}");
            }
        }
        running.config = config.clone();
        let _ = running.commands.send(Command::Configure(Box::new(config))).await;
    }

    /// Takes a tunnel out: no new clients, and `drain` for the open ones.
    async fn remove(&mut self, name: &str) {
        let Some(mut running) = self.running.remove(name) else { return };
        for (_, door) in running.doors.drain() {
            door.close().await;
        }
        let drain = running.config.drain;
        self.leaving.spawn(running.stop(drain));
    }

    /// Stops every tunnel; returns when nothing is left of any, or at once when `now` is ready.
    pub async fn stop(mut self, now: impl Future<Output = ()>) {
        let everyone: Vec<_> = self.running.values().map(|running| running.commands.clone()).collect();
        for (_, running) in std::mem::take(&mut self.running) {
            let grace = running.config.stop_grace;
            self.leaving.spawn(running.stop(grace));
        }
        let mut at_once = std::pin::pin!(now);
        let mut asked = false;
        loop {
            tokio::select! {
                ended = self.leaving.join_next() => if ended.is_none() { return },
                () = &mut at_once, if !asked => {
                    asked = true;
                    for commands in &everyone {
                        let _ = commands.send(Command::StopNow).await;
                    }
                }
            }
        }
    }
}

impl Running {
    async fn stop(self, grace: std::time::Duration) {
        let _ = self.commands.send(Command::Stop(grace)).await;
        // The driver cuts what is still open when the grace is over; the proxy need not be told when.
        let (_, ended) = tokio::join!(self.proxy.stop(Instant::now() + grace), self.driver);
        if let Err(error) = ended {
            error!(tunnel = self.config.name, %error, "its driver ended badly");
        }
    }
}
