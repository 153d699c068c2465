//! Which flows need not be judged again: those that were found allowed under the policy in force.
//!
//! A flow that passes is marked with the number of the policy, and one with the current number passes without being
//! looked up. So what a policy holds costs nothing for a packet of an open flow, and a change of policy, which changes
//! the number, has every flow judged anew with its next packet.
//!
//! A packet may be half-way through the rules while the policy changes, and must not mark its flow with a number under
//! which it was not judged. So nothing is current, and nothing is marked, from the change until every packet has left
//! the rules that had entered them before.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use nix::libc;

use super::elements::{Change, Listing};
use super::item::{Field, Item};
use super::sets::Set;
use super::shape::Shape;

/// How long a packet takes at most where the kernel cannot be asked to wait for all that are under way.
const UNDER_WAY: Duration = Duration::from_millis(100);

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

/// The number that is current; `None` where there is none, or something else beside it.
pub(crate) fn current(there: &Listing) -> Option<u32> {
    let key = &there.of(Set::Current).next()?.key;
    let number = u32::from_ne_bytes(key.as_slice().try_into().ok()?);
    let whole = items(number).all(|(set, item)| there.of(set).any(|entry| *entry == item.entry(false)));
    let alone = there.of(Set::Current).count() == 1 && there.of(Set::Generation).count() == 2;
    (whole && alone).then_some(number)
}

/// A number that no flow which is still known can be marked with: the time in milliseconds, which repeats after 49 days,
/// while the kernel forgets an idle flow after 5 (`nf_conntrack_tcp_timeout_established`). Never zero.
pub(crate) fn fresh() -> u32 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (now.as_millis() as u32).max(1)
}

/// Until every packet has left the rules that was under way when this was called. The kernel looks at packets in sections
/// that `synchronize_rcu` waits for, and so does `MEMBARRIER_CMD_GLOBAL` (`kernel/sched/membarrier.c`).
pub(crate) fn wait_for_packets() {
    // SAFETY: the call takes three numbers and touches no memory of this process.
    let waited = unsafe { libc::syscall(libc::SYS_membarrier, libc::MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if waited != 0 {
        std::thread::sleep(UNDER_WAY);
    }
}

fn items(number: u32) -> impl Iterator<Item = (Set, Item)> {
    let families = [IpNet::V4(Ipv4Net::default()), IpNet::V6(Ipv6Net::default())];
    let generation =
        families.map(|family| (Set::Generation, Item::mapped([Field::Family(family)], Field::Mark(number))));
    std::iter::once((Set::Current, Item::new([Field::Mark(number)]))).chain(generation)
}
