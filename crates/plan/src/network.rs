//! What to do next for one network.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use warren_model::{Access, MemberNumber, NetworkNumber};

/// A member as the rules know it. Its MAC follows from its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Member {
    pub number: MemberNumber,
    pub access: Access,
    pub ipv4: Ipv4Addr,
    pub ipv6: Ipv6Addr,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DesiredNetwork {
    /// Deletion was asked for.
    pub deleting: bool,
    /// Every member that is not to be removed, whether it runs or not.
    pub members: BTreeSet<Member>,
    /// Members on their way out: their links and admission are still theirs until their own plan removes them.
    pub leaving: BTreeSet<Member>,
    /// Something may leave through the kernel.
    pub exits: bool,
    /// Networks with which policy allows traffic in either direction.
    pub peers: BTreeSet<NetworkNumber>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedNetwork {
    /// `None` when there is no namespace.
    pub router: Option<ObservedRouter>,
    /// The edge answers for this network with the view that it should have.
    pub published: bool,
    /// The edge has anything of this network.
    pub at_edge: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedRouter {
    /// Addresses, routes and settings of the gateway are as they should be.
    pub gateway: bool,
    pub rules: Rules,
    /// The rules say what the policy says.
    pub policy: bool,
    pub admitted: BTreeSet<Member>,
    /// Links by member, and whether each is as it should be.
    pub links: BTreeMap<MemberNumber, bool>,
    pub uplink: bool,
    /// Whether the operators' device leads to just the admitted operators; `None` when there is none.
    pub tunnel: Option<bool>,
    /// Links to other networks, and whether each is as it should be.
    pub peers: BTreeMap<NetworkNumber, bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rules {
    Intact,
    /// Somebody changed them.
    Altered,
    Missing,
}

/// One thing to do for a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetworkStep {
    /// Namespace, gateway, uplink and rules with all members; completes a half-made one.
    Create,
    RepairGateway,
    /// Replaces all rules and elements in one transaction.
    LoadRules,
    /// Makes the rules, and the way out, what the policy says now.
    ApplyPolicy,
    Admit(BTreeSet<Member>),
    Expel(BTreeSet<Member>),
    /// Makes the operators' device lead to just the network's operators.
    FitTunnel,
    /// Removes a link that belongs to no member.
    DetachStray(MemberNumber),
    /// Joins this network to another one, or mends what joins them.
    Link(NetworkNumber),
    Unlink(NetworkNumber),
    /// The edge gets this network's sockets and names.
    Publish,
    /// The edge forgets this network.
    Withdraw,
    Remove,
    /// Removes the records.
    Forget,
}

impl NetworkStep {
    /// The names of all steps, as crash tests list them.
    pub const NAMES: &'static [&'static str] = &[
        "create",
        "repair-gateway",
        "load-rules",
        "apply-policy",
        "admit",
        "expel",
        "fit-tunnel",
        "detach-stray",
        "link",
        "unlink",
        "publish",
        "withdraw",
        "remove",
        "forget",
    ];

    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::RepairGateway => "repair-gateway",
            Self::LoadRules => "load-rules",
            Self::ApplyPolicy => "apply-policy",
            Self::Admit(_) => "admit",
            Self::Expel(_) => "expel",
            Self::FitTunnel => "fit-tunnel",
            Self::DetachStray(_) => "detach-stray",
            Self::Link(_) => "link",
            Self::Unlink(_) => "unlink",
            Self::Publish => "publish",
            Self::Withdraw => "withdraw",
            Self::Remove => "remove",
            Self::Forget => "forget",
        }
    }

    /// Whether the step mends what somebody else changed, in the life of a network that was whole before.
    pub fn repairs(&self) -> bool {
        match self {
            Self::Create | Self::RepairGateway | Self::LoadRules | Self::DetachStray(_) => true,
            // Machines are expelled by their own plans; operators come and go by this one.
            Self::Expel(members) => members.iter().any(|member| member.access == Access::Link),
            _ => false,
        }
    }
}

impl fmt::Display for NetworkStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |members: &BTreeSet<Member>| {
            members.iter().map(|member| member.ipv4.to_string()).collect::<Vec<_>>().join(" ")
        };
        match self {
            Self::Admit(members) => write!(f, "admit {}", list(members)),
            Self::Expel(members) => write!(f, "expel {}", list(members)),
            Self::DetachStray(member) => write!(f, "detach-stray {member}"),
            Self::Link(network) => write!(f, "link {network}"),
            Self::Unlink(network) => write!(f, "unlink {network}"),
            other => f.write_str(other.as_str()),
        }
    }
}

impl DesiredNetwork {
    fn has_operators(&self) -> bool {
        self.members.iter().any(|member| member.access == Access::Tunnel)
    }
}

/// The steps from what is there to what is wanted; none when they agree.
pub fn plan(desired: &DesiredNetwork, observed: &ObservedNetwork) -> Vec<NetworkStep> {
    if desired.deleting { plan_deleting(desired, observed) } else { plan_kept(desired, observed) }
}

fn plan_deleting(desired: &DesiredNetwork, observed: &ObservedNetwork) -> Vec<NetworkStep> {
    // Its machines go first; the last one wakes this plan again.
    if !desired.members.is_empty() || !desired.leaving.is_empty() {
        return Vec::new();
    }
    let mut steps = Vec::new();
    if observed.at_edge {
        steps.push(NetworkStep::Withdraw);
    }
    if observed.router.is_some() {
        steps.push(NetworkStep::Remove);
    }
    steps.push(NetworkStep::Forget);
    steps
}

fn plan_kept(desired: &DesiredNetwork, observed: &ObservedNetwork) -> Vec<NetworkStep> {
    let mut steps = Vec::new();
    match &observed.router {
        // A namespace that was made anew has no socket at the edge yet.
        None => {
            steps.extend([NetworkStep::Create, NetworkStep::Publish]);
            steps.extend(desired.has_operators().then_some(NetworkStep::FitTunnel));
        }
        Some(router) => {
            // First, so that whatever the kernel refuses keeps no name open that policy has closed. But an edge that has
            // nothing of the network has nothing open, and needs sockets on a gateway that may be half made.
            let (first, last) = (!observed.published && observed.at_edge, !observed.published && !observed.at_edge);
            steps.extend(first.then_some(NetworkStep::Publish));
            plan_router(desired, router, &mut steps);
            steps.extend(last.then_some(NetworkStep::Publish));
        }
    }
    // Last, since it waits for the other network.
    let linked =
        |peer: &&NetworkNumber| observed.router.as_ref().is_some_and(|router| router.peers.get(peer) == Some(&true));
    steps.extend(desired.peers.iter().filter(|peer| !linked(peer)).map(|peer| NetworkStep::Link(*peer)));
    steps
}

fn plan_router(desired: &DesiredNetwork, router: &ObservedRouter, steps: &mut Vec<NetworkStep>) {
    steps.extend(
        router.peers.keys().filter(|peer| !desired.peers.contains(peer)).map(|peer| NetworkStep::Unlink(*peer)),
    );
    if router.uplink != desired.exits {
        // Where the policy has changed, nobody has meddled.
        steps.push(if router.policy { NetworkStep::Create } else { NetworkStep::ApplyPolicy });
        return;
    }
    if !router.gateway {
        steps.push(NetworkStep::RepairGateway);
    }
    let has_operators = desired.has_operators();
    let needs_tunnel = router.tunnel == Some(false) || (has_operators && router.tunnel.is_none());
    if router.rules == Rules::Intact {
        let missing: BTreeSet<Member> = desired.members.difference(&router.admitted).copied().collect();
        let stray: BTreeSet<Member> = router
            .admitted
            .iter()
            .filter(|member| !desired.members.contains(member) && !desired.leaving.contains(member))
            .copied()
            .collect();
        let moves = stray.iter().chain(&missing).any(|member| member.access == Access::Tunnel);
        if !stray.is_empty() {
            steps.push(NetworkStep::Expel(stray));
        }
        if !missing.is_empty() {
            steps.push(NetworkStep::Admit(missing));
        }
        if !router.policy {
            steps.push(NetworkStep::ApplyPolicy);
        }
        steps.extend((moves || needs_tunnel).then_some(NetworkStep::FitTunnel));
    } else {
        steps.push(NetworkStep::LoadRules);
        steps.extend((has_operators || router.tunnel.is_some()).then_some(NetworkStep::FitTunnel));
    }
    let known: BTreeSet<MemberNumber> =
        desired.members.iter().chain(&desired.leaving).map(|member| member.number).collect();
    steps.extend(router.links.keys().filter(|number| !known.contains(number)).map(|n| NetworkStep::DetachStray(*n)));
}
