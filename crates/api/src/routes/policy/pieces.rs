//! What a policy says about every port at once: the ports fall into pieces that no rule tells apart, and one flow of
//! each is evaluated.

use std::collections::BTreeSet;
use std::net::IpAddr;

use jiff::Timestamp;
use warren_model::policy::{Destination, Directory, Member, Policy, PortRange, Ports, Protocol, Rule, Sender, Verdict};

/// A protocol and, where it has ports, some of them in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    pub protocol: Protocol,
    /// [`PortRange::ALL`] where the protocol has no ports.
    pub range: PortRange,
}

impl Piece {
    /// The port that stands for all of the piece.
    pub fn port(&self) -> Option<u16> {
        // Port 0 is no port that anybody listens on.
        self.protocol.has_ports().then_some(self.range.first.max(1))
    }
}

/// The whole of what can be sent, cut wherever one of these rules begins or ends.
pub(super) fn pieces<'a>(rules: impl IntoIterator<Item = &'a Rule>) -> Vec<Piece> {
    let mut cuts: [BTreeSet<u16>; 2] = Default::default();
    for ports in rules.into_iter().flat_map(|rule| &rule.ports) {
        let index = match ports.protocol {
            Protocol::Tcp => 0,
            Protocol::Udp => 1,
            Protocol::Icmp | Protocol::Other => continue,
        };
        cuts[index].insert(ports.range.first);
        cuts[index].extend(ports.range.last.checked_add(1));
    }
    let mut pieces = Vec::new();
    for (protocol, cuts) in [Protocol::Tcp, Protocol::Udp].into_iter().zip(&cuts) {
        // A rule for ports 1 to 65535 is one for all of them: there is no port 0.
        let starts: Vec<u16> = std::iter::once(0).chain(cuts.iter().copied().filter(|start| *start > 1)).collect();
        for (index, first) in starts.iter().enumerate() {
            let last = starts.get(index + 1).map_or(u16::MAX, |next| next - 1);
            pieces.push(Piece { protocol, range: PortRange { first: *first, last } });
        }
    }
    pieces.extend([Protocol::Icmp, Protocol::Other].map(|protocol| Piece { protocol, range: PortRange::ALL }));
    pieces
}

/// The part of the pieces that lies within some ports.
pub(super) fn within(pieces: Vec<Piece>, ports: Ports) -> Vec<Piece> {
    let cut = |piece: Piece| {
        let first = piece.range.first.max(ports.range.first);
        let last = piece.range.last.min(ports.range.last);
        (piece.protocol == ports.protocol && first <= last)
            .then_some(Piece { range: PortRange { first, last }, ..piece })
    };
    pieces.into_iter().filter_map(cut).collect()
}

/// Pieces as texts, neighbours joined: `any` alone for everything.
pub(super) fn texts(pieces: &[Piece]) -> Vec<String> {
    let mut joined: Vec<Piece> = Vec::new();
    for piece in pieces {
        match joined.last_mut() {
            Some(last)
                if last.protocol == piece.protocol
                    && last.range.last.checked_add(1) == Some(piece.range.first)
                    && piece.protocol.has_ports() =>
            {
                last.range.last = piece.range.last;
            }
            _ => joined.push(*piece),
        }
    }
    let whole = joined.iter().filter(|piece| piece.range == PortRange::ALL).count();
    if whole == Protocol::ALL.len() {
        return vec!["any".to_owned()];
    }
    joined.iter().map(|piece| Ports { protocol: piece.protocol, range: piece.range }.to_string()).collect()
}

/// A member as a sender, under one policy.
pub(super) struct View<'a> {
    sender: Sender<'a>,
    rules: Vec<&'a Rule>,
}

impl<'a> View<'a> {
    pub fn new(policy: &'a Policy, directory: &'a Directory, from: &'a Member, now: Timestamp) -> Self {
        let rules = policy.rules().map(|(rule, _)| rule);
        let rules = rules.filter(|rule| rule.is_in_force(now) && from.is_meant_by(&rule.from)).collect();
        Self { sender: Sender::new(policy, directory, from, now), rules }
    }

    /// The rules that are about flows of this sender, wherever they go.
    pub fn rules(&self) -> impl Iterator<Item = &'a Rule> {
        self.rules.iter().copied()
    }

    /// The rules that are about flows to there, whatever their ports.
    pub fn toward(&self, to: Destination) -> impl Iterator<Item = &'a Rule> {
        self.rules().filter(move |rule| self.sender.is_meant(to, rule))
    }

    pub fn judge(&self, to: Destination, piece: &Piece) -> Verdict {
        self.sender.judge(to, piece.protocol, piece.port())
    }

    pub fn judge_port(&self, to: Destination, protocol: Protocol, port: u16) -> Verdict {
        self.sender.judge(to, protocol, Some(port))
    }

    pub fn is_vacant(&self, address: IpAddr) -> bool {
        self.sender.is_vacant(address)
    }

    /// What is open to there.
    pub fn open(&self, to: Destination) -> Vec<Piece> {
        let mut pieces = pieces(self.toward(to));
        pieces.retain(|piece| self.judge(to, piece).allowed);
        pieces
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(ports: &[&str]) -> Rule {
        serde_json::from_value(serde_json::json!({ "id": "r", "from": "net:a", "to": "net:b", "ports": ports }))
            .unwrap()
    }

    fn shown(pieces: &[Piece]) -> Vec<String> {
        pieces.iter().map(|piece| texts(std::slice::from_ref(piece)).remove(0)).collect()
    }

    #[test]
    fn ports_are_cut_where_rules_begin_and_end() {
        let rules = [rule(&["tcp/80", "tcp/70-90"]), rule(&["udp/53", "icmp"])];
        let all = pieces(&rules);
        assert_eq!(
            shown(&all),
            [
                "tcp/0-69",
                "tcp/70-79",
                "tcp/80",
                "tcp/81-90",
                "tcp/91-65535",
                "udp/0-52",
                "udp/53",
                "udp/54-65535",
                "icmp",
                "other"
            ]
        );
        assert_eq!(texts(&all), ["any"]);
        assert_eq!(texts(&all[1..4]), ["tcp/70-90"]);
        assert_eq!(shown(&within(all, "tcp/75-85".parse().unwrap())), ["tcp/75-79", "tcp/80", "tcp/81-85"]);
    }

    #[test]
    fn every_port_from_1_on_is_every_port() {
        let all = pieces(&[rule(&["tcp/1-65535"])]);
        assert_eq!(shown(&all), ["tcp", "udp", "icmp", "other"]);
        assert_eq!(all[0].range, PortRange::ALL);
    }
}
