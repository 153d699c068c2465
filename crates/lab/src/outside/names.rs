//! What the lab's DNS says, and may say differently later.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

/// What a name leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Addresses(Vec<IpAddr>),
    /// CNAME, answered together with what it leads to.
    Alias(String),
    /// Another answer to every question of one type, over and over again.
    InTurn(Vec<Vec<IpAddr>>),
    /// Addresses, and an HTTPS record (RFC 9460) that offers keys for encrypted ClientHello.
    WithEch(Vec<IpAddr>),
}

#[derive(Debug, Clone)]
pub(crate) struct Record {
    pub(crate) answer: Answer,
    /// Seconds.
    pub(crate) ttl: u32,
    turns: [usize; 2],
}

/// Names and what they lead to; every other name does not exist.
#[derive(Default)]
pub struct Names(Mutex<HashMap<String, Record>>);

impl Names {
    /// Says from now on that the name leads there, for a minute.
    pub fn set(&self, name: &str, answer: Answer) {
        self.set_for(name, answer, 60);
    }

    /// The same, for so many seconds.
    pub fn set_for(&self, name: &str, answer: Answer, ttl: u32) {
        let record = Record { answer, ttl, turns: [0; 2] };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_ascii_lowercase(), record);
    }

    pub fn addresses(&self, name: &str, addresses: &[&str]) {
        self.set(name, Answer::Addresses(parse(addresses)));
    }

    /// `*.suffix` is looked up for names that are not there themselves.
    pub(crate) fn get(&self, name: &str) -> Option<Record> {
        let records = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let wild = |name: &str| {
            let (_, suffix) = name.split_once('.')?;
            records.get(&format!("*.{suffix}")).cloned()
        };
        records.get(name).cloned().or_else(|| wild(name))
    }

    /// The addresses of one family that this question is answered with.
    pub(crate) fn addresses_of(&self, name: &str, v6: bool) -> Vec<IpAddr> {
        let Some(record) = self.get(name) else { return Vec::new() };
        let all = match record.answer {
            Answer::Addresses(addresses) | Answer::WithEch(addresses) => addresses,
            Answer::Alias(target) => return self.addresses_of(&target, v6),
            Answer::InTurn(turns) => {
                let mut records = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                let turn = records.get_mut(name).map(|record| {
                    record.turns[usize::from(v6)] += 1;
                    record.turns[usize::from(v6)] - 1
                });
                turns[turn.unwrap_or(0) % turns.len()].clone()
            }
        };
        all.into_iter().filter(|address| address.is_ipv6() == v6).collect()
    }
}

pub(crate) fn parse(addresses: &[&str]) -> Vec<IpAddr> {
    addresses.iter().map(|address| address.parse().expect("an address")).collect()
}
