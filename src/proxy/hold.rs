//! A client that comes while there is no session waits for one, instead of being refused.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::Proxy;
use super::client::Client;
use super::route::{Link, choose};

/// After every published plugin has refused a connection: how long until they are tried again, if the driver has not
/// published others by then. It usually has: a plugin that refuses is dead.
const RETRY: Duration = Duration::from_millis(250);

/// Why a client was not connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It went away.
    Gone,
    /// It has waited for as long as `hold` says.
    TimedOut,
    /// As many wait as may.
    TooMany,
    /// The tunnel stops.
    Stopping,
}

/// What became of the clients held since the last session was lost, for one line in the log.
#[derive(Debug, Default)]
pub(super) struct Outage {
    released: u64,
    timed_out: u64,
    longest: Duration,
}

/// Connects a client to a plugin, waiting for a session if need be. `has_sent`: bytes of it have been read already.
pub(super) async fn connect(proxy: &Arc<Proxy>, client: &Client, has_sent: bool) -> Result<Link, Refusal> {
    let came = Instant::now();
    let hold = proxy.settings.borrow().hold;
    let mut held = None;
    let search = async {
        let mut routes = proxy.routes.clone();
        let mut refused = Vec::new();
        loop {
            let choice = choose(&routes.borrow_and_update(), &refused);
            if let Some(route) = choice {
                let attempt = tokio::select! {
                    biased;
                    () = route.ended.cancelled() => continue,
                    attempt = route.connect() => attempt,
                };
                match attempt {
                    Ok(link) => return Ok(link),
                    Err(error) => {
                        tracing::debug!(
                            tunnel = proxy.tunnel,
                            session = route.session_id,
                            reason = %error,
                            "the plugin refused a connection"
                        );
                        refused.push(route.generation);
                        continue;
                    }
                }
            }
            if held.is_none() {
                let max = proxy.settings.borrow().max_held;
                held = Some(proxy.stats.hold(max).ok_or(Refusal::TooMany)?);
                begin_outage(proxy);
            }
            tokio::select! {
                // Only who has to wait is sent away: one that came a moment before the end and has a session to go to
                // is an open connection like the others.
                () = proxy.stopping.cancelled() => return Err(Refusal::Stopping),
                changed = routes.changed() => {
                    if changed.is_err() {
                        // Whoever published the routes has gone: there will be none.
                        std::future::pending::<()>().await;
                    }
                }
                () = tokio::time::sleep(RETRY), if !refused.is_empty() => {}
            }
            refused.clear();
        }
    };
    let result = tokio::select! {
        biased;
        () = proxy.deadline.cancelled() => Err(Refusal::Stopping),
        result = search => result,
        () = client.gone(has_sent) => Err(Refusal::Gone),
        () = tokio::time::sleep(hold) => Err(Refusal::TimedOut),
    };

    let waited = came.elapsed();
    match result {
        Ok(_) if held.is_some() => proxy.stats.released(waited),
        Err(Refusal::TimedOut) => proxy.stats.count(|counts| counts.timed_out += 1),
        Err(Refusal::Gone) => proxy.stats.count(|counts| counts.gone += 1),
        Err(Refusal::Stopping) => proxy.stats.count(|counts| counts.stopped += 1),
        Ok(_) | Err(Refusal::TooMany) => {}
    }
    if held.is_some()
        && let Some(outage) = proxy.outage.lock().unwrap_or_else(PoisonError::into_inner).as_mut()
    {
        match result {
            Ok(_) => {
                outage.released += 1;
                outage.longest = outage.longest.max(waited);
            }
            Err(Refusal::TimedOut) => outage.timed_out += 1,
            Err(_) => {}
        }
    }
    // After the outage's figures: when nobody is held any more they are read.
    drop(held);
    result
}

/// The first client that is held begins an outage; a task writes down what became of all of them when there is a
/// session again and nobody waits any more.
fn begin_outage(proxy: &Arc<Proxy>) {
    let began = {
        let mut outage = proxy.outage.lock().unwrap_or_else(PoisonError::into_inner);
        let began = outage.is_none();
        outage.get_or_insert_default();
        began
    };
    if began {
        tracing::info!(
            tunnel = proxy.tunnel,
            event = "holding",
            "no session takes connections: clients are held"
        );
        let proxy = Arc::clone(proxy);
        let tasks = proxy.tasks.clone();
        tasks.spawn(async move {
            let mut routes = proxy.routes.clone();
            let mut counts = proxy.stats.subscribe();
            tokio::select! {
                () = proxy.stopping.cancelled() => {}
                () = async {
                    // An error means that nothing changes any more: what there is to say can be said.
                    let _ = routes.wait_for(|routes| !routes.is_empty()).await;
                    let _ = counts.wait_for(|counts| counts.held == 0).await;
                } => {}
            }
            let outage = proxy.outage.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(outage) = outage {
                outage.log(&proxy.tunnel);
            }
        });
    }
}

impl Outage {
    fn log(&self, tunnel: &str) {
        if self.released > 0 {
            tracing::info!(
                tunnel,
                event = "held_released",
                clients = self.released,
                duration_ms = self.longest.as_millis() as u64,
                "held clients released: {}, the longest waited {:.1} s",
                self.released,
                self.longest.as_secs_f64()
            );
        }
        if self.timed_out > 0 {
            tracing::warn!(
                tunnel,
                event = "held_timed_out",
                clients = self.timed_out,
                "held clients timed out: {}",
                self.timed_out
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::proxy::Settings;
    use crate::proxy::rig::{Rig, accept, dead_port, echo, end, eof, plugin, route, settings};

    #[tokio::test]
    async fn clients_wait_for_a_session_and_go_on() {
        let rig = Rig::new(settings());
        let mut clients = Vec::new();
        for n in 0..5 {
            let mut client = rig.client().await;
            // Some speak first, some do not.
            if n % 2 == 0 {
                client.write_all(&[n]).await.unwrap();
            }
            clients.push(client);
        }
        rig.wait(|counts| counts.held == 5).await;
        rig.publish(vec![echo(1).await]);
        for (n, client) in clients.iter_mut().enumerate() {
            if n % 2 == 1 {
                client.write_all(&[n as u8]).await.unwrap();
            }
            assert_eq!(client.read_u8().await.unwrap(), n as u8);
        }
        let counts = rig.proxy.stats().snapshot();
        assert_eq!((counts.held, counts.released, counts.timed_out, counts.gone), (0, 5, 0, 0));
        assert!(counts.longest_hold > Duration::ZERO);
        rig.outage_is_over().await;
    }

    #[tokio::test]
    async fn a_client_is_closed_when_it_has_waited_long_enough() {
        let rig = Rig::new(Settings { hold: Duration::from_millis(200), ..settings() });
        let began = Instant::now();
        let mut client = rig.client().await;
        assert_eq!(end(&mut client).await, (Vec::new(), false), "it looks as if there were an empty answer");
        assert!(began.elapsed() >= Duration::from_millis(200));
        let counts = rig.wait(|counts| counts.open == 0).await;
        assert_eq!((counts.timed_out, counts.gone, counts.released), (1, 0, 0));
        rig.publish(vec![echo(1).await]);
        rig.outage_is_over().await;
    }

    #[tokio::test]
    async fn a_client_that_leaves_while_it_is_held_never_reaches_the_plugin() {
        let rig = Rig::new(settings());
        let leaves = rig.client().await;
        rig.wait(|counts| counts.held == 1).await;
        let mut stays = rig.client().await;
        stays.write_all(b"request").await.unwrap();
        stays.shutdown().await.unwrap();
        rig.wait(|counts| counts.held == 2).await;
        drop(leaves);
        rig.wait(|counts| counts.gone == 1 && counts.held == 1).await;

        let (plugin, route) = plugin(1).await;
        rig.publish(vec![route.clone()]);
        let mut socket = accept(&plugin).await;
        let mut request = [0; 7];
        socket.read_exact(&mut request).await.unwrap();
        assert_eq!(&request, b"request");
        socket.write_all(b"answer").await.unwrap();
        drop(socket);
        assert_eq!(eof(&mut stays).await, b"answer");
        assert!(!route.ledger.knows(5), "only one connection was made");
    }

    #[tokio::test]
    async fn beyond_max_held_a_client_is_closed_at_once() {
        let rig = Rig::new(Settings { max_held: 1, ..settings() });
        let mut first = rig.client().await;
        rig.wait(|counts| counts.held == 1).await;
        let mut second = rig.client().await;
        assert_eq!(end(&mut second).await, (Vec::new(), false));
        assert_eq!(rig.proxy.stats().snapshot().over_limit, 1);
        rig.publish(vec![echo(1).await]);
        first.write_all(b"x").await.unwrap();
        assert_eq!(first.read_u8().await.unwrap(), b'x');
    }

    #[tokio::test]
    async fn a_dead_plugin_is_passed_over() {
        let rig = Rig::new(settings());
        let (_dead, address) = dead_port();
        let dead = route(1, address);
        rig.publish(vec![dead.clone(), echo(2).await]);
        let mut client = rig.client().await;
        client.write_all(b"x").await.unwrap();
        assert_eq!(client.read_u8().await.unwrap(), b'x');

        // With nothing but the dead one the client is held, until there is another.
        rig.publish(vec![dead.clone()]);
        let mut client = rig.client().await;
        rig.wait(|counts| counts.held == 1).await;
        rig.publish(vec![dead.clone(), echo(3).await]);
        client.write_all(b"y").await.unwrap();
        assert_eq!(client.read_u8().await.unwrap(), b'y');
        assert!(!dead.ledger.knows(3) && *dead.open.borrow() == 0);
    }

    /// Nothing was published in between: the plugin refused for a moment only.
    #[tokio::test]
    async fn a_plugin_that_refused_is_tried_again() {
        let rig = Rig::new(settings());
        let (socket, address) = dead_port();
        rig.publish(vec![route(1, address)]);
        let _client = rig.client().await;
        rig.wait(|counts| counts.held == 1).await;
        let plugin = socket.listen(16).unwrap();
        accept(&plugin).await;
    }

    #[tokio::test]
    async fn new_connections_go_where_the_fewest_are() {
        let rig = Rig::new(settings());
        let routes = vec![echo(1).await, echo(2).await, echo(3).await];
        rig.publish(routes.clone());
        let mut clients = Vec::new();
        for _ in 0..9 {
            let mut client = rig.client().await;
            client.write_all(b"x").await.unwrap();
            client.read_u8().await.unwrap();
            clients.push(client);
        }
        assert!(routes.iter().all(|route| *route.open.borrow() == 3));
    }

    /// However many clients there were, an outage has a line at its beginning and one for each thing that became of
    /// them.
    #[tokio::test]
    async fn an_outage_is_told_once() {
        // With a single subscriber, tracing asks only the thread that comes to a line first whether anybody wants it;
        // that may be another test's, which has none. With two it asks both subscribers.
        let _another = tracing::Dispatch::new(tracing_subscriber::Registry::default());
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber =
            tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        let _default = tracing::subscriber::set_default(subscriber);

        let rig = Rig::new(Settings { hold: Duration::from_millis(200), ..settings() });
        let mut impatient = Vec::new();
        for _ in 0..4 {
            impatient.push(rig.client().await);
        }
        rig.wait(|counts| counts.held == 4).await;
        rig.wait(|counts| counts.timed_out == 4 && counts.held == 0).await;
        rig.settings.send_modify(|settings| settings.hold = crate::proxy::rig::PATIENCE);
        let mut patient = Vec::new();
        for _ in 0..3 {
            patient.push(rig.client().await);
        }
        rig.wait(|counts| counts.held == 3).await;
        rig.publish(vec![echo(1).await]);
        rig.outage_is_over().await;

        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        let times = |what: &str| text.lines().filter(|line| line.contains(what)).count();
        assert_eq!(times("clients are held"), 1, "{text}");
        assert_eq!(times("held clients released: 3, the longest waited "), 1, "{text}");
        assert_eq!(times("held clients timed out: 4"), 1, "{text}");
        assert_eq!((times("released"), times("timed out")), (1, 1), "{text}");
    }

    #[derive(Clone, Default)]
    struct Lines(Arc<std::sync::Mutex<Vec<u8>>>);

    impl std::io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
}
