//! The tunnels of one process: started, reloaded and stopped together.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use socket2::SockRef;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;
use tracing::{error, info};

use super::service::View;
use super::snapshot::Snapshot;
use super::{Command, Driver, Shared};
use crate::config::{self, Listen};
use crate::control::server::Server;
use crate::proxy::{self, BindError, Door, Listener, Proxy};
use crate::systemd::fdstore::{self, Kept};

/// For the open connections of a tunnel that was draining when the daemon is told to stop.
const STOP_GRACE: Duration = Duration::from_secs(5);
/// For what was received before a connection was cut.
const LAST_BYTES: Duration = Duration::from_millis(500);

/// A tunnel whose addresses are bound.
pub struct Bound {
    config: config::Tunnel,
    addresses: Vec<Address>,
}

/// An address that cannot be bound.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct Unbound {
    /// The tunnel that is to listen there.
    pub tunnel: String,
    /// Why not.
    pub error: BindError,
}

struct Address {
    listen: Listen,
    listener: Listener,
    /// Systemd has kept it from an earlier process, and goes on keeping it.
    adopted: bool,
}

/// Binds every address of every tunnel, or says all that cannot be. What systemd has kept is not bound but taken over;
/// what it has kept in vain is closed.
///
/// # Errors
/// One for each address.
pub fn bind(tunnels: Vec<config::Tunnel>, kept: Vec<Kept>) -> Result<Vec<Bound>, Vec<Unbound>> {
    let mut adopted = adopt(&tunnels, kept);
    let (mut bound, mut errors) = (Vec::new(), Vec::new());
    for config in tunnels {
        let mut addresses = Vec::new();
        for listen in &config.listen {
            match adopted.remove(&fdstore::name(&config.name, listen)) {
                Some(address) => addresses.push(address),
                None => addresses.extend(open(&config.name, listen, &mut errors)),
            }
        }
        bound.push(Bound { config, addresses });
    }
    if errors.is_empty() { Ok(bound) } else { Err(errors) }
}

/// The kept sockets that these tunnels can go on with, by name. The others are closed first: one of them may be in the way
/// of an address that is to be bound.
fn adopt(tunnels: &[config::Tunnel], kept: Vec<Kept>) -> HashMap<String, Address> {
    let wanted = |name: &str| {
        let addresses = tunnels.iter().flat_map(|tunnel| tunnel.listen.iter().map(move |l| (tunnel, l)));
        addresses.into_iter().find(|(tunnel, listen)| fdstore::name(&tunnel.name, listen) == name)
    };
    let mut adopted = HashMap::<String, Address>::new();
    for Kept { name, socket } in kept {
        let found = wanted(&name).ok_or_else(|| "the configuration does not have it".to_owned());
        let result = found.and_then(|(tunnel, listen)| {
            if adopted.contains_key(&name) {
                return Err("there are two of this name".to_owned());
            }
            let listener = Listener::adopt(listen, socket.try_clone().map_err(|error| error.to_string())?)?;
            Ok((tunnel, Address { listen: listen.clone(), listener, adopted: true }))
        });
        match result {
            Ok((tunnel, mut address)) => {
                let listen = &address.listen;
                info!(tunnel = tunnel.name, event = "adopted", %listen, "goes on listening on {listen}");
                address.listener.outlive();
                adopted.insert(name, address);
            }
            Err(reason) => {
                info!(
                    event = "not_adopted",
                    fdname = name,
                    reason,
                    "closed what was kept as {name}: {reason}"
                );
                // Others may hold it too: it must not go on taking clients that nobody serves.
                let _ = SockRef::from(&socket).shutdown(Shutdown::Both);
                fdstore::remove(&name);
                // The removal was meant for the other one of two, too.
                if let Some(address) = adopted.get_mut(&name) {
                    address.adopted = false;
                }
            }
        }
    }
    adopted
}

fn open(tunnel: &str, listen: &Listen, errors: &mut Vec<Unbound>) -> Option<Address> {
    match Listener::bind(listen) {
        Ok(listener) => Some(Address { listen: listen.clone(), listener, adopted: false }),
        Err(error) => {
            errors.push(Unbound { tunnel: tunnel.to_owned(), error });
            None
        }
    }
}

/// Every tunnel that runs in this process.
pub struct Tunnels {
    shared: Shared,
    running: BTreeMap<String, Running>,
    /// Tunnels that are no longer in the configuration and end by themselves; then those that are being stopped.
    leaving: JoinSet<()>,
    /// Where those that leave take commands.
    leaving_commands: Vec<mpsc::Sender<Command>>,
    /// Every tunnel that this process has run.
    known: HashSet<String>,
    views: watch::Sender<Vec<View>>,
}

struct Running {
    config: config::Tunnel,
    proxy: Arc<Proxy>,
    proxy_settings: watch::Sender<proxy::Settings>,
    doors: HashMap<Listen, Door>,
    commands: mpsc::Sender<Command>,
    snapshot: watch::Receiver<Snapshot>,
    driver: JoinHandle<()>,
    /// Served until everything has ended: how a stop gets on can be seen.
    control: Option<Server>,
}

impl Tunnels {
    /// Starts serving.
    ///
    /// # Errors
    /// A tunnel's folder in the state directory cannot be made.
    pub fn start(shared: Shared, bound: Vec<Bound>) -> io::Result<Self> {
        let mut tunnels = Self {
            shared,
            running: BTreeMap::new(),
            leaving: JoinSet::new(),
            leaving_commands: Vec::new(),
            known: HashSet::new(),
            views: watch::Sender::default(),
        };
        for tunnel in bound {
            tunnels.add(tunnel)?;
        }
        tunnels.publish();
        Ok(tunnels)
    }

    /// What can be seen of the tunnels of the configuration, and asked of them. Empty once they are being stopped.
    pub fn views(&self) -> watch::Receiver<Vec<View>> {
        self.views.subscribe()
    }

    fn publish(&self) {
        self.views.send_replace(self.running.values().map(Running::view).collect());
    }

    fn add(&mut self, bound: Bound) -> io::Result<()> {
        let Bound { config, addresses } = bound;
        let (mut driver, handle) = Driver::new(self.shared.clone(), config.clone())?;
        let (proxy_settings, settings) = watch::channel(proxy::Settings::from(&config));
        let proxy = Proxy::new(config.name.as_str(), handle.routes, settings, handle.stats);
        let doors = addresses.into_iter().map(|address| serve(&config.name, &proxy, address)).collect();
        let (commands, snapshot, control) = (handle.commands, handle.snapshot, handle.control);
        let name = config.name.clone();
        if self.known.insert(name.clone()) {
            driver.terminate_leftovers();
        }
        let driver = tokio::spawn(driver.run());
        let running = Running { config, proxy, proxy_settings, doors, commands, snapshot, driver, control };
        self.running.insert(name, running);
        Ok(())
    }

    /// Makes the running tunnels those of a new configuration. New addresses are bound before anything is changed; if
    /// one cannot be, nothing is changed. Tunnels that are the same are not touched. An address that goes from one tunnel
    /// to another (most often because the tunnel has a new name) is handed over and refuses nobody.
    ///
    /// # Errors
    /// One for each address that cannot be bound.
    pub async fn reload(&mut self, wanted: Vec<config::Tunnel>) -> Result<(), Vec<Unbound>> {
        let mut errors = Vec::new();
        let mut changes = Vec::new();
        for config in wanted.iter() {
            let now = self.running.get(&config.name);
            if now.is_some_and(|running| running.config == *config) {
                continue;
            }
            let is_new = |address: &&Listen| now.is_none_or(|running| !running.doors.contains_key(address));
            let (mut addresses, mut handed_over) = (Vec::new(), Vec::new());
            for listen in config.listen.iter().filter(is_new) {
                match self.gives_up(listen, &wanted) {
                    Some(holder) => handed_over.push((listen.clone(), holder)),
                    None => addresses.extend(open(&config.name, listen, &mut errors)),
                }
            }
            changes.push((Bound { config: config.clone(), addresses }, handed_over));
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let mut bound = Vec::new();
        for (mut change, handed_over) in changes {
            for (listen, holder) in handed_over {
                change.addresses.extend(self.take_over(listen, &holder).await);
            }
            bound.push(change);
        }
        let gone = |name: &&String| !wanted.iter().any(|config| config.name == **name);
        let gone: Vec<_> = self.running.keys().filter(gone).cloned().collect();
        for name in gone {
            info!(tunnel = name, event = "removed", "no longer in the configuration: draining");
            self.remove(&name).await;
        }
        for change in bound {
            let name = change.config.name.clone();
            if self.running.contains_key(&name) {
                info!(tunnel = name, event = "changed", "its configuration has changed");
                self.change(change).await;
            } else if let Err(error) = self.add(change) {
                error!(tunnel = name, %error, "its folder cannot be made");
            }
        }
        let wanted: Vec<_> = self.running.values().map(|running| &running.config.identity).collect();
        self.shared.clients.retain(&wanted);
        self.publish();
        Ok(())
    }

    /// The running tunnel that listens there and, going by the new configuration, will not.
    fn gives_up(&self, listen: &Listen, wanted: &[config::Tunnel]) -> Option<String> {
        let (name, _) = self.running.iter().find(|(_, running)| running.doors.contains_key(listen))?;
        let keeps = wanted.iter().any(|config| config.name == *name && config.listen.contains(listen));
        (!keeps).then(|| name.clone())
    }

    async fn take_over(&mut self, listen: Listen, holder: &str) -> Option<Address> {
        let door = self.running.get_mut(holder)?.doors.remove(&listen)?;
        let listener = door.hand_over().await?;
        // It is stored again under the other tunnel's name.
        fdstore::remove(&fdstore::name(holder, &listen));
        Some(Address { listen, listener, adopted: false })
    }

    async fn change(&mut self, bound: Bound) {
        let Bound { config, addresses } = bound;
        let Some(running) = self.running.get_mut(&config.name) else { return };
        running.proxy_settings.send_replace(proxy::Settings::from(&config));
        for address in addresses {
            let (listen, door) = serve(&config.name, &running.proxy, address);
            running.doors.insert(listen, door);
        }
        let closed: Vec<_> =
            running.doors.keys().filter(|address| !config.listen.contains(address)).cloned().collect();
        for address in closed {
            if let Some(door) = running.doors.remove(&address) {
                close(&config.name, &address, door).await;
            }
        }
        running.config = config.clone();
        let _ = running.commands.send(Command::Configure(Box::new(config))).await;
    }

    /// Takes a tunnel out: no new clients, and `drain` for the open ones.
    async fn remove(&mut self, name: &str) {
        let Some(mut running) = self.running.remove(name) else { return };
        self.publish();
        for (address, door) in running.doors.drain() {
            close(name, &address, door).await;
        }
        // Its name may come back while it drains, and with it another socket.
        running.control = None;
        let drain = running.config.drain;
        self.leave(running, drain);
    }

    fn leave(&mut self, running: Running, grace: Duration) {
        self.leaving_commands.retain(|commands| !commands.is_closed());
        self.leaving_commands.push(running.commands.clone());
        self.leaving.spawn(running.stop(grace));
    }

    /// Stops every tunnel; returns when nothing is left of any, or at once when `now` is ready.
    pub async fn stop(mut self, now: impl Future<Output = ()>) {
        self.views.send_replace(Vec::new());
        // Those that leave already have less time from now on.
        for commands in &self.leaving_commands {
            let _ = commands.send(Command::Stop(STOP_GRACE)).await;
        }
        for (_, running) in std::mem::take(&mut self.running) {
            let grace = running.config.stop_grace;
            self.leave(running, grace);
        }
        let mut at_once = std::pin::pin!(now);
        let mut asked = false;
        loop {
            tokio::select! {
                ended = self.leaving.join_next() => if ended.is_none() { return },
                () = &mut at_once, if !asked => {
                    asked = true;
                    for commands in &self.leaving_commands {
                        let _ = commands.send(Command::StopNow).await;
                    }
                }
            }
        }
    }
}

/// Serves an address, and has systemd keep it for the next process. Not before all of them are bound: a reload that fails
/// leaves nothing behind.
fn serve(tunnel: &str, proxy: &Arc<Proxy>, address: Address) -> (Listen, Door) {
    let Address { listen, mut listener, adopted } = address;
    if !adopted {
        info!(tunnel, event = "listening", %listen, "listening on {listen}");
        if fdstore::store(&fdstore::name(tunnel, &listen), listener.as_fd()) {
            listener.outlive();
        }
    }
    (listen, proxy.serve(listener))
}

/// Gives an address up, here and in systemd's store.
async fn close(tunnel: &str, listen: &Listen, door: Door) {
    fdstore::remove(&fdstore::name(tunnel, listen));
    door.close().await;
    info!(tunnel, event = "closed", %listen, "no longer listening on {listen}");
}

impl Running {
    fn view(&self) -> View {
        View {
            name: self.config.name.clone(),
            start_timeout: self.config.start_timeout,
            snapshot: self.snapshot.clone(),
            stats: self.proxy.stats().clone(),
            commands: self.commands.clone(),
        }
    }

    /// Ends it: no new clients, and `grace` for the open ones, or less if the driver is told so meanwhile.
    async fn stop(self, grace: Duration) {
        let _control = self.control;
        let _ = self.commands.send(Command::Stop(grace)).await;
        let mut driver = self.driver;
        let ended = tokio::select! {
            // Connections end before the driver does, which cuts them.
            _ = self.proxy.stop(Instant::now() + grace) => driver.await,
            ended = &mut driver => {
                self.proxy.stop(Instant::now() + LAST_BYTES).await;
                ended
            }
        };
        if let Err(error) = ended {
            error!(tunnel = self.config.name, %error, "its driver ended badly");
        }
    }
}
