//! Messages that are missing, and an agent that has lost its own connection.

use super::*;
use crate::gateway::agent_clock::GONE_AFTER;
use crate::gateway::message::Header;

fn control(kind: &[u8]) -> Message {
    let header = Header { kind, created: 1, number: 0, flags: 0, payload_type: 0 };
    Message::Binary(header.with_payload(b""))
}

/// A plugin that acknowledges all that comes, and pings besides.
fn acknowledging(mut plugin: PluginSocket) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        while let Some(Ok(message)) = plugin.next().await {
            let Message::Binary(bytes) = message else { continue };
            let view = View::new(&bytes).unwrap();
            if view.kind() == message::Kind::Output {
                let _ = plugin.send(Message::Binary(view.acknowledgement())).await;
            }
        }
    })
}

/// The service answers pings, and what it says else is thrown away.
async fn answering(service: &mut ServiceSocket) {
    while service.next().await.is_some() {}
}

async fn next_event(bench: &mut Bench, service: &mut ServiceSocket) -> Event {
    tokio::select! {
        biased;
        event = bench.event() => event,
        () = answering(service) => unreachable!("the gateway does not close it"),
    }
}

#[tokio::test]
async fn missing_messages_interrupt_until_the_last_has_come() {
    let mut bench = Bench::new(GatewayMode::Hold).await;
    let (mut plugin, mut service) = bench.opened().await;
    establish(&mut plugin, &mut service).await;
    let plugin = acknowledging(plugin);
    // 1 to 3 are missing.
    for number in 4..10 {
        service.send(output(number, b"later")).await.unwrap();
    }
    let event = next_event(&mut bench, &mut service).await;
    let Event::Interrupted(interruption @ Interruption::Gap { missing, lasted }) = event else {
        panic!("{event:?}")
    };
    assert_eq!(interruption.to_string(), "3 messages are being repaired");
    assert!(missing.from_agent == 3 && lasted >= Duration::from_secs(2), "{event:?}");
    for number in 1..4 {
        service.send(output(number, b"repaired")).await.unwrap();
    }
    let resumed = loop {
        // Said every second while it changes.
        match next_event(&mut bench, &mut service).await {
            Event::Interrupted(Interruption::Gap { .. }) => {}
            event => break event,
        }
    };
    assert!(
        matches!(resumed, Event::ChannelResumed { attempts: 0, after } if after >= Duration::from_secs(2))
    );
    plugin.abort();
}

/// So many are repaired one at a time: there is no need to wait and see.
#[tokio::test]
async fn many_missing_messages_interrupt_at_once() {
    let mut bench = Bench::new(GatewayMode::Hold).await;
    let (mut plugin, mut service) = bench.opened().await;
    establish(&mut plugin, &mut service).await;
    let plugin = acknowledging(plugin);
    service.send(output(813, b"later")).await.unwrap();
    let event = next_event(&mut bench, &mut service).await;
    let Event::Interrupted(interruption @ Interruption::Gap { lasted, .. }) = event else {
        panic!("{event:?}")
    };
    assert_eq!(interruption.to_string(), "812 messages are being repaired, about 81 s");
    assert!(lasted < Duration::from_secs(2), "{lasted:?}");
    plugin.abort();
}

/// The plugin's own messages are kept here: what the agent has not got goes out again in a round trip.
#[tokio::test]
async fn what_the_agent_has_missed_is_sent_again_without_waiting() {
    let mut bench = Bench::new(GatewayMode::Hold).await;
    let (mut plugin, mut service) = bench.opened().await;
    establish(&mut plugin, &mut service).await;
    for number in 0..50 {
        plugin.send(input(number, b"data")).await.unwrap();
    }
    let mut sent = Vec::new();
    while sent.len() < 50 {
        sent.push(binary(&mut service).await);
    }
    // Only the last few have arrived.
    for bytes in &sent[45..] {
        service.send(Message::Binary(View::new(bytes).unwrap().acknowledgement())).await.unwrap();
    }
    let mut missed: Vec<i64> = (0..45).collect();
    while !missed.is_empty() {
        let bytes = binary(&mut service).await;
        let view = View::new(&bytes).unwrap();
        missed.retain(|number| *number != view.number());
        service.send(Message::Binary(view.acknowledgement())).await.unwrap();
    }
    assert_eq!(bench.event_so_far(), None, "no interruption");
}

#[tokio::test]
async fn an_agent_that_is_said_to_be_away_interrupts_at_once_until_it_is_back() {
    let mut bench = Bench::new(GatewayMode::Hold).await;
    let (mut plugin, mut service) = bench.opened().await;
    establish(&mut plugin, &mut service).await;
    for back in [control(b"start_publication"), output(1, b"data")] {
        service.send(control(b"pause_publication")).await.unwrap();
        assert_eq!(bench.event().await, Event::Interrupted(Interruption::AgentAway));
        service.send(back).await.unwrap();
        assert!(matches!(bench.event().await, Event::ChannelResumed { attempts: 0, .. }));
    }
}

/// It tries to come back for some seconds, and never again.
#[tokio::test]
async fn an_agent_that_stays_away_is_given_up() {
    let mut bench = Bench::new(GatewayMode::Hold).await;
    let (mut plugin, mut service) = bench.opened().await;
    establish(&mut plugin, &mut service).await;
    let plugin = acknowledging(plugin);
    service.send(control(b"pause_publication")).await.unwrap();
    assert_eq!(next_event(&mut bench, &mut service).await, Event::Interrupted(Interruption::AgentAway));
    let service = tokio::spawn(async move { answering(&mut service).await });
    tokio::time::pause();
    let began = tokio::time::Instant::now();
    let reason = loop {
        match bench.event().await {
            Event::SessionEnded { reason, declared: false } => break reason,
            Event::PluginHung { .. } => panic!("the plugin answers"),
            _ => {}
        }
    };
    assert!(reason.starts_with("the agent has been without a connection"), "{reason}");
    let took = began.elapsed();
    assert!(
        (GONE_AFTER - Duration::from_secs(1)..GONE_AFTER + Duration::from_secs(2)).contains(&took),
        "{took:?}"
    );
    plugin.abort();
    service.abort();
}

/// The service accepts a data channel whether there is an agent or not.
#[tokio::test]
async fn a_session_is_resumed_when_its_agent_is_heard_of() {
    let mut bench = Bench::new(GatewayMode::Hold).await;
    let (mut plugin, mut service) = bench.opened().await;
    establish(&mut plugin, &mut service).await;
    plugin.send(input(0, b"request")).await.unwrap();
    binary(&mut service).await;
    drop(service);
    assert!(matches!(bench.event().await, Event::ChannelClosed { .. }));
    let (mut service, ..) = bench.service.accept().await;
    let bytes = binary(&mut service).await;
    assert_eq!(bench.event_so_far(), None, "nothing shows that the agent is there");
    service.send(Message::Binary(View::new(&bytes).unwrap().acknowledgement())).await.unwrap();
    assert!(matches!(bench.event().await, Event::ChannelResumed { attempts: 1, .. }));
}
