//! What takes minutes, with a clock that skips them.

#[path = "../tests/common/mod.rs"]
mod common;

use std::time::{Duration, SystemTime};

use common::{LAPTOP, SERVER4, World, answers, at_host, eventually};

use crate::transport::{REJECT_AFTER, REKEY_AFTER};
use crate::{Ended, Peer, PeerId, PrivateKey, Probe};

#[test]
fn new_keys_are_made_before_the_old_ones_are_too_old() {
    let world = World::new();
    let _router = world.network(1);
    let operator = world.join();
    answers(&world.laptop, SERVER4);
    for _ in 0..4 {
        let before = operator.gateway.status().handshakes;
        // Timestamps of handshakes are not skipped, and count in steps of 17 ms.
        std::thread::sleep(Duration::from_millis(40));
        for gateway in [&world.gateway, &operator.gateway] {
            gateway.shared().clock.skip(REKEY_AFTER);
        }
        answers(&world.laptop, SERVER4);
        // Only the one whose turn it is begins, or both, as each was sent something and heard nothing for two minutes.
        let made = || operator.gateway.status().handshakes > before;
        eventually("a new handshake", made);
        answers(&world.laptop, SERVER4);
    }
    assert_eq!(world.gateway.peer(PeerId(2)).unwrap().refused, 0);
}

#[test]
fn keys_that_are_too_old_open_nothing_and_are_forgotten() {
    let world = World::new();
    let _router = world.network(1);
    let key = PrivateKey::generate().unwrap();
    world.gateway.add_peer(&world.peer(2, key.public_key())).unwrap();
    let socket = world.laptop.enter(|| std::net::UdpSocket::bind("0.0.0.0:0").unwrap());
    socket.set_read_timeout(Some(common::SOON)).unwrap();
    for (number, late, taken) in [(1, 0, true), (2, REJECT_AFTER, false)] {
        let (probe, initiation) = Probe::begin(&key, &world.gateway.public_key(), number, SystemTime::now()).unwrap();
        socket.send_to(&initiation, at_host()).unwrap();
        let mut answer = [0; 100];
        let length = socket.recv(&mut answer).unwrap();
        assert_eq!(Probe::index(&answer[..length]), Some(number));
        let keepalive = probe.finish(&answer[..length]).unwrap();
        world.gateway.shared().clock.skip(late);
        let before = world.gateway.peer(PeerId(2)).unwrap().last_packet;
        std::thread::sleep(Duration::from_millis(50));
        socket.send_to(&keepalive, at_host()).unwrap();
        let is_taken = || {
            let after = world.gateway.peer(PeerId(2)).unwrap().last_packet;
            after.unwrap().duration_since(before.unwrap()).unwrap_or_default() > Duration::from_millis(20)
        };
        if taken {
            eventually("a packet", is_taken);
        } else {
            std::thread::sleep(Duration::from_millis(500));
            assert!(!is_taken());
        }
    }
    eventually("the end of the keys", || world.gateway.shared().indexes() == 0);
    assert_eq!(world.gateway.status().handshakes, 2);
}

#[test]
fn a_session_that_expires_later_than_its_keys_lives_until_then() {
    let world = World::new();
    let _router = world.network(1);
    let key = PrivateKey::generate().unwrap();
    let expires = Some(SystemTime::now() + Duration::from_secs(3600));
    world.gateway.add_peer(&Peer { expires, ..world.peer(2, key.public_key()) }).unwrap();
    let _operator = world.operator(&world.laptop, 2, key, at_host());
    answers(&world.laptop, SERVER4);
    world.gateway.shared().clock.skip(3_500_000);
    assert_eq!(world.gateway.peer(PeerId(2)).unwrap().ended, None);
    world.gateway.shared().clock.skip(100_000);
    world.gateway.shared().ring(0);
    let ended = || world.gateway.peer(PeerId(2)).unwrap().ended == Some(Ended::Expired);
    eventually("the end", ended);
    assert!(!world.laptop.attempt(&format!("ping -c 1 -W 1 {SERVER4}")).success);
    assert_eq!(world.gateway.shared().indexes(), 0);
}

#[test]
fn removed_peers_leave_nothing_behind_even_while_they_call() {
    let world = World::new();
    let _router = world.network(1);
    let socket = world.laptop.enter(|| std::net::UdpSocket::bind("0.0.0.0:0").unwrap());
    for round in 0..100 {
        let key = PrivateKey::generate().unwrap();
        world.gateway.add_peer(&world.peer(2, key.public_key())).unwrap();
        let to = world.gateway.public_key();
        let (_, initiation) = Probe::begin(&key, &to, round, SystemTime::now()).unwrap();
        socket.send_to(&initiation, at_host()).unwrap();
        std::thread::sleep(Duration::from_micros(u64::from(round) * 20));
        world.gateway.remove_peer(PeerId(2)).unwrap();
    }
    let shared = world.gateway.shared();
    eventually("the end of all indexes", || shared.indexes() == 0);
    assert!(shared.tables().by_key.is_empty());
}

#[test]
fn what_waits_in_vain_is_counted_exactly_and_lets_go_of_all_its_room() {
    let world = World::new();
    let router = world.network(1);
    let key = PrivateKey::generate().unwrap();
    // Nobody is there, so that everything waits for the handshake.
    let endpoint = Some((LAPTOP, 9).into());
    world.gateway.add_peer(&Peer { endpoint, ..world.peer(2, key.public_key()) }).unwrap();
    let socket = router.enter(|| std::net::UdpSocket::bind("0.0.0.0:0").unwrap());
    // Small ones take the places of large ones.
    for length in [1000; 40].into_iter().chain([10; 40]) {
        socket.send_to(&[0; 1000][..length], "10.0.9.2:9").unwrap();
    }
    let shared = world.gateway.shared();
    let rest = || world.gateway.peer(PeerId(2)).unwrap().lost == 80 - 32;
    eventually("the end of all but the last", rest);
    let waiting = || shared.waiting.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(waiting(), 32 * (20 + 8 + 10));
    world.gateway.remove_peer(PeerId(2)).unwrap();
    assert_eq!(waiting(), 0);
}
