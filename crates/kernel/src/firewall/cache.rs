//! Which flows need not be judged again: those that were found allowed under the policy in force.
//!
//! A flow that passes is marked with the number of the policy, and one with the current number passes without being
//! looked up. So what a policy holds costs nothing for a packet of an open flow, and a change of policy, which changes
//! the number, has every flow judged anew with its next packet.
//!
//! A packet may be half-way through the rules while the policy changes, and must not mark its flow with a number under
//! which it was not judged. So nothing is current, and nothing is marked, from the change until every packet has left
//! the rules that had entered them before. The change itself does not wait for that: see [`crate::settle`].
//!
//! A number is that of the transaction which made it current. The namespace counts its transactions, and the flows that
//! it tracks end with it, so that no number comes twice in a flow's life, whatever becomes of the clock or the daemon.

use std::os::fd::{FromRawFd, OwnedFd};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use nix::errno::Errno;
use nix::libc;
use nix::unistd::{SysconfVar, sysconf};

use super::elements::{Change, Listing};
use super::item::{Field, Item};
use super::sets::Set;
use super::shape::Shape;

/// What the sets say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cache {
    /// Nothing is current.
    Suspended,
    /// Flows that pass are marked with this number, and pass.
    Current(u32),
    /// Something that was not written here.
    Altered,
}

impl Cache {
    pub(crate) fn of(there: &Listing) -> Self {
        let counts = [Set::Current, Set::Generation].map(|set| there.of(set).count());
        if counts == [0, 0] {
            return Self::Suspended;
        }
        let key = there.of(Set::Current).next().and_then(|entry| entry.key.as_slice().try_into().ok());
        let Some(number) = key.map(u32::from_ne_bytes) else { return Self::Altered };
        let whole = items(number).all(|(set, item)| there.of(set).any(|entry| *entry == item.entry(false)));
        if whole && counts == [1, 2] { Self::Current(number) } else { Self::Altered }
    }
}

/// Nothing is current.
pub(crate) fn suspend(shape: Shape) -> impl Iterator<Item = Change> {
    Set::of_cache(shape).map(Change::delete_all)
}

/// This number is current.
pub(crate) fn resume(shape: Shape, number: u32) -> Vec<Change> {
    let mut changes: Vec<Change> = suspend(shape).collect();
    changes.extend(items(number).map(|(set, item)| Change::add(set, [item.entry(false)])));
    changes
}

/// Returns when every packet has left the rules that was under way when this was called.
///
/// The kernel looks at packets in sections that `synchronize_rcu` waits for (`nf_hook`), and so does
/// `MEMBARRIER_CMD_GLOBAL` (`kernel/sched/membarrier.c`), but on a single processor, and not where the tick is off. There
/// a packet socket serves: to close one waits, too (`packet_release` in `net/packet/af_packet.c`).
///
/// # Errors
/// Where there is no packet socket either.
pub(crate) fn wait_for_packets() -> Result<(), Errno> {
    let several = matches!(sysconf(SysconfVar::_NPROCESSORS_ONLN), Ok(Some(2..)));
    // SAFETY: the call takes three numbers and touches no memory of this process.
    let waited = several && unsafe { libc::syscall(libc::SYS_membarrier, libc::MEMBARRIER_CMD_GLOBAL, 0, 0) } == 0;
    if waited { Ok(()) } else { close_packet_socket() }
}

fn close_packet_socket() -> Result<(), Errno> {
    // Of no protocol, so that it never gets a packet.
    // SAFETY: the call takes three numbers and touches no memory of this process.
    let fd = Errno::result(unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: the descriptor was just made and is nobody else's.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
    Ok(())
}

fn items(number: u32) -> impl Iterator<Item = (Set, Item)> {
    let families = [IpNet::V4(Ipv4Net::default()), IpNet::V6(Ipv6Net::default())];
    let generation =
        families.map(|family| (Set::Generation, Item::mapped([Field::Family(family)], Field::Mark(number))));
    std::iter::once((Set::Current, Item::new([Field::Mark(number)]))).chain(generation)
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::AsFd;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use warren_lab::{Lab, eventually};

    use super::*;
    use crate::firewall::elements::{INET, apply, named_counter};
    use crate::firewall::item::Entry;
    use crate::firewall::{Traffic, process};
    use crate::names::TABLE;
    use crate::namespace;
    use crate::netlink::{Family, Socket};

    fn listing(of: impl IntoIterator<Item = (Set, Item)>) -> Listing {
        let mut listing = Listing::default();
        for (set, item) in of {
            listing.insert(set, item.entry(false), Traffic::default());
        }
        listing
    }

    #[test]
    fn only_what_was_written_here_is_current_or_suspended() {
        assert_eq!(Cache::of(&listing([])), Cache::Suspended);
        assert_eq!(Cache::of(&listing(items(7))), Cache::Current(7));
        assert_eq!(Cache::of(&listing(items(7).chain(items(8)))), Cache::Altered);
        for missing in 0..3 {
            let rest = items(7).enumerate().filter(|(at, _)| *at != missing).map(|(_, item)| item);
            assert_eq!(Cache::of(&listing(rest)), Cache::Altered, "{missing}");
        }
        let mixed = items(7).take(2).chain(items(8).skip(2));
        assert_eq!(Cache::of(&listing(mixed)), Cache::Altered);
    }

    #[test]
    fn after_waiting_no_packet_is_in_the_rules_that_was_in_them_before() {
        // So many rules that a packet is in them for a good part of a millisecond after it was found in the set.
        let slow = "meta mark 0xdead drop\n".repeat(20_000);
        let rules = format!(
            "table inet {TABLE} {{
                counter left {{ }}
                set current {{ type mark; }}
                chain slow {{
                    {slow}
                    counter name left drop
                }}
                chain in {{
                    type filter hook input priority 0;
                    udp dport 9 meta mark @current goto slow
                    udp dport 9 drop
                }}
            }}
            "
        );
        let lab = Lab::new();
        let inside = lab.namespace("slow");
        inside.run("ip link set lo up");
        process::load(inside.fd(), "a test", &rules).unwrap();
        let mut nft = namespace::enter(inside.fd().as_fd(), || Socket::open(Family::Netfilter)).unwrap().unwrap();
        let sender = inside.enter(|| UdpSocket::bind("127.0.0.1:0")).unwrap();
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let _end = End(&over);
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let _ = sender.send_to(b"x", "127.0.0.1:9");
                }
            });
            let mut lost = Vec::new();
            for wait in [wait_for_packets, close_packet_socket] {
                for _ in 0..20 {
                    let before = left(&mut nft);
                    apply(&mut nft, &[Change::add(Set::Current, [unmarked()])], None).unwrap();
                    eventually("packets go the slow way", || left(&mut nft) > before);
                    apply(&mut nft, &[Change::delete_all(Set::Current)], None).unwrap();
                    wait().unwrap();
                    let after = left(&mut nft);
                    std::thread::sleep(Duration::from_millis(5));
                    lost.push(left(&mut nft) - after);
                }
            }
            assert_eq!(lost, [0; 40]);
        });
    }

    /// Ends the sending, also where an assertion fails.
    struct End<'a>(&'a AtomicBool);

    impl Drop for End<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    fn left(nft: &mut Socket) -> u64 {
        named_counter(nft, INET, TABLE, "left").unwrap().packets
    }

    fn unmarked() -> Entry {
        Item::new([Field::Mark(0)]).entry(false)
    }
}
