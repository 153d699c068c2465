//! What a gateway takes while nothing happens, and what it leaves: alone in its process, whose time is looked at.

mod common;

use std::time::Duration;

use common::{SERVER4, World, answers, eventually};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;

#[test]
fn nothing_costs_nothing_also_when_a_device_is_deleted_and_dropping_it_leaves_nothing() {
    let (threads, descriptors) = (count("/proc/self/task"), count("/proc/self/fd"));
    let world = World::new();
    let router = world.network(1);
    let operator = world.join();
    answers(&world.laptop, SERVER4);
    assert!(count("/proc/self/task") > threads);
    let idle = spent(|| std::thread::sleep(Duration::from_secs(2)));
    assert!(idle < 40, "{idle} ms of processor time in two seconds");
    // A descriptor whose device is gone is readable for ever.
    router.run("ip link delete wg0");
    let gone = spent(|| std::thread::sleep(Duration::from_secs(1)));
    assert!(gone < 40, "{gone} ms of processor time in a second");
    assert!(!world.laptop.pings(SERVER4));
    drop((operator, router, world));
    eventually("the end of all threads", || count("/proc/self/task") == threads);
    assert_eq!(count("/proc/self/fd"), descriptors);
}

fn count(directory: &str) -> usize {
    std::fs::read_dir(directory).unwrap().count()
}

/// Milliseconds of processor time of this process.
fn spent(work: impl FnOnce()) -> i64 {
    let total = || {
        let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
        (usage.user_time() + usage.system_time()).num_milliseconds()
    };
    let before = total();
    work();
    total() - before
}
