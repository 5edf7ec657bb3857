//! The data channel to the service: opened, closed, and resumed.

use http::StatusCode;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use super::*;
use crate::aws::api::Resumption;
use crate::tunnel::failure::Class;

#[tokio::test]
async fn the_first_opening_is_the_plugins_with_the_real_token() {
    let mut bench = Bench::new(GatewayMode::Hold).await;
    let _plugin = bench.plugin().await;
    let (_service, uri, headers, opening) = bench.service.accept().await;
    assert_eq!(bench.event().await, Event::ChannelOpened);
    assert!(uri.ends_with("cell-number=0"));
    assert_eq!(headers["host"], HOST);
    let authorization = headers["authorization"].to_str().unwrap();
    assert!(
        authorization.contains("Credential=AKIAREAL/") && authorization.contains("/us-east-1/ssmmessages/")
    );
    assert_eq!((&opening["TokenValue"], &opening["ClientId"]), (&TOKEN.into(), &"the-client".into()));
    let access = bench.gateway.access();
    assert_ne!(access.session.token.expose_secret(), TOKEN);
    assert_eq!(access.api_endpoint, "https://ssm.us-east-1.amazonaws.com");
}

#[tokio::test]
async fn a_close_is_survived_and_what_was_lost_is_sent_again() {
    let mut bench = Bench::new(GatewayMode::Hold).await;
    let (mut plugin, mut service) = bench.opened().await;
    plugin.send(input(0, b"before")).await.unwrap();
    assert_eq!(View::new(&binary(&mut service).await).unwrap().payload(), b"before");
    service.send(output(0, b"answer")).await.unwrap();
    assert_eq!(View::new(&binary(&mut plugin).await).unwrap().payload(), b"answer");

    let bye = CloseFrame { code: CloseCode::Normal, reason: "Bye".into() };
    service.close(Some(bye)).await.unwrap();
    assert_eq!(bench.event().await, Event::ChannelClosed { code: Some(1000), reason: "Bye".into() });
    plugin.send(input(1, b"meanwhile")).await.unwrap();

    let (mut service, uri, _, opening) = bench.service.accept().await;
    assert!(uri.ends_with("cell-number=1"), "the fresh stream URL");
    assert_eq!(opening["TokenValue"], "token-1");
    assert!(matches!(bench.event().await, Event::ChannelResumed { attempts: 1, .. }));
    for (number, payload) in [(0, &b"before"[..]), (1, b"meanwhile")] {
        let bytes = binary(&mut service).await;
        let view = View::new(&bytes).unwrap();
        assert_eq!((view.number(), view.payload()), (number, payload));
        service.send(Message::Binary(view.acknowledgement())).await.unwrap();
        let acknowledgement = binary(&mut plugin).await;
        assert_eq!(View::new(&acknowledgement).unwrap().acknowledged(), Some(number));
    }
}

/// A close is answered, as the protocol has it.
#[tokio::test]
async fn the_service_gets_an_answer_to_its_close() {
    let mut bench = Bench::new(GatewayMode::Hold).await;
    let (_plugin, mut service) = bench.opened().await;
    service.close(None).await.unwrap();
    assert!(matches!(service.next().await, Some(Ok(Message::Close(_)))));
}

#[tokio::test]
async fn failed_attempts_are_told_and_a_session_that_is_gone_is_an_end() {
    let mut bench = Bench::new(GatewayMode::Hold).await;
    let denied = Failure::new(Class::Access, "ExpiredTokenException");
    bench.api.resumptions.lock().unwrap().extend([Err(denied.clone()), Ok(Resumption::Gone)]);
    let (_plugin, service) = bench.opened().await;
    drop(service);
    assert_eq!(
        bench.event().await,
        Event::ChannelClosed { code: None, reason: "the connection was cut".into() }
    );
    assert_eq!(bench.event().await, Event::ResumeFailed(denied));
    assert!(matches!(bench.event().await, Event::SessionEnded { .. }));
}

#[tokio::test]
async fn the_next_attempt_is_told_after_each_failure() {
    let mut bench = Bench::new(GatewayMode::Hold).await;
    let denied = Failure::new(Class::Access, "ExpiredTokenException");
    bench.api.resumptions.lock().unwrap().extend([Err(denied.clone()), Err(denied), Ok(Resumption::Gone)]);
    let (plugin, service) = bench.opened().await;
    // Closed as soon as it was open: not even the first attempt is made at once.
    drop(service);
    let mut told = Vec::new();
    loop {
        match bench.events.recv().await.unwrap() {
            Event::RetryIn(delay) => told.push(delay.as_millis()),
            Event::SessionEnded { .. } => break,
            _ => (),
        }
    }
    let [first, second, third] = told[..] else { panic!("{told:?}") };
    assert!(
        (100..=200).contains(&first) && (200..=400).contains(&second) && (400..=800).contains(&third),
        "{told:?}"
    );
    drop(plugin);
}

/// A connection that brings nothing and is closed at once is followed by a pause, however politely it is closed.
#[tokio::test]
async fn a_service_that_closes_at_once_is_not_asked_without_pause() {
    for politely in [false, true] {
        let mut bench = Bench::new(GatewayMode::Hold).await;
        let (_plugin, mut service) = bench.opened().await;
        let closed = std::time::Instant::now();
        for at_least in [100, 300] {
            if politely {
                let bye = CloseFrame { code: CloseCode::Normal, reason: "Bye".into() };
                service.close(Some(bye)).await.unwrap();
            }
            drop(service);
            (service, ..) = bench.service.accept().await;
            // Half of 200 ms, and half of 400 ms.
            assert!(closed.elapsed() >= Duration::from_millis(at_least), "{politely} {at_least}");
        }
    }
}

/// Something on the way kills each data channel after a second.
#[tokio::test]
async fn data_channels_that_are_killed_young_are_soon_opened_with_pauses() {
    let mut bench = Bench::new(GatewayMode::Hold).await;
    let (mut plugin, mut service) = bench.opened().await;
    let mut paused = Vec::new();
    for number in 0..7 {
        service.send(output(number, b"something")).await.unwrap();
        binary(&mut plugin).await;
        tokio::time::sleep(Duration::from_millis(1050)).await;
        let closed = std::time::Instant::now();
        drop(service);
        (service, ..) = bench.service.accept().await;
        paused.push(closed.elapsed() >= Duration::from_millis(100));
        assert!(matches!(bench.event().await, Event::ChannelClosed { .. }));
        assert!(matches!(bench.event().await, Event::ChannelResumed { .. }));
    }
    // Half of 200 ms, and half of 400.
    assert_eq!(paused[5..], [true, true]);
    assert!(paused[..5].contains(&false), "the first ones follow at once");
}

#[tokio::test]
async fn a_refused_first_opening_is_resumed() {
    let mut bench = Bench::new(GatewayMode::Hold).await;
    let _plugin = bench.plugin().await;
    bench.service.refuse(StatusCode::FORBIDDEN).await;
    let Event::ResumeFailed(failure) = bench.event().await else { panic!("no failure") };
    assert_eq!(failure.class, Class::Access);
    let (_service, _, _, opening) = bench.service.accept().await;
    assert_eq!(opening["TokenValue"], "token-1");
    assert_eq!(bench.event().await, Event::ChannelOpened);
}
