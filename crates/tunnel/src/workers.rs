//! Handshakes: a few threads, apart from those that pass packets, as the arithmetic takes long.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::SystemTime;

use crate::keys::PrivateKey;
use crate::life::ATTEMPTS;
use crate::noise::cookie::COOKIE_LIFE;
use crate::noise::handshake::{Introduction, TransportKeys, initiate, timestamp};
use crate::noise::{COOKIE_REPLY, INITIATION, RESPONSE};
use crate::session::Session;
use crate::shared::{Job, Message, Shared};
use crate::sys::{Endpoint, Sender};
use crate::timers::LATE;
use crate::transport::{Keypair, REKEY_TIMEOUT};

/// Milliseconds between initiations of one peer that are answered, at least, as in Linux.
const BETWEEN: u64 = 20;

pub fn run(shared: &Shared) {
    let mut sender = Sender::new();
    while let Some(job) = shared.queue.pop() {
        match job {
            Job::Begin(session) => begin(shared, &mut sender, &session),
            Job::Read(message) => {
                let read = match message.length {
                    INITIATION => answer(shared, &mut sender, &message),
                    RESPONSE => finish(shared, &mut sender, &message),
                    COOKIE_REPLY => take_cookie(shared, &message),
                    _ => None,
                };
                if read.is_none() {
                    shared.counters.refused_handshakes.fetch_add(1, Relaxed);
                }
            }
        }
    }
}

/// Sends an initiation.
fn begin(shared: &Shared, sender: &mut Sender, session: &Arc<Session>) {
    session.wants_handshake.store(false, Relaxed);
    let now = shared.clock.now();
    // Before the negotiation, as everywhere.
    let tables = shared.tables();
    let Some(endpoint) = session.endpoint().filter(|_| session.is_on(now)) else { return };
    let mut negotiation = session.negotiation();
    // Two that were asked for at the same time are one.
    if negotiation.begun != 0 && now.saturating_sub(negotiation.begun) < REKEY_TIMEOUT {
        return;
    }
    if negotiation.attempts >= ATTEMPTS {
        let given_up = negotiation.initiating.take().map(|(_, index)| index);
        drop(negotiation);
        shared.drop_indexes(given_up);
        shared.forget_waiting(session);
        return;
    }
    let before = negotiation.initiating.take().map(|(_, index)| index);
    shared.drop_indexes(before);
    let (Ok(ephemeral), Ok(jitter)) = (PrivateKey::generate(), getrandom::u32()) else { return };
    let Some(index) = shared.take_index(session) else { return };
    let stamp = timestamp(SystemTime::now());
    let initiated = initiate(&shared.public, &session.public_key, &session.static_static, ephemeral, &stamp, index);
    let Some((initiating, mut message)) = initiated else { return };
    let cookie = negotiation.cookie.filter(|(_, at)| now.saturating_sub(*at) < COOKIE_LIFE).map(|(cookie, _)| cookie);
    negotiation.last_mac1 = Some(session.macs.write(&mut message, cookie.as_ref()));
    negotiation.initiating = Some((initiating, index));
    negotiation.begun = now;
    negotiation.attempts += 1;
    drop(negotiation);
    drop(tables);
    // Up to a third of a second more, so that two peers do not go on meeting half way (whitepaper §6.1).
    session.life.retry_at.store(now + REKEY_TIMEOUT + u64::from(jitter % 334), Relaxed);
    shared.port.send_one(sender, endpoint, &message);
    session.life.sent(now, false);
    shared.ring(now + REKEY_TIMEOUT);
}

/// Answers an initiation.
fn answer(shared: &Shared, sender: &mut Sender, message: &Message) -> Option<()> {
    let now = shared.clock.now();
    let introduction = Introduction::read(&shared.own, &shared.public, message.bytes.first_chunk()?)?;
    let session = shared.tables().by_key.get(introduction.claims.as_bytes()).cloned()?;
    let introduced = introduction.verify(&session.static_static)?;
    let cookie = {
        let mut negotiation = session.negotiation();
        if introduced.timestamp <= negotiation.greatest || now < negotiation.answered.saturating_add(BETWEEN) {
            session.traffic.refused.fetch_add(1, Relaxed);
            return None;
        }
        negotiation.greatest = introduced.timestamp;
        negotiation.answered = now;
        negotiation.cookie.filter(|(_, at)| now.saturating_sub(*at) < COOKIE_LIFE).map(|(cookie, _)| cookie)
    };
    let index = take_index(shared, &session)?;
    let ephemeral = PrivateKey::generate().ok();
    let responded = ephemeral.and_then(|ephemeral| introduced.respond(&session.preshared, &ephemeral, index));
    let Some((keys, remote, mut response)) = responded else {
        shared.drop_indexes([index]);
        return None;
    };
    let mac1 = session.macs.write(&mut response, cookie.as_ref());
    session.negotiation().last_mac1 = Some(mac1);
    install(shared, &session, &keys, remote, index, false, now, message.endpoint)?;
    session.life.received(now, false);
    session.life.sent(now, false);
    shared.port.send_one(sender, message.endpoint, &response);
    Some(())
}

/// Reads the answer to an initiation of ours.
fn finish(shared: &Shared, sender: &mut Sender, message: &Message) -> Option<()> {
    let now = shared.clock.now();
    let response: &[u8; RESPONSE] = message.bytes.first_chunk()?;
    let index = u32::from_le_bytes(response[8..12].try_into().ok()?);
    let session = shared.indexed(index)?.session;
    let (keys, remote) = {
        let mut negotiation = session.negotiation();
        let (initiating, _) = negotiation.initiating.as_ref().filter(|(_, ours)| *ours == index)?;
        let finished = initiating.finish(&shared.own, &session.preshared, response)?;
        negotiation.initiating = None;
        negotiation.attempts = 0;
        finished
    };
    install(shared, &session, &keys, remote, index, true, now, message.endpoint)?;
    session.life.received(now, false);
    session.life.handshake_done(now);
    let tables = shared.tables();
    shared.send_waiting(sender, &session, true);
    drop(tables);
    Some(())
}

fn take_cookie(shared: &Shared, message: &Message) -> Option<()> {
    let reply: &[u8; COOKIE_REPLY] = message.bytes.first_chunk()?;
    let session = shared.indexed(u32::from_le_bytes(reply[4..8].try_into().ok()?))?.session;
    let mut negotiation = session.negotiation();
    let mac1 = negotiation.last_mac1.take()?;
    match session.macs.open_reply(reply, &mac1) {
        Some(cookie) => {
            negotiation.cookie = Some((cookie, shared.clock.now()));
            Some(())
        }
        None => {
            negotiation.last_mac1 = Some(mac1);
            None
        }
    }
}

/// An index for a session that is on.
fn take_index(shared: &Shared, session: &Arc<Session>) -> Option<u32> {
    // With the tables locked: whoever removes the session comes before, and is seen, or after, and finds the index.
    let tables = shared.tables();
    let taken = if session.is_on(shared.clock.now()) { shared.take_index(session) } else { None };
    drop(tables);
    taken
}

#[expect(clippy::too_many_arguments, reason = "what a handshake gives")]
fn install(
    shared: &Shared,
    session: &Arc<Session>,
    keys: &TransportKeys,
    remote: u32,
    local: u32,
    initiator: bool,
    now: u64,
    endpoint: Endpoint,
) -> Option<()> {
    let keys = Arc::new(Keypair::new(keys, remote, local, initiator, now));
    let tables = shared.tables();
    if !session.is_on(now) {
        drop(tables);
        shared.drop_indexes([local]);
        return None;
    }
    let gone = session.keys().install(Arc::clone(&keys)).collect::<Vec<_>>();
    shared.fill_index(local, session, &keys);
    shared.drop_indexes(gone);
    session.roam(endpoint);
    shared.counters.handshakes.fetch_add(1, Relaxed);
    drop(tables);
    shared.ring(now + LATE);
    Some(())
}
