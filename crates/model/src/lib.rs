//! The nouns of Warren.
//!
//! Everything here parses into a valid type or refuses with an error that carries a stable [`Code`]; nothing here
//! performs I/O, reads a clock or makes a random choice.
//!
//! | module | holds |
//! | --- | --- |
//! | [`id`] | typed ids (`net_…`, `mch_…`) and the installation's own id |
//! | [`name`] | DNS labels, tags, label keys, image names |
//! | [`cidr`] | the private IPv4 range of a network and its IPv6 ULA range |
//! | [`address`] | network and member numbers, the 48-bit address, the MAC, how a member's packets come |
//! | [`allocate`] | which address a new member gets |
//! | [`reference`] | references to images in registries |
//! | [`record`] | what the store holds |
//! | [`wire`] | what the API says |
//! | [`problem`] | how a refusal is said |
//! | [`access`] | what may be done inside a machine |
//! | [`policy`] | what may talk to what |
//! | [`denial`] | what a refusal by policy says |
//! | [`grant`] | what an identity may do with a machine |
//! | [`domain`] | host names that lead to a machine's port |
//! | [`session`], [`client_config`] | operators in a network, and what their WireGuard is given |
//! | `keypair` | WireGuard key pairs (feature `keypair`) |
//! | [`audit`], [`probe`] | the proof that policy holds: what is asked for, and what a probe in a machine says |

pub mod access;
pub mod address;
pub mod allocate;
pub mod audit;
pub mod cidr;
pub mod client_config;
pub mod denial;
pub mod domain;
pub mod grant;
pub mod id;
#[cfg(feature = "keypair")]
pub mod keypair;
pub mod name;
pub mod policy;
pub mod probe;
pub mod problem;
pub mod record;
pub mod reference;
pub mod session;
pub mod wire;

pub use address::{Access, MacAddress, MemberAddress, MemberNumber, NetworkNumber};
pub use cidr::{NetworkCidr, UlaPrefix};
pub use grant::Verb;
pub use id::{
    AccountId, DenialId, DomainId, EventId, IdentityId, InstallationId, KeyId, MachineId, MemberId, NetworkId,
    SessionId, TokenId,
};
pub use name::{ImageName, Label, LabelKey, LabelValue, LinuxUser, Tag};
pub use problem::{Code, Problem};
pub use reference::ImageReference;
