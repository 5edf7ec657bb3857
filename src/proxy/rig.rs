//! What the proxy's tests share: a proxy on a port of its own, and plugins that are plain listeners.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;

use super::{Counts, Listener, Proxy, Route, Settings};
use crate::config::Listen;
use crate::gateway::ledger::{AgentFrames, Ledger};
use crate::tunnel::Generation;

/// Long enough for anything that is going to happen at all.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub struct Rig {
    pub proxy: Arc<Proxy>,
    pub address: SocketAddr,
    pub settings: watch::Sender<Settings>,
    routes: watch::Sender<Vec<Arc<Route>>>,
}

impl Rig {
    pub fn new(settings: Settings) -> Self {
        let settings = watch::Sender::new(settings);
        let routes = watch::Sender::new(Vec::new());
        let proxy = Proxy::new("test", routes.subscribe(), settings.subscribe(), Arc::default());
        let listener = Listener::bind(&Listen::Tcp(([127, 0, 0, 1], 0).into())).unwrap();
        let address = listener.local_addr().unwrap();
        proxy.serve(listener);
        Self { proxy, address, settings, routes }
    }

    pub fn publish(&self, routes: Vec<Arc<Route>>) {
        self.routes.send_replace(routes);
    }

    pub async fn client(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Waits until what became of the held clients has been logged.
    pub async fn outage_is_over(&self) {
        let over = async {
            while self.proxy.outage.lock().unwrap().is_some() {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, over).await.expect("the outage never ended");
    }

    /// Waits until the numbers are as they should be.
    pub async fn wait(&self, wanted: impl Fn(&Counts) -> bool) -> Counts {
        let mut counts = self.proxy.stats().subscribe();
        match timeout(PATIENCE, counts.wait_for(wanted)).await {
            Ok(counts) => *counts.unwrap(),
            Err(_) => panic!("never as wanted: {:?}", self.proxy.stats().snapshot()),
        }
    }
}

pub fn settings() -> Settings {
    Settings {
        hold: PATIENCE,
        max_held: 512,
        max_connections: 1024,
        half_close_timeout: PATIENCE,
        client_buffer: 4 << 20,
        stalled_client_timeout: None,
    }
}

pub fn route(generation: u64, address: SocketAddr) -> Arc<Route> {
    let session = format!("session-{generation}");
    Arc::new(Route::new(Generation(generation), session, address, Arc::new(Ledger::new())))
}

/// A plugin that the test itself accepts from.
pub async fn plugin(generation: u64) -> (TcpListener, Arc<Route>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let route = route(generation, listener.local_addr().unwrap());
    (listener, route)
}

pub async fn accept(plugin: &TcpListener) -> TcpStream {
    timeout(PATIENCE, plugin.accept()).await.expect("nobody came").unwrap().0
}

/// A plugin whose destination sends back what it gets.
pub async fn echo(generation: u64) -> Arc<Route> {
    let (listener, route) = plugin(generation).await;
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut reader, mut writer) = socket.split();
                let _ = tokio::io::copy(&mut reader, &mut writer).await;
            });
        }
    });
    route
}

/// A port on which nobody listens: it belongs to a socket that is bound and no more, as long as that is kept.
pub fn dead_port() -> (TcpSocket, SocketAddr) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

/// Reads to the end; a reset is an end too. Returns what came before it.
pub async fn eof(socket: &mut TcpStream) -> Vec<u8> {
    end(socket).await.0
}

/// Reads to the end. Returns what came before it, and whether it was a true end and no reset.
pub async fn end(socket: &mut (impl AsyncRead + Unpin)) -> (Vec<u8>, bool) {
    let mut bytes = Vec::new();
    let end = timeout(PATIENCE, socket.read_to_end(&mut bytes)).await.expect("the connection was not closed");
    match end.map_err(|error| error.kind()) {
        Ok(_) => (bytes, true),
        Err(ErrorKind::ConnectionReset) => (bytes, false),
        Err(kind) => panic!("neither an end nor a reset: {kind}"),
    }
}

/// The session of `route` is read by its gateway: what its agent sends is known.
pub fn followed(route: &Route) {
    route.ledger.follow_agent(AgentFrames::Followed);
}
