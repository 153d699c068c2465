//! What can go wrong between Warren and the kernel.

use std::io;
use std::path::PathBuf;

use nix::errno::Errno;
use warren_model::{MemberNumber, NetworkNumber};

#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The network has no namespace on this host.
    #[error("network {0} has no namespace on this host")]
    NoNetwork(NetworkNumber),
    /// Something about a namespace, without an entry of its own in a table of the kernel.
    #[error("cannot {action} the namespace {path}")]
    Namespace {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: Errno,
    },
    #[error("cannot {action} {path}")]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The kernel refused a link, address, route, neighbour or rule.
    #[error("the kernel refused to {action} in {place}")]
    Refused {
        action: &'static str,
        place: String,
        #[source]
        source: Errno,
    },
    #[error("cannot attach member {member} of network {network}: {action}")]
    Attach {
        network: NetworkNumber,
        member: MemberNumber,
        action: &'static str,
        #[source]
        source: Errno,
    },
    #[error("cannot run nft: install nftables")]
    NoNft(#[source] io::Error),
    #[error("nft refused the rules of {place}: {complaint}")]
    Rules { place: String, complaint: String },
    #[error("cannot open a socket on the gateway of network {network} ({what})")]
    GatewaySocket {
        network: NetworkNumber,
        what: &'static str,
        #[source]
        source: Errno,
    },
    #[error("cannot open the operators' device of network {network}")]
    TunnelDevice {
        network: NetworkNumber,
        #[source]
        source: io::Error,
    },
    /// `open` egress needs IP forwarding, which is off, and nobody consented to switching it on.
    #[error("IP forwarding is off ({missing}) and switching it on was not consented to: start with --forwarding")]
    ForwardingOff { missing: String },
    /// A teardown goes on after an error; these are all of them.
    #[error("removing network {network} left something behind: {}", join(.errors))]
    Removal { network: NetworkNumber, errors: Vec<KernelError> },
}

fn join(errors: &[KernelError]) -> String {
    errors.iter().map(describe).collect::<Vec<_>>().join("; ")
}

fn describe(error: &KernelError) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
