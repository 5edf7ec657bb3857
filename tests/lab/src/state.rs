//! What all parts of the lab share. Locks are held for a few lines only, never across an await.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_tungstenite::tungstenite::Message as Frame;

use crate::channel::Connection;
use crate::fault::{Faults, Loss};
use crate::options::{Document, Node, Options};
use crate::service::kms::DataKey;
use crate::service::session::Session;
use crate::status::Status;

pub(crate) struct State {
    pub options: Options,
    /// The lab's own runtime: commands come from the runtimes of tests.
    pub handle: Handle,
    pub faults: watch::Sender<Faults>,
    pub status: watch::Sender<Status>,
    pub world: Mutex<World>,
    /// Where agents reach the service.
    pub agents: OnceLock<SocketAddr>,
    dice: Mutex<StdRng>,
}

/// What tests may change while the lab runs, and what clients have made.
pub(crate) struct World {
    /// Live and ended sessions.
    pub sessions: BTreeMap<String, Arc<Session>>,
    /// Open data channels.
    pub connections: Vec<Connection>,
    pub nodes: Vec<Node>,
    /// Not connected, whatever `nodes` says.
    pub refused_targets: BTreeSet<String>,
    /// A policy denies sessions with them.
    pub denied_targets: BTreeSet<String>,
    pub documents: BTreeMap<String, Document>,
    pub hosts: BTreeMap<String, Vec<SocketAddr>>,
    /// By their encrypted form.
    pub data_keys: HashMap<Vec<u8>, DataKey>,
    /// What every data channel begins with.
    pub greeting: Vec<Frame>,
}

impl State {
    pub fn new(options: Options, handle: Handle) -> Self {
        let mut documents = Document::built_in();
        documents.extend(options.documents.clone());
        Self {
            world: Mutex::new(World {
                sessions: BTreeMap::new(),
                connections: Vec::new(),
                nodes: options.nodes.clone(),
                refused_targets: BTreeSet::new(),
                denied_targets: BTreeSet::new(),
                documents,
                hosts: options.hosts.clone(),
                data_keys: HashMap::new(),
                greeting: Vec::new(),
            }),
            agents: OnceLock::new(),
            dice: Mutex::new(StdRng::seed_from_u64(options.seed)),
            faults: watch::Sender::new(Faults::default()),
            status: watch::Sender::new(Status::default()),
            handle,
            options,
        }
    }

    pub fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where agents reach the service.
    pub fn agents(&self) -> SocketAddr {
        // Known before anybody can start a session.
        *self.agents.get_or_init(|| (std::net::Ipv4Addr::LOCALHOST, 0).into())
    }

    pub fn greeting(&self) -> Vec<Frame> {
        self.world().greeting.clone()
    }

    pub fn count(&self, change: impl FnOnce(&mut Status)) {
        self.status.send_modify(change);
    }

    pub fn violation(&self, session: &str, text: impl std::fmt::Display) {
        self.count(|status| status.violation(format!("{session}: {text}")));
    }

    /// Whether a message is lost, by the fraction that `which` picks.
    pub fn loses(&self, which: fn(&Loss) -> f64) -> bool {
        let fraction = which(&self.faults.borrow().loss);
        let mut dice = self.dice.lock().unwrap_or_else(PoisonError::into_inner);
        let lost = fraction > 0.0 && dice.random::<f64>() < fraction;
        if lost {
            self.count(|status| status.lost += 1);
        }
        lost
    }
}
