//! A real client and a real plugin's end, on loopback.

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream, UnixStream};

use super::*;
use crate::config::Listen;
use crate::proxy::Listener;
use crate::proxy::rig::{PATIENCE, Rig, accept, eof, plugin, settings};
use crate::proxy::route::Route;

/// Bytes that tell their place, with line feeds and carriage returns among them.
fn pattern(len: usize) -> Vec<u8> {
    (0..len as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

fn short(half_close_timeout: Duration) -> Settings {
    Settings { half_close_timeout, ..settings() }
}

async fn exact(socket: &mut TcpStream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    timeout(PATIENCE, socket.read_exact(&mut bytes)).await.expect("bytes are missing").unwrap();
    bytes
}

#[tokio::test]
async fn the_ledger_gets_exactly_the_bytes() {
    let rig = Rig::new(settings());
    let (plugin, route) = plugin(1).await;
    rig.publish(vec![route.clone()]);
    let mut client = rig.client().await;
    let mut socket = accept(&plugin).await;
    let sent = pattern(100_000);
    let mut got = Vec::new();
    for piece in sent.chunks(997) {
        client.write_all(piece).await.unwrap();
        got.extend(exact(&mut socket, piece.len()).await);
    }
    assert_eq!(got, sent);
    assert_eq!(route.ledger.outstanding(), sent.len());
    for byte in sent {
        assert_eq!(route.ledger.pass(3, 1), byte == b'\n');
    }
    assert_eq!(route.ledger.outstanding(), 0);
}

#[tokio::test]
async fn a_slow_reader_slows_the_sender_and_loses_nothing() {
    const LEN: usize = 16 << 20;
    let rig = Rig::new(settings());
    let (plugin, route) = plugin(1).await;
    rig.publish(vec![route.clone()]);
    let client = rig.client().await;
    let mut socket = accept(&plugin).await;
    let sent = Arc::new(pattern(LEN));
    let (mut reader, mut writer) = client.into_split();

    // Nobody reads at the plugin: what the ledger must remember stops growing, far below what is sent.
    let upload = tokio::spawn({
        let sent = Arc::clone(&sent);
        async move { writer.write_all(&sent).await.map(|()| writer) }
    });
    let mut before = 0;
    let stuck = async {
        loop {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let now = route.ledger.outstanding();
            if now > 0 && now == before {
                return now;
            }
            before = now;
        }
    };
    let held = timeout(PATIENCE, stuck).await.expect("never stuck");
    assert!(held < LEN / 2, "{held}");
    assert_eq!(exact(&mut socket, LEN).await, *sent);
    let _writer = upload.await.unwrap().unwrap();

    // The same downward, where the plugin closes with all of it on its way.
    let download = tokio::spawn(async move { socket.write_all(&sent).await });
    let mut got = Vec::new();
    timeout(PATIENCE, reader.read_to_end(&mut got)).await.unwrap().unwrap();
    download.await.unwrap().unwrap();
    assert!(got == pattern(LEN));
}

#[tokio::test]
async fn connections_have_the_numbers_that_the_plugin_will_give() {
    let rig = Rig::new(settings());
    let (plugin, route) = plugin(1).await;
    rig.publish(vec![route.clone()]);
    let name =
        |n: u16| (0..16).map(move |bit| if n >> bit & 1 == 1 { b'\n' } else { b'.' }).collect::<Vec<_>>();
    let clients: Vec<_> = (0..200)
        .map(|n| {
            let address = rig.address;
            tokio::spawn(async move {
                let mut client = TcpStream::connect(address).await.unwrap();
                client.write_all(&name(n)).await.unwrap();
                client
            })
        })
        .collect();
    let mut sockets = Vec::new();
    for _ in 0..200 {
        // A plugin that takes its time.
        if sockets.len() % 20 == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        sockets.push(accept(&plugin).await);
    }
    let mut seen = std::collections::HashSet::new();
    for (place, socket) in sockets.iter_mut().enumerate() {
        let got = exact(socket, 16).await;
        let stream = 3 + 2 * place as u32;
        for byte in &got {
            assert_eq!(route.ledger.pass(stream, 1), *byte == b'\n', "stream {stream}");
        }
        assert!(seen.insert(got));
    }
    for client in clients {
        client.await.unwrap();
    }
}

#[tokio::test]
async fn a_connection_that_carried_nothing_moves_when_its_session_ends() {
    let rig = Rig::new(settings());
    let (first, route) = plugin(1).await;
    let mut client = rig.client().await;
    rig.wait(|counts| counts.held == 1).await;
    rig.publish(vec![route.clone()]);
    rig.wait(|counts| counts.released == 1).await;
    let mut socket = accept(&first).await;
    rig.publish(vec![]);
    route.ended.cancel();
    rig.wait(|counts| counts.moved == 1 && counts.held == 1).await;
    assert_eq!(eof(&mut socket).await, b"");
    assert_eq!(*route.open.borrow(), 0);

    let (second, route) = plugin(2).await;
    rig.publish(vec![route.clone()]);
    let mut socket = accept(&second).await;
    socket.write_all(b"greeting").await.unwrap();
    assert_eq!(exact(&mut client, 8).await, b"greeting");
    assert_eq!(rig.proxy.stats().snapshot().cut, 0);
}

#[tokio::test]
async fn it_moves_too_when_the_plugin_dies_before_its_session_is_known_to_be_over() {
    let rig = Rig::new(settings());
    let (first, route) = plugin(1).await;
    rig.publish(vec![route.clone()]);
    let mut client = rig.client().await;
    let socket = accept(&first).await;
    SockRef::from(&socket).set_linger(Some(Duration::ZERO)).unwrap();
    drop(socket);
    // The driver hears of the plugin's death a moment later.
    tokio::time::sleep(Duration::from_millis(30)).await;
    assert_eq!(rig.proxy.stats().snapshot().open, 1);
    rig.publish(vec![]);
    route.ended.cancel();
    rig.wait(|counts| counts.moved == 1).await;

    let (second, route) = plugin(2).await;
    rig.publish(vec![route]);
    let mut socket = accept(&second).await;
    client.write_all(b"request").await.unwrap();
    assert_eq!(exact(&mut socket, 7).await, b"request");
}

#[tokio::test]
async fn a_destination_that_closes_at_once_closes_the_client() {
    let rig = Rig::new(settings());
    let (plugin, route) = plugin(1).await;
    rig.publish(vec![route]);
    let mut client = rig.client().await;
    drop(accept(&plugin).await);
    assert_eq!(eof(&mut client).await, b"");
    drop(client);
    let counts = rig.wait(|counts| counts.open == 0).await;
    assert_eq!((counts.moved, counts.cut), (0, 0));
}

#[tokio::test]
async fn after_the_first_byte_a_connection_is_cut_and_gets_what_was_received() {
    let rig = Rig::new(settings());
    let (first, route) = plugin(1).await;
    let (second, other) = plugin(2).await;
    rig.publish(vec![route.clone()]);
    let mut client = rig.client().await;
    let mut socket = accept(&first).await;
    client.write_all(b"x").await.unwrap();
    exact(&mut socket, 1).await;
    rig.publish(vec![other]);
    // Without a step of the runtime in between: the proxy has not heard of these bytes when the session ends.
    assert_eq!(socket.try_write(b"the answer").unwrap(), 10);
    route.ended.cancel();
    assert_eq!(eof(&mut client).await, b"the answer");
    drop(client);
    let counts = rig.wait(|counts| counts.open == 0).await;
    assert_eq!((counts.moved, counts.cut), (0, 1));
    assert!(timeout(Duration::from_millis(50), second.accept()).await.is_err());
}

#[tokio::test]
async fn a_reset_of_the_plugin_comes_after_its_data() {
    let rig = Rig::new(settings());
    let (plugin, route) = plugin(1).await;
    rig.publish(vec![route]);
    let mut client = rig.client().await;
    let socket = accept(&plugin).await;
    assert_eq!(socket.try_write(b"the answer").unwrap(), 10);
    SockRef::from(&socket).set_linger(Some(Duration::ZERO)).unwrap();
    drop(socket);
    assert_eq!(eof(&mut client).await, b"the answer");
}

#[tokio::test]
async fn a_client_that_shuts_down_its_side_gets_its_whole_answer() {
    let rig = Rig::new(short(Duration::from_millis(400)));
    let (plugin, route) = plugin(1).await;
    rig.publish(vec![route]);
    let mut client = rig.client().await;
    client.write_all(b"request").await.unwrap();
    client.shutdown().await.unwrap();
    let mut socket = accept(&plugin).await;
    exact(&mut socket, 7).await;
    let answer = pattern(20_001);
    let expected = answer.clone();
    let (mut reader, mut writer) = socket.into_split();
    // Slower in all than the timeout, but never silent for as long.
    let destination = tokio::spawn(async move {
        for piece in answer.chunks(2001) {
            writer.write_all(piece).await.unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
            let mut byte = [0];
            assert!(reader.try_read(&mut byte).is_err(), "the FIN was passed on");
        }
        drop(writer);
        let _ = reader.read(&mut [0]).await;
    });
    assert_eq!(eof(&mut client).await, expected);
    destination.await.unwrap();
}

#[tokio::test]
async fn a_destination_silent_after_the_fin_is_closed() {
    let rig = Rig::new(short(Duration::from_millis(200)));
    let (plugin, route) = plugin(1).await;
    rig.publish(vec![route.clone()]);
    let mut client = rig.client().await;
    client.write_all(b"request").await.unwrap();
    let began = Instant::now();
    client.shutdown().await.unwrap();
    let mut socket = accept(&plugin).await;
    assert_eq!(eof(&mut socket).await, b"request");
    assert!(began.elapsed() >= Duration::from_millis(200));
    assert_eq!(eof(&mut client).await, b"");
    rig.wait(|counts| counts.open == 0).await;
    assert_eq!(*route.open.borrow(), 0);
}

#[tokio::test]
async fn a_destination_that_cannot_be_heard_is_not_silent() {
    let rig = Rig::new(short(Duration::from_millis(100)));
    let (plugin, route) = plugin(1).await;
    rig.publish(vec![route.clone()]);
    route.interrupted.store(true, Relaxed);
    let mut client = rig.client().await;
    client.write_all(b"request").await.unwrap();
    client.shutdown().await.unwrap();
    let mut socket = accept(&plugin).await;
    exact(&mut socket, 7).await;
    let closed = timeout(Duration::from_millis(500), socket.read_u8()).await;
    assert!(closed.is_err(), "closed while the data channel was down");
    route.interrupted.store(false, Relaxed);
    assert_eq!(eof(&mut socket).await, b"");
}

#[tokio::test]
async fn a_request_still_on_its_way_is_not_silence() {
    let rig = Rig::new(short(Duration::from_millis(200)));
    let (plugin, route) = plugin(1).await;
    rig.publish(vec![route.clone()]);
    let mut client = rig.client().await;
    client.write_all(&[0; 20]).await.unwrap();
    client.shutdown().await.unwrap();
    let mut socket = accept(&plugin).await;
    exact(&mut socket, 20).await;
    // The gateway sees a byte leave the plugin every 50 ms, for five times the timeout.
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        route.ledger.pass(3, 1);
        assert!(socket.try_read(&mut [0]).is_err(), "closed in the middle of the request");
    }
    assert_eq!(eof(&mut socket).await, b"");
}

#[tokio::test]
async fn a_reset_of_the_client_closes_at_once_even_when_nothing_is_read() {
    let rig = Rig::new(settings());
    let (plugin, route) = plugin(1).await;
    rig.publish(vec![route]);
    // After its FIN.
    let mut client = rig.client().await;
    client.write_all(b"request").await.unwrap();
    client.shutdown().await.unwrap();
    let mut socket = accept(&plugin).await;
    exact(&mut socket, 7).await;
    SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    // A closed socket answers data with a reset.
    socket.write_all(b"answer").await.unwrap();
    assert_eq!(eof(&mut socket).await, b"");

    // With the way to the plugin full.
    let client = rig.client().await;
    let mut socket = accept(&plugin).await;
    let full = async {
        loop {
            match timeout(Duration::from_millis(300), client.writable()).await {
                Ok(_) => _ = client.try_write(&[0; 65536]),
                Err(_) => return,
            }
        }
    };
    timeout(PATIENCE, full).await.expect("never full");
    SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    rig.wait(|counts| counts.open == 0).await;
    assert!(!eof(&mut socket).await.is_empty());
}

/// Where the frames are encrypted: the next connection writes when what the one before wrote has left the plugin, or
/// never will.
#[tokio::test]
async fn in_turns_one_connection_writes_after_the_other() {
    let rig = Rig::new(settings());
    let (plugin, route) = plugin(1).await;
    route.ledger.take_turns();
    rig.publish(vec![route.clone()]);
    let (mut first, mut sockets) = (rig.client().await, Vec::new());
    sockets.push(accept(&plugin).await);
    first.write_all(&[b'a'; 1000]).await.unwrap();
    assert_eq!(exact(&mut sockets[0], 998).await, [b'a'; 998], "1000 is a multiple of 8");
    assert_eq!(route.ledger.held(3), 998);

    let mut second = rig.client().await;
    sockets.push(accept(&plugin).await);
    second.write_all(&[b'b'; 900]).await.unwrap();
    // Two connections have begun; that says nothing about the bytes of the first.
    route.ledger.left(8 + 8);
    let early = timeout(Duration::from_millis(100), sockets[1].peek(&mut [0])).await;
    assert!(early.is_err(), "not its turn");
    route.ledger.left(8 + 998);
    assert_eq!(exact(&mut sockets[0], 2).await, *b"aa", "it came first");
    route.ledger.left(8 + 2);
    assert_eq!(exact(&mut sockets[1], 900).await, [b'b'; 900]);

    route.ledger.left(8 + 900);

    // The second one's destination hangs up before the plugin has read what was written.
    second.write_all(&[b'b'; 900]).await.unwrap();
    timeout(PATIENCE, sockets[1].peek(&mut [0])).await.unwrap().unwrap();
    first.write_all(&[b'a'; 999]).await.unwrap();
    let early = timeout(Duration::from_millis(100), sockets[0].peek(&mut [0])).await;
    assert!(early.is_err(), "not its turn");
    drop(sockets.pop());
    assert_eq!(exact(&mut sockets[0], 999).await, [b'a'; 999]);
}

/// Writes `bytes` as far as the other side takes them without being read, and then says so.
async fn write_until_stuck(socket: &mut TcpStream, bytes: &[u8]) -> usize {
    let mut written = 0;
    while let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
        match timeout(Duration::from_millis(500), socket.writable()).await {
            Ok(ready) => ready.unwrap(),
            Err(_) => break,
        }
        match socket.try_write(rest) {
            Ok(n) => written += n,
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
    }
    written
}

async fn stalled(route: &Route, wanted: usize) {
    let mut stalled = route.stalled.subscribe();
    timeout(PATIENCE, stalled.wait_for(|stalled| *stalled == wanted))
        .await
        .expect("never as wanted")
        .unwrap();
}

#[tokio::test]
async fn a_client_that_does_not_read_stalls_its_session_and_gets_everything_later() {
    const LEN: usize = 64 << 20;
    let rig = Rig::new(settings());
    let (plugin, route) = plugin(1).await;
    rig.publish(vec![route.clone()]);
    let mut client = rig.client().await;
    let mut socket = accept(&plugin).await;
    let sent = pattern(LEN);
    let written = write_until_stuck(&mut socket, &sent).await;
    stalled(&route, 1).await;
    let counts = rig.proxy.stats().snapshot();
    assert_eq!(counts.stalled, 1);
    assert!(counts.buffered > 3 << 20 && counts.buffered <= (4 << 20) + (128 << 10), "{}", counts.buffered);
    assert!(written > 4 << 20 && written < LEN, "{written}");

    let rest = tokio::spawn(async move {
        socket.write_all(&sent[written..]).await.unwrap();
        sent
    });
    let mut got = Vec::new();
    timeout(PATIENCE, client.read_to_end(&mut got)).await.unwrap().unwrap();
    assert!(got == rest.await.unwrap());
    stalled(&route, 0).await;
    let counts = rig.wait(|counts| counts.stalled == 0).await;
    assert_eq!(counts.stalled_closed, 0);
    assert_eq!(rig.proxy.stats().snapshot().buffered, 0);
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_reset_and_one_that_takes_little_is_not() {
    const TIMEOUT: Duration = Duration::from_secs(3);
    let limits = Settings { client_buffer: 64 << 10, stalled_client_timeout: Some(TIMEOUT), ..settings() };
    let rig = Rig::new(limits);
    let (plugin, route) = plugin(1).await;
    rig.publish(vec![route.clone()]);
    let mut deaf = rig.client().await;
    let mut deaf_socket = accept(&plugin).await;
    // Of a size at which its kernel tells of every 64 KB that it has read.
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(200 << 10).unwrap();
    let mut slow = socket.connect(rig.address).await.unwrap();
    let mut slow_socket = accept(&plugin).await;
    let answer = pattern(64 << 20);
    write_until_stuck(&mut deaf_socket, &answer).await;
    write_until_stuck(&mut slow_socket, &answer).await;
    // Too little for the kernel to tell of room: it does so when a third of its 4 MB is free.
    let mut piece = vec![0; 80 << 10];
    let slowly = async {
        loop {
            slow.read_exact(&mut piece).await.unwrap();
            tokio::time::sleep(TIMEOUT / 3).await;
        }
    };
    let feed = async {
        loop {
            write_until_stuck(&mut slow_socket, &answer).await;
        }
    };
    let closed = async {
        rig.wait(|counts| counts.stalled_closed == 1).await;
        tokio::time::sleep(TIMEOUT).await;
    };
    tokio::select! {
        () = slowly => {}
        () = feed => {}
        () = closed => {}
    }
    let mut rest = Vec::new();
    let error = timeout(PATIENCE, deaf.read_to_end(&mut rest)).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "an answer that is cut must not look complete");
    let counts = rig.proxy.stats().snapshot();
    assert_eq!((counts.open, counts.stalled_closed), (1, 1));
}

/// A pager that is left at its first page.
#[tokio::test]
async fn a_client_that_holds_up_nobody_is_left_alone() {
    const TIMEOUT: Duration = Duration::from_secs(1);
    let rig = Rig::new(Settings { stalled_client_timeout: Some(TIMEOUT), ..settings() });
    let (plugin, route) = plugin(1).await;
    rig.publish(vec![route.clone()]);
    let mut client = rig.client().await;
    let mut socket = accept(&plugin).await;
    // As much as the sockets take, and about 2 MB of the 4 that may wait.
    let sent = pattern(64 << 20);
    let mut written = 0;
    while rig.proxy.stats().snapshot().buffered < 2 << 20 {
        written += socket.write(&sent[written..written + (64 << 10)]).await.unwrap();
        tokio::task::yield_now().await;
    }
    tokio::time::sleep(3 * TIMEOUT).await;
    let counts = rig.proxy.stats().snapshot();
    assert_eq!((counts.open, counts.stalled, counts.stalled_closed), (1, 0, 0));
    socket.shutdown().await.unwrap();
    let mut got = Vec::new();
    timeout(PATIENCE, client.read_to_end(&mut got)).await.unwrap().unwrap();
    assert!(got == sent[..written]);
}

/// A Unix socket tells of room only when three quarters of it are free.
#[tokio::test]
async fn a_client_on_a_unix_socket_that_takes_little_is_not_reset() {
    const TIMEOUT: Duration = Duration::from_secs(3);
    let limits = Settings { client_buffer: 64 << 10, stalled_client_timeout: Some(TIMEOUT), ..settings() };
    let rig = Rig::new(limits);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("db.sock");
    rig.proxy.serve(Listener::bind(&Listen::Unix(path.clone())).unwrap());
    let (plugin, route) = plugin(1).await;
    rig.publish(vec![route.clone()]);
    let mut client = UnixStream::connect(&path).await.unwrap();
    let mut socket = accept(&plugin).await;
    let sent = pattern(64 << 20);
    let began = Instant::now();
    let slowly = async {
        let (mut piece, mut at) = ([0; 1 << 10], 0);
        while began.elapsed() < 3 * TIMEOUT {
            client.read_exact(&mut piece).await.unwrap();
            assert!(piece == sent[at..at + piece.len()]);
            at += piece.len();
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    };
    tokio::select! {
        () = slowly => {}
        _ = socket.write_all(&sent) => panic!("64 MB went somewhere"),
    }
    let counts = rig.proxy.stats().snapshot();
    assert_eq!((counts.open, counts.stalled, counts.stalled_closed), (1, 1, 0));
}

#[tokio::test]
async fn what_waits_for_a_client_outlives_its_destination() {
    let limits = Settings { stalled_client_timeout: Some(Duration::from_millis(700)), ..settings() };
    let rig = Rig::new(limits);
    let (plugin, route) = plugin(1).await;
    rig.publish(vec![route.clone()]);
    let mut client = rig.client().await;
    let mut socket = accept(&plugin).await;
    let sent = pattern(64 << 20);
    let written = write_until_stuck(&mut socket, &sent).await;
    stalled(&route, 1).await;
    drop(socket);
    let mut got = Vec::new();
    timeout(PATIENCE, client.read_to_end(&mut got)).await.unwrap().unwrap();
    assert!(got == sent[..written]);
}
