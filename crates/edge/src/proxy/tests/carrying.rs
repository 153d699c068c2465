//! What holds for every connection: who may begin one, how it ends, and what is counted.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use warren_model::denial::Layer;
use warren_model::policy::Application;

use super::{CANARY, GOOD, Limits, PRIVATE, QUICK, SERVER, Setup, drain, expect, send, soon};

#[tokio::test]
async fn a_name_that_is_not_allowed_is_reset() {
    let setup = Setup::transparent(Application::Tcp).await;
    setup.gate.revoke();
    let mut client = setup.dial().await;
    assert_eq!(drain(&mut client).await, (Vec::new(), true));
    let refused = setup.gate.refusal().await;
    assert_eq!((refused.layer, refused.name.as_deref(), refused.port), (Layer::Tcp, Some(GOOD), Some(setup.port())));
    assert_eq!(setup.gate.looked_up.load(Relaxed), 0, "a refused name was resolved");
    setup.nothing_went_out().await;
}

#[tokio::test]
async fn an_address_without_a_name_is_reset() {
    let setup = Setup::transparent(Application::Tcp).await;
    let elsewhere = TcpListener::bind((PRIVATE, 0)).await.unwrap();
    let address = elsewhere.local_addr().unwrap();
    let serving = tokio::spawn(super::transparent(setup.gate.clone(), elsewhere, QUICK));
    let mut client = tokio::net::TcpStream::connect(address).await.unwrap();
    assert!(drain(&mut client).await.1);
    let refused = setup.gate.refusal().await;
    assert_eq!((refused.name, refused.to), (None, Some(PRIVATE)));
    serving.abort();
}

#[tokio::test]
async fn a_member_has_only_so_many_connections() {
    let setup = Setup::transparent(Application::Tcp).await;
    setup.gate.places.store(1, Relaxed);
    let mut first = setup.dial().await;
    send(&mut first, "\0").await;
    setup.accept().await;
    let mut second = setup.dial().await;
    assert!(drain(&mut second).await.1);
    let refused = setup.gate.refusal().await;
    assert_eq!(refused.rule.unwrap().as_str(), "builtin:connection-limit");
}

#[tokio::test]
async fn an_address_that_may_not_be_dialled_is_refused_whoever_gave_it() {
    let setup = Setup::transparent(Application::Tcp).await;
    setup.gate.resolve(GOOD, &[PRIVATE]);
    let private = TcpListener::bind((PRIVATE, setup.port())).await.unwrap();
    let mut client = setup.dial().await;
    send(&mut client, "\0").await;
    assert!(drain(&mut client).await.1);
    assert_eq!(setup.gate.refusal().await.rule.unwrap().as_str(), "builtin:not-global");
    assert!(tokio::time::timeout(Duration::from_millis(100), private.accept()).await.is_err());
}

#[tokio::test]
async fn the_next_address_is_tried_when_one_does_not_answer() {
    let setup = Setup::transparent(Application::Tcp).await;
    // Nothing listens there: refused at once.
    setup.gate.resolve(GOOD, &["::1".parse().unwrap(), "127.0.0.9".parse().unwrap(), SERVER]);
    let mut client = setup.dial().await;
    send(&mut client, "\0").await;
    expect(&mut setup.accept().await, b"\0").await;
}

#[tokio::test]
async fn every_connection_asks_anew_where_the_name_leads() {
    let setup = Setup::transparent(Application::Tcp).await;
    let mut before = setup.dial().await;
    send(&mut before, "\0").await;
    let mut server = setup.accept().await;
    setup.gate.resolve(GOOD, &[CANARY]);
    let mut after = setup.dial().await;
    send(&mut after, "\0").await;
    soon(setup.canary.accept()).await.unwrap();
    send(&mut before, "\x01").await;
    expect(&mut server, b"\0\x01").await;
}

#[tokio::test]
async fn a_server_that_cannot_be_reached_is_no_refusal() {
    let mut setup = Setup::transparent(Application::Tcp).await;
    setup.server = TcpListener::bind("127.0.0.2:0").await.unwrap();
    let mut client = setup.dial().await;
    send(&mut client, "\0").await;
    assert!(drain(&mut client).await.1);
    assert!(setup.gate.refusals().is_empty());
}

#[tokio::test]
async fn revoking_cuts_both_ends_at_once() {
    let setup = Setup::transparent(Application::Tcp).await;
    let mut client = setup.dial().await;
    send(&mut client, "\0").await;
    let mut server = setup.accept().await;
    expect(&mut server, b"\0").await;
    // Neither end reads or writes: nothing but the revocation ends it.
    let begun = Instant::now();
    setup.gate.revoke();
    assert!(drain(&mut server).await.1);
    assert!(drain(&mut client).await.1);
    // Otherwise they last until they count as idle.
    assert!(begun.elapsed() < QUICK.idle / 3, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn revoking_cuts_a_connection_that_is_full() {
    let setup = Setup::transparent(Application::Tcp).await;
    let mut client = setup.dial().await;
    send(&mut client, "\0").await;
    let mut server = setup.accept().await;
    let pushing = tokio::spawn(async move { while server.write_all(&[1; 65536]).await.is_ok() {} });
    tokio::time::sleep(Duration::from_millis(200)).await;
    setup.gate.revoke();
    soon(pushing).await.unwrap();
}

#[tokio::test]
async fn a_half_closed_connection_goes_on_the_other_way() {
    let setup = Setup::transparent(Application::Tcp).await;
    let mut client = setup.dial().await;
    send(&mut client, "\0question").await;
    client.shutdown().await.unwrap();
    let mut server = setup.accept().await;
    assert_eq!(drain(&mut server).await, (b"\0question".to_vec(), false));
    send(&mut server, "answer").await;
    drop(server);
    assert_eq!(drain(&mut client).await, (b"answer".to_vec(), false));
}

#[tokio::test]
async fn a_reset_is_passed_on() {
    for from_server in [true, false] {
        let setup = Setup::transparent(Application::Tcp).await;
        let mut client = setup.dial().await;
        send(&mut client, "\0").await;
        let mut server = setup.accept().await;
        expect(&mut server, b"\0").await;
        let (resets, mut other) = if from_server { (server, client) } else { (client, server) };
        resets.set_zero_linger().unwrap();
        drop(resets);
        assert!(drain(&mut other).await.1);
    }
}

#[tokio::test]
async fn a_connection_on_which_nothing_moves_ends() {
    let limits = Limits { idle: Duration::from_secs(3), ..QUICK };
    let setup = Setup::begin(Application::Tcp, limits, true).await;
    let mut client = setup.dial().await;
    send(&mut client, "\0").await;
    let mut server = setup.accept().await;
    // Slow is not idle.
    for _ in 0..8 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        send(&mut server, ".").await;
        expect(&mut client, b".").await;
    }
    assert!(drain(&mut client).await.1);
}

#[tokio::test]
async fn every_byte_arrives_and_is_counted() {
    const SIZE: usize = 20 << 20;
    let setup = Setup::transparent(Application::Tcp).await;
    let client = setup.dial().await;
    let pattern = |size: usize| (0..size).map(|at| (at * 7 + at / 251) as u8).collect::<Vec<u8>>();
    let (mut from_server, mut to_server) = client.into_split();
    let sending = tokio::spawn(async move {
        let mut bytes = pattern(SIZE);
        bytes[0] = 0;
        to_server.write_all(&bytes).await.unwrap();
    });
    let server = setup.accept().await;
    let (mut from_client, mut to_client) = server.into_split();
    let answering = tokio::spawn(async move {
        to_client.write_all(&pattern(SIZE / 2)).await.unwrap();
    });
    let (mut up, mut down) = (Vec::new(), Vec::new());
    let reads = async { tokio::join!(from_client.read_to_end(&mut up), from_server.read_to_end(&mut down)) };
    let (read_up, read_down) = tokio::time::timeout(Duration::from_secs(60), reads).await.unwrap();
    read_up.and(read_down).unwrap();
    sending.await.unwrap();
    answering.await.unwrap();
    let mut expected = pattern(SIZE);
    expected[0] = 0;
    assert!(up == expected && down == pattern(SIZE / 2));
    assert_eq!(setup.gate.carried(), (SIZE as u64, SIZE as u64 / 2));
}
