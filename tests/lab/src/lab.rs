//! The lab: everything started, on a runtime of its own, and the handle that tests command it with.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::tungstenite::Message as Frame;

use crate::channel::{Connection, Outbound};
use crate::destination::{self, Destinations};
use crate::fault::{Fault, Faults, Report};
use crate::line::{self, Side};
use crate::options::{Document, Node, Options};
use crate::service;
use crate::state::State;
use crate::status::Status;
use crate::tls;
use crate::worker::DIED;

/// A running lab. It ends, with all its connections, when it is dropped.
pub struct Lab {
    state: Arc<State>,
    addresses: Addresses,
    acceptor: TlsAcceptor,
    directory: TempDir,
    /// The lab's own threads: a test may block its runtime without stopping the service. `None` while being dropped.
    runtime: Option<Runtime>,
}

/// Where the lab listens.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Addresses {
    /// The API, plain HTTP.
    pub api: SocketAddr,
    /// The data channel without TLS; the API too.
    pub ws: SocketAddr,
    /// Data channel and API with TLS.
    pub tls: SocketAddr,
    /// Data channels of agents, and their tokens.
    pub agents: SocketAddr,
    /// The destinations.
    pub destinations: Destinations,
}

impl Lab {
    /// Starts a lab.
    ///
    /// # Errors
    /// A port cannot be bound, or the certificates cannot be made or written.
    pub async fn start(options: Options) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("lab")
            .enable_all()
            .build()?;
        let (acceptor, authority) = tls::acceptor(&options.region)?;
        let directory = TempDir::with_prefix("autossm-lab-")?;
        std::fs::write(directory.path().join("ca.pem"), authority)?;
        let state = Arc::new(State::new(options, runtime.handle().clone()));
        let mut lab = Self {
            addresses: Addresses {
                api: (Ipv4Addr::LOCALHOST, state.options.api_port).into(),
                ws: (Ipv4Addr::LOCALHOST, state.options.ws_port).into(),
                tls: state
                    .options
                    .tls_address
                    .unwrap_or((Ipv4Addr::LOCALHOST, state.options.tls_port).into()),
                agents: (Ipv4Addr::LOCALHOST, 0).into(),
                destinations: runtime.spawn(destination::start(state.clone())).await??,
            },
            state,
            acceptor: acceptor.clone(),
            directory,
            runtime: Some(runtime),
        };
        lab.addresses.agents = lab.listen_to_agents(lab.addresses.agents).await?;
        lab.addresses.api = lab.listen(lab.addresses.api, None).await?;
        lab.addresses.ws = lab.listen(lab.addresses.ws, None).await?;
        lab.addresses.tls = lab.listen(lab.addresses.tls, Some(acceptor)).await?;
        Ok(lab)
    }

    async fn listen(&self, address: SocketAddr, tls: Option<TlsAcceptor>) -> anyhow::Result<SocketAddr> {
        let listener = self.bind(address).await?;
        let address = listener.local_addr()?;
        let state = self.state.clone();
        self.state.handle.spawn(line::accept(
            listener,
            self.state.clone(),
            Side::Client,
            move |stream, line| {
                let (state, tls) = (state.clone(), tls.clone());
                async move {
                    match tls {
                        None => service::serve(state, stream, line).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                service::serve(state, stream, line).await;
                            }
                        }
                    }
                }
            },
        ));
        Ok(address)
    }

    async fn listen_to_agents(&self, address: SocketAddr) -> anyhow::Result<SocketAddr> {
        let listener = self.bind(address).await?;
        let address = listener.local_addr()?;
        let _ = self.state.agents.set(address);
        let state = self.state.clone();
        self.state.handle.spawn(line::accept(
            listener,
            self.state.clone(),
            Side::Agent,
            move |stream, line| service::agents::serve(state.clone(), stream, line),
        ));
        Ok(address)
    }

    async fn bind(&self, address: SocketAddr) -> anyhow::Result<TcpListener> {
        let binding = self.state.handle.spawn(TcpListener::bind(address)).await?;
        binding.with_context(|| format!("cannot listen on {address}"))
    }

    /// Where everything listens.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// The API's address, for `endpoint_url`.
    pub fn api_url(&self) -> String {
        format!("http://{}", self.addresses.api)
    }

    /// The data channel without TLS, for `stream_endpoint`.
    pub fn stream_endpoint_ws(&self) -> String {
        format!("ws://{}", self.addresses.ws)
    }

    /// The data channel with TLS, for `stream_endpoint`.
    pub fn stream_endpoint_wss(&self) -> String {
        format!("wss://{}", self.addresses.tls)
    }

    /// The certificate authority that clients of the TLS listener have to trust, as PEM.
    pub fn ca_file(&self) -> std::path::PathBuf {
        self.ca_directory().join("ca.pem")
    }

    /// A directory with that file and nothing else, for `SSL_CERT_DIR`.
    pub fn ca_directory(&self) -> &Path {
        self.directory.path()
    }

    /// Takes TLS as the lab's own listener does.
    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        self.acceptor.clone()
    }

    /// The echo server.
    pub fn echo_addr(&self) -> SocketAddr {
        self.addresses.destinations.echo
    }

    /// Puts a fault in force until it is cleared.
    pub fn set(&self, fault: Fault) {
        self.state.faults.send_modify(|faults| faults.set(fault));
    }

    /// Ends a fault.
    pub fn clear(&self, fault: Fault) {
        self.state.faults.send_modify(|faults| faults.clear(fault));
    }

    /// Ends all faults.
    pub fn clear_all(&self) {
        self.state.faults.send_replace(Faults::default());
    }

    /// Puts a fault in force for a while. The handle ends with it, and need not be kept.
    pub fn set_for(&self, fault: Fault, time: Duration) -> JoinHandle<()> {
        self.set(fault);
        let state = self.state.clone();
        self.state.handle.spawn(async move {
            tokio::time::sleep(time).await;
            state.faults.send_modify(|faults| faults.clear(fault));
        })
    }

    /// The faults in force.
    pub fn faults(&self) -> Faults {
        *self.state.faults.borrow()
    }

    /// Closes every client's data channel with a close frame: what the service does after an hour, with 1000 and `Bye`.
    /// Returns how many there were.
    pub fn close_all(&self, code: u16, reason: &str) -> usize {
        self.on_connections(Side::Client, |connection| connection.close(code, reason))
    }

    /// Closes the data channel of one session's client as [`Lab::close_all`] does. Returns whether it was open.
    pub fn close(&self, session: &str, code: u16, reason: &str) -> bool {
        let world = self.state.world();
        let mut of_session = world.connections.iter();
        of_session.any(|connection| {
            connection.is_of(session, Side::Client)
                && connection.close.try_send((code, reason.to_owned())).is_ok()
        })
    }

    /// Resets the TCP connection of every client's data channel. Returns how many there were.
    pub fn abort_all(&self) -> usize {
        self.on_connections(Side::Client, |connection| connection.line.cancel())
    }

    /// Closes every agent's data channel with a close frame. Returns how many there were.
    pub fn close_agents(&self, code: u16, reason: &str) -> usize {
        self.on_connections(Side::Agent, |connection| connection.close(code, reason))
    }

    /// Resets the TCP connection of every agent's data channel. Returns how many there were.
    pub fn abort_agents(&self) -> usize {
        self.on_connections(Side::Agent, |connection| connection.line.cancel())
    }

    fn on_connections(&self, side: Side, perform: impl Fn(&Connection)) -> usize {
        let world = self.state.world();
        let of_side = world.connections.iter().filter(|connection| connection.side == side);
        of_side.map(perform).count()
    }

    /// Kills the worker of one session, and says so or not. Returns whether the session was alive.
    pub fn kill_agent(&self, session: &str, report: Report) -> bool {
        let session = self.state.world().sessions.get(session).cloned();
        session.is_some_and(|session| {
            let live = session.is_live();
            session.worker.kill();
            let after = match report {
                Report::AtOnce => Duration::ZERO,
                Report::After(time) => time,
                Report::Never => return live,
            };
            let state = self.state.clone();
            self.state.handle.spawn(async move {
                tokio::time::sleep(after).await;
                session.end(&state, DIED, false);
            });
            live
        })
    }

    /// Kills the worker of every live session. Returns how many there were.
    pub fn kill_agents(&self, report: Report) -> usize {
        self.sessions().iter().filter(|session| self.kill_agent(session, report)).count()
    }

    /// Ends one session with a reason; an empty one is what a client sees that asked for the end itself. Returns whether
    /// it was alive.
    pub fn terminate(&self, session: &str, reason: &str) -> bool {
        let session = self.state.world().sessions.get(session).cloned();
        session.is_some_and(|session| {
            let live = session.is_live();
            session.end(&self.state, reason, false);
            live
        })
    }

    /// Ends every live session with a reason. Returns how many there were.
    pub fn terminate_all(&self, reason: &str) -> usize {
        let live = self.sessions();
        live.iter().filter(|session| self.terminate(session, reason)).count()
    }

    /// Lets the agent of one session do nothing at all, or go on: what comes for it meanwhile is lost, and nobody tells the
    /// client. Returns whether the session is alive.
    pub fn hang_agent(&self, session: &str, hangs: bool) -> bool {
        let session = self.state.world().sessions.get(session).cloned();
        session.is_some_and(|session| {
            session.worker.hang(hangs);
            session.is_live()
        })
    }

    /// Says something to the client of one session that no agent and no service would say, as often as it is told. Returns
    /// how often the client took it: it may hang up.
    pub async fn say(&self, session: &str, frame: Frame, times: usize) -> usize {
        let queue = {
            let world = self.state.world();
            let mut connections = world.connections.iter();
            let connection = connections.rfind(|connection| connection.is_of(session, Side::Client));
            connection.map(|connection| connection.queue.clone())
        };
        for said in 0..times {
            // Nobody but the connection's own task keeps it open.
            let Some(queue) = queue.as_ref().and_then(mpsc::WeakSender::upgrade) else { return said };
            if queue.send(Outbound::Raw(frame.clone())).await.is_err() {
                return said;
            }
        }
        times
    }

    /// What every data channel begins with from now on, before anything that the agent says.
    pub fn greet_with(&self, greeting: Vec<Frame>) {
        self.state.world().greeting = greeting;
    }

    /// The ids of the live sessions.
    pub fn sessions(&self) -> Vec<String> {
        self.state.status.borrow().sessions.keys().cloned().collect()
    }

    /// Adds or changes a managed node.
    pub fn set_node(&self, node: Node) {
        let mut world = self.state.world();
        world.nodes.retain(|known| known.id != node.id);
        world.nodes.push(node);
    }

    /// Lets StartSession say of a node that it is not connected, whatever the list of nodes says; or no longer.
    pub fn refuse_target(&self, id: &str, refused: bool) {
        let mut world = self.state.world();
        match refused {
            true => drop(world.refused_targets.insert(id.into())),
            false => drop(world.refused_targets.remove(id)),
        }
    }

    /// Whether a policy denies sessions with a target.
    pub fn deny_target(&self, id: &str, denied: bool) {
        let mut world = self.state.world();
        match denied {
            true => drop(world.denied_targets.insert(id.into())),
            false => drop(world.denied_targets.remove(id)),
        }
    }

    /// Adds or changes a session document.
    pub fn set_document(&self, name: &str, document: Document) {
        self.state.world().documents.insert(name.into(), document);
    }

    /// Changes where a remote host is, whatever port is asked for; for sessions started from now on.
    pub fn set_host(&self, name: &str, addresses: Vec<SocketAddr>) {
        self.state.world().hosts.insert(name.into(), addresses);
    }

    /// What the lab has seen so far.
    pub fn status(&self) -> Status {
        self.state.status.borrow().clone()
    }

    /// The status as it changes.
    pub fn watch(&self) -> watch::Receiver<Status> {
        self.state.status.subscribe()
    }

    /// Waits until the status fulfils a condition, and returns it.
    ///
    /// # Errors
    /// It does not within that time; names `what` was waited for and the status.
    pub async fn wait_for(
        &self,
        what: &str,
        within: Duration,
        condition: impl FnMut(&Status) -> bool,
    ) -> anyhow::Result<Status> {
        let mut status = self.watch();
        match tokio::time::timeout(within, status.wait_for(condition)).await {
            Ok(Ok(status)) => return Ok(status.clone()),
            Ok(Err(_)) => anyhow::bail!("the lab has ended"),
            Err(_) => {}
        }
        anyhow::bail!("no {what} within {within:?}: {:#?}", self.status())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Does not wait: a lab may be dropped inside another runtime, where waiting is not allowed.
            runtime.shutdown_background();
        }
    }
}
