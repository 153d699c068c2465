//! What happens by itself: keepalives, new handshakes, and ends. One thread, which sleeps until something may be due.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use crate::clock::NEVER;
use crate::peer::Ended;
use crate::session::Session;
use crate::shared::Shared;
use crate::sys::Sender;

/// How late a timer may be while there are keys, in milliseconds. Packets set timers without waking anybody.
pub const LATE: u64 = 1_000;

pub fn run(shared: &Shared) {
    let mut sender = Sender::new();
    while !shared.stop.load(Relaxed) {
        let until = look(shared, &mut sender);
        shared.sleep(until);
    }
}

/// Does what is due, and says until when nothing will be.
fn look(shared: &Shared, sender: &mut Sender) -> u64 {
    let now = shared.clock.now();
    let mut next = NEVER;
    let mut ended: Vec<(Arc<Session>, Ended)> = Vec::new();
    let tables = shared.tables();
    for session in tables.by_key.values() {
        let due = session.life.due(now);
        if let Some(why) = due.ended {
            ended.push((Arc::clone(session), why));
            continue;
        }
        next = next.min(due.next);
        let (gone, has_keys) = {
            let mut keys = session.keys();
            let gone = keys.forget(now);
            (gone, !keys.is_empty())
        };
        shared.drop_indexes(gone);
        if has_keys {
            next = next.min(now + LATE);
        }
        if due.keepalive {
            if session.keys().sending(now).is_some() {
                shared.send_waiting(sender, session, true);
            } else {
                shared.want_handshake(session);
            }
        }
        if due.handshake {
            shared.want_handshake(session);
        }
        if due.retry {
            shared.begin_handshake(session, false);
        }
    }
    drop(tables);
    if !ended.is_empty() {
        let mut tables = shared.tables_mut();
        for (session, why) in ended {
            shared.cut(&mut tables, &session, Some(why));
            tracing::info!(peer = %session.public_key, ?why, "a peer of the tunnel has ended");
        }
    }
    // So long at most, lest the clock on the wall and ours come apart.
    next.clamp(now + 1, now + 60_000)
}
