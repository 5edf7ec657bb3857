//! Ends that say nothing any more, and plugins that hold what they should pass on.

use super::*;

/// Neither end answers a ping; time is turned by hand.
#[tokio::test]
async fn silent_ends_are_noticed() {
    let mut bench = Bench::new(GatewayMode::Hold).await;
    let (mut plugin, mut service) = bench.opened().await;
    establish(&mut plugin, &mut service).await;
    tokio::time::pause();
    let began = tokio::time::Instant::now();
    assert!(matches!(bench.event().await, Event::PluginHung { .. }));
    assert!((15..18).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    let event = bench.event().await;
    assert_eq!(event, Event::Interrupted(Interruption::Unanswered));
    assert!(matches!(event, Event::Interrupted(why) if why.to_string() == "no answer to a ping for 10 s"));
    assert!((25..28).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
}

/// The plugin is stuck with a message that a client does not take: it owes an acknowledgement.
#[tokio::test]
async fn a_plugin_whose_client_does_not_read_is_not_hung() {
    let mut bench = Bench::new(GatewayMode::Hold).await;
    let (mut plugin, mut service) = bench.opened().await;
    establish(&mut plugin, &mut service).await;
    service.send(output(1, b"for the client")).await.unwrap();
    binary(&mut plugin).await;
    tokio::time::pause();
    assert_eq!(
        bench.event().await,
        Event::Interrupted(Interruption::Unanswered),
        "the silent service is noticed after 25 s"
    );
}

/// The plugin answers every ping, but lets a client's bytes lie.
#[tokio::test]
async fn a_plugin_that_lets_bytes_lie_is_noticed() {
    let mut bench = Bench::new(GatewayMode::Hold).await;
    let (plugin, service) = bench.opened().await;
    let answering = tokio::spawn(async {
        let (mut plugin, mut service) = (plugin, service);
        loop {
            tokio::select! {
                _ = plugin.next() => (),
                _ = service.next() => (),
            }
        }
    });
    bench.ledger.write(bench.ledger.open(), b"hello");
    tokio::time::pause();
    let Event::PluginHung { reason } = bench.event().await else { panic!("not hung") };
    assert_eq!(reason, "it has held 5 bytes of clients' data for 15 s");
    answering.abort();
}
