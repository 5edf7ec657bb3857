//! Every byte arrives as sent, and all of an answer arrives.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use autossm_lab::Lab;
use autossm_lab::destination::slow_answer;
use autossm_lab::options::Options;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::daemon::{Daemon, Line, own_address, tunnel};

async fn plain() -> (Lab, Daemon) {
    let lab = Lab::start(Options::default()).await.unwrap();
    let daemon = Daemon::echo(&lab, "").await;
    (lab, daemon)
}

/// Sends `messages` one by one and compares each with its echo; returns how many differ.
pub async fn echo(address: SocketAddr, messages: impl Iterator<Item = Vec<u8>>) -> usize {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let mut differ = 0;
    for message in messages {
        stream.write_all(&message).await.unwrap();
        let mut back = vec![0; message.len()];
        stream.read_exact(&mut back).await.unwrap();
        differ += usize::from(back != message);
    }
    differ
}

/// 10 000 messages, each ending in `end`, on eight connections. Returns the daemon's log.
pub async fn ten_thousand_messages(
    lab: Lab,
    daemon: Daemon,
    end: u8,
    length: fn(usize) -> usize,
) -> Vec<Arc<Line>> {
    let began = Instant::now();
    let mut clients = JoinSet::new();
    for client in 0..8 {
        let lengths = (0..10_000).filter(move |n| n % 8 == client).map(length);
        clients.spawn(echo(
            daemon.address,
            lengths.map(move |length| {
                let mut message = vec![b'a'; length];
                message[length - 1] = end;
                message
            }),
        ));
    }
    let differ: usize = clients.join_all().await.into_iter().sum();
    println!("10 000 messages ending in {end:#04x}: {differ} differ, {:.1} s", began.elapsed().as_secs_f64());
    assert_eq!(differ, 0);
    daemon.stop(&lab).await
}

/// Every length from 1 to 4096.
fn every(n: usize) -> usize {
    n % 4096 + 1
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_end_in_a_line_feed() {
    let (lab, daemon) = plain().await;
    ten_thousand_messages(lab, daemon, b'\n', every).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_end_in_a_carriage_return() {
    let (lab, daemon) = plain().await;
    ten_thousand_messages(lab, daemon, b'\r', every).await;
}

/// The length that the bare plugin changes most often: 8 bytes of mux header and 1017 are one more than it reads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_of_1017_bytes() {
    let lab = Lab::start(Options::default()).await.unwrap();
    let daemon = Daemon::echo(&lab, "").await;
    for end in [b'\n', b'\r'] {
        let messages = (0..500).map(|_| {
            let mut message = vec![b'a'; 1017];
            message[1016] = end;
            message
        });
        assert_eq!(echo(daemon.address, messages).await, 0, "messages that end in {end:#04x}");
    }
    let repaired = daemon.log().iter().filter(|line| line.field("event") == "line_feed_restored").count();
    println!("1017 bytes: {repaired} line feeds restored");
    assert!(repaired > 0, "the plugin changed none, so that nothing was shown");
    daemon.stop(&lab).await;
}

/// An endless row of bytes that both ends of a comparison can make: random, one in four a line feed or a carriage return.
struct Row(StdRng);

impl Row {
    fn next(&mut self, length: usize) -> Vec<u8> {
        (0..length)
            .map(|_| match self.0.random::<u8>() {
                0..32 => b'\n',
                32..64 => b'\r',
                byte => byte,
            })
            .collect()
    }
}

/// Random bytes in random pieces, both ways at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_minute_of_random_bytes_on_eight_connections() {
    let (lab, daemon) = plain().await;
    a_minute_of_random_bytes(lab, daemon).await;
}

/// On eight connections.
pub async fn a_minute_of_random_bytes(lab: Lab, daemon: Daemon) -> Vec<Arc<Line>> {
    let mut clients = JoinSet::new();
    for client in 0..8 {
        clients.spawn(random_bytes(daemon.address, client));
    }
    let bytes: usize = clients.join_all().await.into_iter().sum();
    println!("60 s of random bytes on 8 connections: {bytes} bytes, none differs");
    assert!(bytes > 1_000_000, "only {bytes}");
    daemon.stop(&lab).await
}

async fn random_bytes(address: SocketAddr, client: u64) -> usize {
    let (mut reader, mut writer) = TcpStream::connect(address).await.unwrap().into_split();
    let (total, mut known) = watch::channel(None);
    let send = async {
        let (mut row, mut random) = (Row(StdRng::seed_from_u64(client)), StdRng::seed_from_u64(client + 100));
        let (began, mut sent) = (Instant::now(), 0);
        while began.elapsed() < Duration::from_secs(60) {
            let piece = row.next(random.random_range(1..3000));
            writer.write_all(&piece).await.unwrap();
            sent += piece.len();
            tokio::time::sleep(Duration::from_millis(random.random_range(0..40))).await;
        }
        total.send_replace(Some(sent));
        // The plugin cannot half-close: the connection stays whole until everything is back.
        writer
    };
    let receive = async {
        let (mut row, mut compared, mut buffer) = (Row(StdRng::seed_from_u64(client)), 0, vec![0; 16_384]);
        loop {
            let all = *known.borrow_and_update();
            if all == Some(compared) {
                return compared;
            }
            tokio::select! {
                read = reader.read(&mut buffer) => {
                    let read = read.unwrap();
                    assert!(read > 0, "client {client}: cut after {compared} bytes");
                    assert!(buffer[..read] == row.next(read), "client {client}: differs after {compared} bytes");
                    compared += read;
                }
                changed = known.changed(), if all.is_none() => changed.unwrap(),
            }
        }
    };
    let (_writer, compared) = tokio::join!(send, receive);
    compared
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_shuts_down_its_side_gets_its_whole_answer() {
    let lab = Lab::start(Options::default()).await.unwrap();
    let address = own_address();
    let slow = lab.addresses().destinations.slow;
    let daemon = Daemon::start(address, &tunnel(&lab, "slow", address, slow, ""));
    daemon.event("ready").await;
    for _ in 0..3 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"the request\n").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer.len(), 20_001);
        assert!(answer == slow_answer());
    }
    daemon.stop(&lab).await;
}
