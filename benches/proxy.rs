//! What the proxy adds to a round trip over loopback, and how fast it carries a download. First the round trip: the same echo, asked directly, through the least that a relay can
//! be (two threads that block), and through the proxy, by turns. Most of what any relay adds is the host's time to wake
//! two more threads; the bare relay shows how much of it that is. It fails if the proxy adds more than [`LIMIT`], unless the
//! host is so slow to wake threads that the bare relay adds much of that too.
//!
//! Of the download only the figures are printed: a session moves less than 1 MB a second.
//!
//! `cargo bench --bench proxy` (or, unoptimised but under the same limit, `cargo test --bench proxy`).

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use autossm::config::Listen;
use autossm::gateway::ledger::Ledger;
use autossm::proxy::{Listener, Proxy, Route, Settings};
use autossm::tunnel::Generation;
use tokio::sync::watch;

const MESSAGE: usize = 32;
const ROUNDS: usize = 200;
const TRIPS_PER_ROUND: usize = 100;
/// Added to the median round trip.
const LIMIT: Duration = Duration::from_micros(60);
/// On a slow host: so many times what the bare relay adds.
const BARE_RELAYS: u32 = 3;
/// Other work on the host adds to what is measured, and never takes from it: the best of so many counts.
const MEASUREMENTS: usize = 5;

/// Bytes of a download.
const DOWNLOAD: usize = 256 << 20;

fn main() -> anyhow::Result<()> {
    downloads()?;
    for _ in 0..MEASUREMENTS {
        let Added { bare_relay, proxy } = measure()?;
        if proxy <= LIMIT.max(bare_relay * BARE_RELAYS) {
            return Ok(());
        }
    }
    anyhow::bail!(
        "the proxy adds more than {} µs to the median round trip, and more than {BARE_RELAYS} times what a bare relay adds",
        LIMIT.as_micros()
    )
}

/// What is added to the median round trip.
struct Added {
    bare_relay: Duration,
    proxy: Duration,
}

fn measure() -> anyhow::Result<Added> {
    let echo = echo()?;
    let mut ways = [
        ("direct", connect(echo)?, Vec::new()),
        ("bare relay", connect(relay(echo)?)?, Vec::new()),
        ("proxy", connect(proxy(echo)?)?, Vec::new()),
    ];
    // By turns, so that whatever else the host does falls on all. The first round warms up.
    for round in 0..=ROUNDS {
        for (_, stream, times) in &mut ways {
            for _ in 0..TRIPS_PER_ROUND {
                let time = round_trip(stream)?;
                if round > 0 {
                    times.push(time);
                }
            }
        }
    }
    println!("round trip of {MESSAGE} bytes, {} each way", ROUNDS * TRIPS_PER_ROUND);
    let (mut direct, mut all) = (None, Vec::new());
    for (name, _, times) in ways {
        let Quantiles { median, p99 } = Quantiles::of(times);
        let direct = *direct.get_or_insert(median);
        let added = median.saturating_sub(direct);
        all.push(added);
        println!(
            "  {name:<11} median {:7.1} µs   p99 {:7.1} µs   added {:7.1} µs   ratio {:5.2}",
            micros(median),
            micros(p99),
            micros(added),
            micros(median) / micros(direct)
        );
    }
    let [_, bare_relay, proxy] = all[..] else { anyhow::bail!("three ways were measured") };
    Ok(Added { bare_relay, proxy })
}

/// Gives the address of a way to a server.
type Way = fn(SocketAddr) -> anyhow::Result<SocketAddr>;

/// How fast each way carries bytes to a client that reads as fast as it can: the best of [`MEASUREMENTS`].
fn downloads() -> anyhow::Result<()> {
    let source = source()?;
    let ways: [(_, Way); 3] = [("direct", Ok), ("bare relay", relay), ("proxy", proxy)];
    println!("download of {} MiB", DOWNLOAD >> 20);
    for (name, way) in ways {
        let mut best = 0.0_f64;
        for _ in 0..MEASUREMENTS {
            let mut stream = connect(way(source)?)?;
            let began = Instant::now();
            let mut left = DOWNLOAD;
            let mut buffer = vec![0; 64 * 1024];
            while left > 0 {
                match stream.read(&mut buffer)? {
                    0 => anyhow::bail!("the download ended early"),
                    read => left = left.saturating_sub(read),
                }
            }
            best = best.max(DOWNLOAD as f64 / 1e6 / began.elapsed().as_secs_f64());
        }
        println!("  {name:<11} {best:7.0} MB/s");
    }
    Ok(())
}

struct Quantiles {
    median: Duration,
    p99: Duration,
}

impl Quantiles {
    fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        let at = |part: usize| times.get(times.len() * part / 100).copied().unwrap_or_default();
        Self { median: at(50), p99: at(99) }
    }
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn connect(address: SocketAddr) -> anyhow::Result<TcpStream> {
    let stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn round_trip(stream: &mut TcpStream) -> anyhow::Result<Duration> {
    let mut buffer = [b'x'; MESSAGE];
    let began = Instant::now();
    stream.write_all(&buffer)?;
    stream.read_exact(&mut buffer)?;
    Ok(began.elapsed())
}

/// A thread for each connection that sends back what it gets.
fn echo() -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || -> std::io::Result<()> {
                stream.set_nodelay(true)?;
                copy(&mut &stream, &mut &stream)
            });
        }
    });
    Ok(address)
}

/// Sends without end, or until the client has gone.
fn source() -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let bytes = vec![b'x'; 64 * 1024];
                while stream.write_all(&bytes).is_ok() {}
            });
        }
    });
    Ok(address)
}

/// A thread for each direction of one connection.
fn relay(echo: SocketAddr) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || -> anyhow::Result<()> {
        let (client, _) = listener.accept()?;
        client.set_nodelay(true)?;
        let server = connect(echo)?;
        let (mut from, mut to) = (client.try_clone()?, server.try_clone()?);
        std::thread::spawn(move || copy(&mut from, &mut to));
        copy(&mut &server, &mut &client)?;
        Ok(())
    });
    Ok(address)
}

fn copy(from: &mut impl std::io::Read, to: &mut impl std::io::Write) -> std::io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(()),
            n => to.write_all(buffer.get(..n).unwrap_or_default())?,
        }
    }
}

/// The proxy in a thread of its own, on the runtime that the daemon uses, with the echo in the plugin's place.
fn proxy(echo: SocketAddr) -> anyhow::Result<SocketAddr> {
    let (sender, receiver) = mpsc::sync_channel(1);
    std::thread::spawn(move || -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let listener = Listener::bind(&Listen::Tcp(([127, 0, 0, 1], 0).into()))?;
            let address = listener.local_addr();
            let ledger = Arc::new(Ledger::new());
            let route = Route::new(Generation(1), "session".to_owned(), echo, Arc::clone(&ledger));
            let routes = watch::Sender::new(vec![Arc::new(route)]);
            let settings = watch::Sender::new(Settings {
                hold: Duration::from_secs(30),
                max_held: 512,
                max_connections: 1024,
                half_close_timeout: Duration::from_secs(5),
                client_buffer: 4 << 20,
                stalled_client_timeout: Some(Duration::from_secs(300)),
            });
            let proxy = Proxy::new("bench", routes.subscribe(), settings.subscribe(), Arc::default());
            let _door = proxy.serve(listener);
            sender.send(address)?;
            std::future::pending().await
        })
    });
    receiver.recv()?.ok_or_else(|| anyhow::anyhow!("the proxy has no address"))
}
