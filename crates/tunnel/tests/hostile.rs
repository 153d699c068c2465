//! What comes from people who are no operators.

mod common;

use std::time::Duration;

use common::{Relay, SERVER4, World, answers, at_host, eventually, received};
use warren_tunnel::{Limits, PeerId, PrivateKey};

const INITIATION: usize = 148;

#[test]
fn recorded_packets_and_initiations_do_not_pass_again() {
    let world = World::new();
    let router = world.network(1);
    let (relay, operator) = world.join_behind();
    (0..3).for_each(|_| answers(&world.laptop, SERVER4));
    std::thread::sleep(Duration::from_millis(100));
    // It says nothing more of its own.
    drop(operator);
    let recorded = relay.carried.lock().unwrap().clone();
    let initiations = recorded.iter().filter(|datagram| datagram.len() == INITIATION).count();
    let data = recorded.iter().filter(|datagram| datagram[0] == 4).count();
    assert!(initiations >= 1 && data >= 2, "{initiations} {data}");
    let (before, status) = (received(&router, "wg0"), world.gateway.peer(PeerId(2)).unwrap());
    // From elsewhere, so that it would show in the endpoint, too.
    relay.move_on(&world.laptop);
    recorded.iter().for_each(|datagram| relay.say(datagram));
    let refused = || world.gateway.peer(PeerId(2)).unwrap().refused - status.refused == (initiations + data) as u64;
    eventually("refusal of all of them", refused);
    assert_eq!(received(&router, "wg0"), before);
    let after = world.gateway.peer(PeerId(2)).unwrap();
    assert_eq!((after.received, after.endpoint), (status.received, status.endpoint));
    assert_eq!(world.gateway.status().handshakes, 1);
}

#[test]
fn changed_packets_do_not_pass_whatever_was_changed() {
    let world = World::new();
    let router = world.network(1);
    let (relay, operator) = world.join_behind();
    answers(&world.laptop, SERVER4);
    drop(operator);
    let recorded = relay.carried.lock().unwrap().clone();
    let before = received(&router, "wg0");
    for datagram in &recorded {
        for place in 0..datagram.len() {
            let mut changed = datagram.clone();
            changed[place] ^= 0x81;
            relay.say(&changed);
            relay.say(&datagram[..place]);
        }
        // The worker has 20 ms for each, which is as often as anybody would be answered.
        std::thread::sleep(Duration::from_millis(30));
    }
    assert_eq!(received(&router, "wg0"), before);
    eventually("the rest of them at the gateway", || world.gateway.status().garbage > 200);
    assert_eq!(world.gateway.status().handshakes, 1);
    assert_eq!(received(&router, "wg0"), before);
}

#[test]
fn under_a_flood_of_initiations_an_operator_proves_its_address_and_gets_in() {
    let world = World::with(Limits { handshakes: 8, workers: 1, ..Limits::default() });
    let _router = world.network(1);
    let (old, new) = (PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap());
    world.gateway.add_peer(&world.peer(3, old.public_key())).unwrap();
    world.gateway.add_peer(&world.peer(2, new.public_key())).unwrap();
    // An initiation with good macs, for anybody to repeat.
    let other = world.lab.namespace("other");
    let relay = Relay::new(&world.laptop);
    other.run("ip link set lo up");
    let recorded = {
        let _operator = world.operator(&world.laptop, 3, old, relay.at);
        answers(&world.laptop, SERVER4);
        let carried = relay.carried.lock().unwrap();
        carried.iter().find(|datagram| datagram.len() == INITIATION).unwrap().clone()
    };
    let _ = world.laptop.attempt("ip link delete wg0");
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                (0..2).for_each(|_| relay.say(&recorded));
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let loaded = || world.gateway.status().cookie_replies > 100;
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            eventually("load", loaded);
            let _operator = world.operator(&world.laptop, 2, new, at_host());
            let _ = world.laptop.attempt(&format!("ping -c 1 -W 1 {SERVER4}"));
            // The first attempt gets a cookie, the second one shows it.
            let inside = || world.gateway.status().handshakes == 2;
            eventually("the handshake", inside);
            answers(&world.laptop, SERVER4);
        }));
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
    });
}
