//! The agent's end of the multiplexer: a connection to the destination for each stream.
//!
//! smux version 1 has one receive buffer for all streams of a session. Whoever does not take its bytes stops everyone,
//! and so does the agent: while the buffer is full it reads no more frames, hence no more messages.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use super::{Output, Plan};
use crate::state::State;
use crate::wire::message::{flag, payload};
use crate::wire::mux::{Command, Decoder, Frame, MAX_FRAME, RECEIVE_BUFFER};

/// Streams that were announced and wait for their connection, one after the other: the agent dials in order.
const BACKLOG: usize = 1024;

/// What a session's streams share.
pub(super) struct Mux {
    /// The receive buffer: bytes that it can still take, below 0 if the last frame went beyond.
    room: AtomicI64,
    given_back: Notify,
    /// A frame of the client's has come.
    heard: AtomicBool,
    /// Cancelled when all streams are over.
    pub over: CancellationToken,
}

impl Mux {
    pub fn new(over: CancellationToken) -> Self {
        Self {
            room: AtomicI64::new(RECEIVE_BUFFER as i64),
            given_back: Notify::new(),
            heard: AtomicBool::new(false),
            over,
        }
    }

    /// Whether nothing of the client's has come since it was asked last, and could have.
    pub fn is_silent(&self) -> bool {
        !self.heard.swap(false, Ordering::AcqRel) && self.room.load(Ordering::Acquire) > 0
    }

    fn take(&self, bytes: usize) {
        self.room.fetch_sub(bytes as i64, Ordering::AcqRel);
    }

    fn give_back(&self, bytes: usize) {
        self.room.fetch_add(bytes as i64, Ordering::AcqRel);
        self.given_back.notify_waiters();
    }

    async fn has_room(&self) {
        loop {
            let given_back = self.given_back.notified();
            if self.room.load(Ordering::Acquire) > 0 {
                return;
            }
            given_back.await;
        }
    }
}

/// Receives frames and hands them to streams.
pub(super) struct Streams {
    state: Arc<State>,
    session: String,
    decoder: Decoder,
    open: HashMap<u32, mpsc::UnboundedSender<Bytes>>,
    /// Streams that were ever opened: late frames for a closed one are nobody's fault.
    known: HashSet<u32>,
    /// Streams that have ended here.
    ended: (mpsc::UnboundedSender<u32>, mpsc::UnboundedReceiver<u32>),
    mux: Arc<Mux>,
    dialler: mpsc::Sender<Dial>,
    broken: bool,
}

struct Dial {
    stream: u32,
    inbox: mpsc::UnboundedReceiver<Bytes>,
    ended: mpsc::UnboundedSender<u32>,
}

impl Streams {
    /// Streams to the first of the plan's addresses that answers; they end with the mux.
    pub fn new(
        state: Arc<State>,
        session: String,
        plan: &Plan,
        output: mpsc::Sender<Output>,
        mux: Arc<Mux>,
    ) -> Self {
        let (dialler, dials) = mpsc::channel(BACKLOG);
        let dial_all = dial_in_order(state.clone(), plan.addresses.clone(), dials, output, mux.clone());
        let over = mux.over.clone();
        tokio::spawn(async move { over.run_until_cancelled(dial_all).await });
        Self {
            state,
            session,
            decoder: Decoder::default(),
            open: HashMap::new(),
            known: HashSet::new(),
            ended: mpsc::unbounded_channel(),
            mux,
            dialler,
            broken: false,
        }
    }

    /// Takes in the payload of a message. Waits while the receive buffer is full.
    pub async fn receive(&mut self, bytes: &[u8]) {
        if self.broken {
            return;
        }
        self.decoder.push(bytes);
        loop {
            self.mux.has_room().await;
            self.forget_ended();
            match self.decoder.next_frame() {
                Ok(Some(frame)) => {
                    self.mux.heard.store(true, Ordering::Release);
                    self.frame(frame).await;
                }
                Ok(None) => break,
                Err(error) => {
                    self.broken = true;
                    self.state.violation(&self.session, error);
                    break;
                }
            }
        }
    }

    async fn frame(&mut self, frame: Frame) {
        let stream = frame.stream;
        match frame.command {
            Command::Nop => {}
            Command::Syn => {
                if stream < 3 || stream.is_multiple_of(2) || !self.known.insert(stream) {
                    self.state.violation(&self.session, format_args!("stream {stream} cannot be opened"));
                    return;
                }
                self.state.count(|status| status.session(&self.session, |session| session.streams += 1));
                let (to, inbox) = mpsc::unbounded_channel();
                self.open.insert(stream, to);
                let _ = self.dialler.send(Dial { stream, inbox, ended: self.ended.0.clone() }).await;
            }
            Command::Fin | Command::Push if !self.known.contains(&stream) => {
                self.state.violation(
                    &self.session,
                    format_args!("{:?} for unknown stream {stream}", frame.command),
                );
            }
            // What was sent before is still delivered: the inbox ends after it.
            Command::Fin => drop(self.open.remove(&stream)),
            Command::Push => {
                if let Some(to) = self.open.get(&stream) {
                    let bytes = frame.data.len();
                    self.mux.take(bytes);
                    if to.send(frame.data).is_err() {
                        self.mux.give_back(bytes);
                    }
                }
            }
        }
    }

    fn forget_ended(&mut self) {
        while let Ok(stream) = self.ended.1.try_recv() {
            self.open.remove(&stream);
        }
    }
}

async fn dial_in_order(
    state: Arc<State>,
    addresses: Vec<SocketAddr>,
    mut dials: mpsc::Receiver<Dial>,
    output: mpsc::Sender<Output>,
    mux: Arc<Mux>,
) {
    let over = mux.over.clone();
    while let Some(Dial { stream, inbox, ended }) = dials.recv().await {
        let tcp = dial(&state, &addresses).await;
        state.count(|status| match &tcp {
            Some(_) => status.dialled += 1,
            None => status.dial_failures += 1,
        });
        let (output, mux) = (output.clone(), mux.clone());
        if let Some(tcp) = tcp {
            let serve = async move {
                transfer(stream, tcp, inbox, &output, &mux).await;
                let _ = ended.send(stream);
                let _ = output.send(Output::StreamEnded).await;
            };
            let over = over.clone();
            tokio::spawn(async move { over.run_until_cancelled(serve).await });
        } else {
            let failed = Bytes::copy_from_slice(&flag::CONNECT_TO_PORT_ERROR.to_be_bytes());
            let _ = output.send(Output::Message(payload::FLAG, failed)).await;
            let _ = output.send(frame_output(&Frame::control(Command::Fin, stream))).await;
            discard(inbox, &mux);
            let _ = ended.send(stream);
            let _ = output.send(Output::StreamEnded).await;
        }
    }
}

async fn dial(state: &State, addresses: &[SocketAddr]) -> Option<TcpStream> {
    if state.faults.borrow().destination_refused {
        return None;
    }
    for address in addresses {
        if let Ok(tcp) = TcpStream::connect(address).await {
            let _ = tcp.set_nodelay(true);
            return Some(tcp);
        }
    }
    None
}

/// Moves bytes until either side ends; then both are closed. There is no half-close at this end.
async fn transfer(
    stream: u32,
    tcp: TcpStream,
    mut inbox: mpsc::UnboundedReceiver<Bytes>,
    output: &mpsc::Sender<Output>,
    mux: &Mux,
) {
    let (mut from, mut to) = tcp.into_split();
    let to_destination = async {
        while let Some(bytes) = inbox.recv().await {
            let written = to.write_all(&bytes).await;
            mux.give_back(bytes.len());
            if written.is_err() {
                break;
            }
        }
    };
    let from_destination = async {
        let mut buffer = vec![0; MAX_FRAME];
        while let Ok(read @ 1..) = from.read(&mut buffer).await {
            let frame = Frame::push(stream, Bytes::copy_from_slice(&buffer[..read]));
            if output.send(frame_output(&frame)).await.is_err() {
                break;
            }
        }
    };
    tokio::select! {
        () = to_destination => {}
        () = from_destination => {}
    }
    let _ = output.send(frame_output(&Frame::control(Command::Fin, stream))).await;
    discard(inbox, mux);
}

fn discard(mut inbox: mpsc::UnboundedReceiver<Bytes>, mux: &Mux) {
    inbox.close();
    while let Ok(bytes) = inbox.try_recv() {
        mux.give_back(bytes.len());
    }
}

pub(super) fn frame_output(frame: &Frame) -> Output {
    let mut bytes = BytesMut::new();
    frame.encode(&mut bytes);
    Output::Frame(bytes.freeze())
}
