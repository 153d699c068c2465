//! Flows that pass are looked up once for each policy, and never pass for having passed under an earlier one.

mod common;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::trio::{Connection, DATABASES, SOON, Trio, WORKERS, any, bound};
use warren_lab::eventually;
use warren_model::policy::PortRange;
use warren_model::policy::compile::{Carrier, Default, Exception};

fn allow(carrier: Carrier, ports: PortRange) -> Exception {
    Exception { from: WORKERS, to: DATABASES, carrier, ports }
}

fn port(carrier: Carrier, port: u16) -> Exception {
    allow(carrier, PortRange { first: port, last: port })
}

/// Ends what goes on until then, also where an assertion fails.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A connection that has passed since flows are remembered.
fn remembered(trio: &Trio, port: u16) -> Connection {
    trio.remembering();
    let target = SocketAddr::new(trio.addresses(1)[0], port);
    let mut connection = Connection::open(&trio.machines[0], &trio.machines[1], target, 0).unwrap();
    assert!(connection.carries());
    connection
}

#[test]
fn a_flow_that_passes_is_not_looked_up_again_until_the_policy_changes() {
    let mut trio = Trio::new(Default::Refuse, &[port(Carrier::Tcp, 5432), port(Carrier::Tcp, 80)]);
    let (mut kept, mut revoked) = (remembered(&trio, 80), remembered(&trio, 5432));
    // Somebody takes away what they passed by: only what is looked up notices.
    trio.fixture.in_router(&trio.spec, "nft flush set inet warren talk_ports");
    assert_eq!(trio.tcp(0, 1, 5432), [false, false]);
    assert!(kept.carries() && revoked.carries());
    trio.apply(|rules| rules.exceptions.retain(|one| one.ports.first == 80));
    assert!(kept.carries() && revoked.is_cut());
    trio.remembering();
    assert!(kept.carries());
    assert_eq!(trio.tcp(0, 1, 5432), [false, false]);
}

#[test]
fn every_change_has_a_number_of_its_own_whatever_the_clock_says() {
    let mut trio = Trio::new(Default::Refuse, &[]);
    let mut before = trio.remembering();
    for turn in 0..4u16 {
        trio.apply(|rules| rules.exceptions.extend([port(Carrier::Tcp, turn)]));
        eventually("another number", || trio.current().is_some_and(|number| number != before));
        let number = trio.remembering();
        // The namespace's own count of transactions.
        assert!(number > before && number < 1000, "{before} {number}");
        before = number;
    }
    // The rules as a whole, too.
    trio.fixture.kernel.load_rules(&trio.spec, &trio.members).unwrap();
    eventually("another number", || trio.current().is_some_and(|number| number > before));
}

#[test]
fn the_next_daemon_does_what_one_that_ended_in_between_left() {
    let trio = Trio::new(Default::Refuse, &[port(Carrier::Tcp, 5432)]);
    let before = trio.remembering();
    let mut flow = remembered(&trio, 5432);
    for set in ["set inet warren current", "map inet warren generation"] {
        trio.fixture.in_router(&trio.spec, &format!("nft flush {set}"));
    }
    let again = trio.fixture.restarted();
    assert!(flow.carries());
    assert!(again.observe(&trio.spec).unwrap().unwrap().policy, "the policy is in force all the same");
    assert!(trio.remembering() > before);
    assert!(flow.carries());
}

#[test]
fn a_mark_that_others_made_current_is_noticed_and_taken_back() {
    let trio = Trio::new(Default::Refuse, &[]);
    let before = trio.remembering();
    trio.fixture.in_router(&trio.spec, "nft add element inet warren current { 5 }");
    assert!(!trio.fixture.kernel.observe(&trio.spec).unwrap().unwrap().policy);
    trio.fixture.kernel.apply_policy(&trio.spec, &trio.members).unwrap();
    let listed = trio.fixture.in_router(&trio.spec, "nft list set inet warren current");
    assert!(!listed.contains("0x00000005"), "{listed}");
    assert!(trio.remembering() > before);
}

#[test]
fn a_network_that_is_removed_right_after_a_change_is_gone_and_one_made_anew_remembers() {
    let mut trio = Trio::new(Default::Refuse, &[]);
    for turn in 1..10u16 {
        trio.apply(|rules| rules.exceptions.extend([port(Carrier::Tcp, turn)]));
        std::thread::sleep(Duration::from_millis(u64::from(turn)));
        trio.fixture.kernel.remove_network(trio.spec.number).unwrap();
        assert!(trio.fixture.kernel.observe(&trio.spec).unwrap().is_none());
        trio.fixture.kernel.create_network(&trio.spec, &trio.members).unwrap();
    }
    trio.remembering();
}

#[test]
fn a_flow_in_the_midst_of_its_packets_is_never_remembered_under_a_policy_that_forbids_it() {
    // Of both kinds, which the kernel replaces in different steps of a transaction.
    for ports in [PortRange { first: 5000, last: 5000 }, PortRange { first: 5000, last: 5001 }] {
        let rule = allow(Carrier::Udp, ports);
        let mut trio = Trio::new(Default::Refuse, &[rule]);
        for address in trio.addresses(1) {
            let server = bound(&trio.machines[1], SocketAddr::new(address, 5000));
            let client = bound(&trio.machines[0], any(address));
            client.connect((address, 5000)).unwrap();
            let over = AtomicBool::new(false);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    while !over.load(Ordering::Relaxed) {
                        // A refusal of an earlier one is told by the next call.
                        let _ = client.send(b"x");
                    }
                });
                let _over = End(&over);
                let arrives = |within: Duration| {
                    let end = Instant::now() + within;
                    let mut buffer = [0];
                    server.set_nonblocking(true).unwrap();
                    loop {
                        if let Ok((_, back)) = server.recv_from(&mut buffer) {
                            // With an answer the flow is established.
                            let _ = server.send_to(b"y", back);
                            return true;
                        }
                        if Instant::now() >= end {
                            return false;
                        }
                    }
                };
                // What passed before waits in the socket, or on its way there. A flow that is remembered goes on.
                let stops = || {
                    let end = Instant::now() + SOON;
                    while Instant::now() < end {
                        if !arrives(Duration::from_millis(30)) {
                            return true;
                        }
                    }
                    false
                };
                for _ in 0..10 {
                    assert!(arrives(SOON));
                    trio.remembering();
                    assert!(arrives(SOON));
                    trio.apply(|rules| rules.exceptions.clear());
                    trio.remembering();
                    assert!(stops(), "{address} {ports:?}");
                    // Two changes at once: what the first one asked for must not be done for the second.
                    trio.apply(|rules| rules.exceptions.extend([rule]));
                    trio.apply(|rules| rules.exceptions.clear());
                    trio.remembering();
                    assert!(stops(), "{address} {ports:?}, twice");
                    trio.apply(|rules| rules.exceptions.extend([rule]));
                }
            });
        }
    }
}
