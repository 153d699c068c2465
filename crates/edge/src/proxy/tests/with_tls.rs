//! TLS through the transparent proxy.

use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use warren_model::denial::Layer;
use warren_model::policy::Application;

use super::hello::{ECH, KEY_SHARE, RETRY, hello, message, outer, real, records, server_name};
use super::{ACCESS_DENIED, GOOD, OTHER, QUICK, Setup, drain, expect, head, send, soon};

/// A server with a certificate for [`GOOD`], and a client that trusts it.
fn tls() -> (TlsAcceptor, TlsConnector) {
    let certified = rcgen::generate_simple_self_signed([GOOD.to_owned()]).unwrap();
    let certificate: CertificateDer<'static> = certified.cert.der().clone();
    let key = PrivateKeyDer::Pkcs8(certified.signing_key.serialize_der().into());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate).unwrap();
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    (TlsAcceptor::from(Arc::new(server)), TlsConnector::from(Arc::new(client)))
}

/// What the server gets of `bytes`, sent in pieces.
async fn passes(setup: &Setup, pieces: &[&[u8]]) {
    let mut client = setup.dial().await;
    for piece in pieces {
        send(&mut client, piece).await;
        if pieces.len() < 10 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    let mut server = setup.accept().await;
    expect_bytes(&mut server, &pieces.concat()).await;
    assert!(setup.gate.refusals().is_empty(), "{:?}", setup.gate.refusals());
}

async fn expect_bytes(stream: &mut TcpStream, expected: &[u8]) {
    let mut bytes = vec![0; expected.len()];
    soon(stream.read_exact(&mut bytes)).await.unwrap();
    assert!(bytes == expected);
}

/// What the client is told, and which name the refusal is about, when it sends `bytes` and nothing goes out.
async fn refused(setup: &Setup, bytes: &[u8]) -> (Vec<u8>, bool, String, Layer) {
    let mut client = setup.dial().await;
    send(&mut client, bytes).await;
    let (told, reset) = drain(&mut client).await;
    setup.nothing_went_out().await;
    let refusal = setup.gate.refusal().await;
    (told, reset, refusal.name.unwrap(), refusal.layer)
}

#[tokio::test]
async fn a_session_for_the_name_is_end_to_end() {
    let setup = Setup::transparent(Application::Tls).await;
    let (acceptor, connector) = tls();
    let client = async {
        let mut stream = connector.connect(ServerName::try_from(GOOD).unwrap(), setup.dial().await).await.unwrap();
        stream.write_all(b"question").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        answer
    };
    let server = async {
        let mut stream = acceptor.accept(setup.accept().await).await.unwrap();
        let mut question = Vec::new();
        stream.read_to_end(&mut question).await.unwrap();
        stream.write_all(&[&question[..], b" answered"].concat()).await.unwrap();
        stream.shutdown().await.unwrap();
    };
    let (answer, ()) = soon(async { tokio::join!(client, server) }).await;
    assert_eq!(answer, b"question answered");
    let (sent, received) = setup.gate.carried();
    assert!(sent > 200 && received > 500, "{sent} and {received} bytes were counted");
}

#[tokio::test]
async fn a_hello_in_one_byte_segments_passes() {
    let setup = Setup::transparent(Application::Tls).await;
    let bytes = real(GOOD);
    passes(&setup, &bytes.iter().map(std::slice::from_ref).collect::<Vec<_>>()).await;
}

#[tokio::test]
async fn a_hello_with_a_post_quantum_key_share_passes_in_two_packets() {
    let setup = Setup::transparent(Application::Tls).await;
    // X25519MLKEM768: 1,216 bytes of key.
    let bytes = hello(&[(KEY_SHARE, vec![7; 1216 + 6]), server_name(GOOD.as_bytes())]);
    passes(&setup, &[&bytes[..1000], &bytes[1000..]]).await;
}

#[tokio::test]
async fn a_hello_over_several_records_passes() {
    let setup = Setup::transparent(Application::Tls).await;
    passes(&setup, &[&records(&message(&[server_name(GOOD.as_bytes())]), 9)]).await;
}

#[tokio::test]
async fn grease_passes() {
    let setup = Setup::transparent(Application::Tls).await;
    passes(&setup, &[&hello(&[(0x0a0a, vec![]), server_name(GOOD.as_bytes()), outer(), (0xfafa, vec![0])])]).await;
}

#[tokio::test]
async fn another_server_name_is_refused_with_an_alert() {
    for application in [Application::Tls, Application::Tcp] {
        let setup = Setup::transparent(application).await;
        let (told, reset, name, layer) = refused(&setup, &real(OTHER)).await;
        assert_eq!((told.as_slice(), reset), (&ACCESS_DENIED[..], false));
        assert_eq!((name.as_str(), layer), (OTHER, Layer::Tls));
        let reason = &setup.gate.refusals()[0].2;
        assert!(reason.contains(GOOD) && reason.contains("no rule allows other.example"), "{reason}");
    }
}

#[tokio::test]
async fn a_hello_without_a_name_is_refused_where_tls_is_all_there_is() {
    let setup = Setup::transparent(Application::Tls).await;
    let (told, _, name, layer) = refused(&setup, &hello(&[(43, vec![2, 3, 4])])).await;
    assert_eq!((told.as_slice(), name.as_str(), layer), (&ACCESS_DENIED[..], GOOD, Layer::Tls));
    assert_eq!(setup.gate.refused.lock().unwrap()[0].rule.as_ref().unwrap().as_str(), "the-rule");
    let setup = Setup::transparent(Application::Tcp).await;
    passes(&setup, &[&hello(&[(43, vec![2, 3, 4])])]).await;
}

#[tokio::test]
async fn a_hello_with_two_names_is_told_that_it_has_two() {
    let (one, other) = (server_name(GOOD.as_bytes()), server_name(OTHER.as_bytes()));
    let listed = |name: &(u16, Vec<u8>)| name.1[2..].to_vec();
    let both = [listed(&one), listed(&other)].concat();
    let in_one_list = (0, [&(both.len() as u16).to_be_bytes()[..], &both].concat());
    for hello in [hello(&[one.clone(), other.clone()]), hello(&[one.clone(), one]), hello(&[in_one_list])] {
        let setup = Setup::transparent(Application::Tls).await;
        let (told, ..) = refused(&setup, &hello).await;
        assert_eq!(told, ACCESS_DENIED);
        let reason = setup.gate.refusal().await.reason;
        assert!(reason.ends_with("the ClientHello is malformed: it has more than one server name"), "{reason}");
    }
}

#[tokio::test]
async fn a_hello_that_hides_its_name_is_refused() {
    let hidden = [
        // The real thing goes by the name of whoever is in front.
        hello(&[server_name(b"cloudflare-ech.com"), outer()]),
        hello(&[outer()]),
        hello(&[server_name(GOOD.as_bytes()), (ECH, vec![1])]),
        hello(&[server_name(GOOD.as_bytes()), (0xffce, vec![1; 60])]),
    ];
    for application in [Application::Tls, Application::Tcp] {
        for hidden in &hidden {
            let setup = Setup::transparent(application).await;
            let (told, _, _, layer) = refused(&setup, hidden).await;
            assert_eq!((told.as_slice(), layer), (&ACCESS_DENIED[..], Layer::Tls));
        }
    }
}

#[tokio::test]
async fn a_stalled_hello_times_out() {
    for application in [Application::Tls, Application::Tcp] {
        let setup = Setup::transparent(application).await;
        let (told, _, name, layer) = refused(&setup, &real(GOOD)[..60]).await;
        assert_eq!((told.as_slice(), name.as_str(), layer), (&ACCESS_DENIED[..], GOOD, Layer::Tls));
        assert!(setup.gate.refusals()[0].2.contains("in time"));
    }
}

#[tokio::test]
async fn a_hello_that_drips_in_does_not_get_more_time() {
    let setup = Setup::transparent(Application::Tls).await;
    let mut client = setup.dial().await;
    let started = std::time::Instant::now();
    for byte in real(GOOD) {
        if client.write_all(&[byte]).await.is_err() || started.elapsed() > QUICK.hello * 3 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(started.elapsed() < QUICK.hello * 3, "the hello was still being read");
    setup.nothing_went_out().await;
}

#[tokio::test]
async fn what_is_no_tls_is_refused_where_tls_is_all_there_is() {
    let setup = Setup::transparent(Application::Tls).await;
    let (told, reset, _, layer) = refused(&setup, b"SSH-2.0-OpenSSH_9.2p1\r\n").await;
    assert_eq!((told, reset, layer), (Vec::new(), true, Layer::Tls));

    let setup = Setup::transparent(Application::Tls).await;
    let mut client = setup.dial().await;
    send(&mut client, "GET / HTTP/1.1\r\nHost: good.example\r\n\r\n").await;
    let said = head(&mut client).await;
    assert!(said.starts_with("HTTP/1.1 403 Forbidden\r\ncontent-type: application/problem+json\r\n"), "{said}");
    setup.nothing_went_out().await;
}

#[tokio::test]
async fn nothing_follows_a_hello_until_the_server_answered() {
    let setup = Setup::transparent(Application::Tls).await;
    let first = hello(&[server_name(GOOD.as_bytes()), (42, vec![])]);
    let early = [23, 3, 3, 0, 3, 1, 2, 3];
    let mut client = setup.dial().await;
    send(&mut client, [&first[..], &early].concat()).await;
    let mut server = setup.accept().await;
    expect_bytes(&mut server, &first).await;
    let waiting = tokio::time::timeout(Duration::from_millis(100), server.read_u8()).await;
    assert!(waiting.is_err(), "{waiting:?}");
    send(&mut server, answer([1; 32])).await;
    expect_bytes(&mut server, &early).await;
}

/// The beginning of a ServerHello with this random.
fn answer(random: [u8; 32]) -> Vec<u8> {
    [&[22, 3, 3, 0, 38, 2, 0, 0, 86, 3, 3][..], &random].concat()
}

#[tokio::test]
async fn a_second_hello_is_checked_like_the_first() {
    let first = hello(&[server_name(GOOD.as_bytes())]);
    let change = [20, 3, 3, 0, 1, 1];
    for (name, passes) in [(GOOD, true), (OTHER, false)] {
        let setup = Setup::transparent(Application::Tls).await;
        let second = [&change[..], &hello(&[server_name(name.as_bytes()), (44, vec![0, 1, 9])])].concat();
        let mut client = setup.dial().await;
        // Even where the client knows beforehand that it will be asked.
        send(&mut client, [&first[..], &second].concat()).await;
        let mut server = setup.accept().await;
        expect_bytes(&mut server, &first).await;
        send(&mut server, answer(RETRY)).await;
        if passes {
            expect_bytes(&mut server, &second).await;
            send(&mut client, b"more").await;
            expect(&mut server, b"more").await;
        } else {
            assert_eq!(drain(&mut server).await, (Vec::new(), true));
            let (told, _) = drain(&mut client).await;
            assert!(told.ends_with(&ACCESS_DENIED), "{told:?}");
            assert_eq!(setup.gate.refusal().await.name.unwrap(), OTHER);
        }
    }
}

#[tokio::test]
async fn who_connects_and_says_nothing_is_refused_nothing() {
    let setup = Setup::transparent(Application::Tls).await;
    let mut client = setup.dial().await;
    client.shutdown().await.unwrap();
    drain(&mut client).await;
    setup.nothing_went_out().await;
    assert!(setup.gate.refusals().is_empty());
}
