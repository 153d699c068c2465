//! What an identity may do with a machine.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::id::{MachineId, NetworkId};
use crate::name::LinuxUser;

/// One thing that a grant allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Verb {
    /// List and show it, with its console and its traffic.
    View,
    /// Run commands without a terminal.
    Exec,
    /// Run commands with a terminal.
    Shell,
    /// Read and write its files, as root in the machine.
    Files,
    /// Goes with [`Verb::View`].
    Start,
    /// With [`Verb::Start`] also restart. Goes with [`Verb::View`].
    Stop,
    /// See which ports are listened on.
    Ports,
}

impl Verb {
    pub const ALL: [Self; 7] = [Self::View, Self::Exec, Self::Shell, Self::Files, Self::Start, Self::Stop, Self::Ports];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::View => "view",
            Self::Exec => "exec",
            Self::Shell => "shell",
            Self::Files => "files",
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Ports => "ports",
        }
    }

    /// Whether it lets somebody act as a user of the machine, so that a grant's users count for it.
    pub fn acts_as_a_user(self) -> bool {
        matches!(self, Self::Exec | Self::Shell | Self::Files)
    }

    /// What a grant allows that does not say: to operate a machine, and bring it back, but not to take it away from
    /// others.
    pub fn usual() -> BTreeSet<Self> {
        Self::ALL.into_iter().filter(|verb| *verb != Self::Stop).collect()
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A text that is not a verb.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a verb: use view, exec, shell, files, start, stop or ports")]
pub struct InvalidVerb(String);

impl FromStr for Verb {
    type Err = InvalidVerb;

    fn from_str(text: &str) -> Result<Self, InvalidVerb> {
        let known = Self::ALL.into_iter().find(|verb| verb.as_str() == text);
        known.ok_or_else(|| InvalidVerb(text.chars().take(64).collect()))
    }
}

/// What a grant is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GrantTarget {
    Machine(MachineId),
    /// Every machine that is in the network, now or later.
    Network(NetworkId),
}

impl GrantTarget {
    /// Whether it is this machine, or the network that it is in.
    pub fn covers(self, machine: MachineId, network: NetworkId) -> bool {
        match self {
            Self::Machine(id) => id == machine,
            Self::Network(id) => id == network,
        }
    }
}

impl fmt::Display for GrantTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Machine(id) => id.fmt(f),
            Self::Network(id) => id.fmt(f),
        }
    }
}

/// Why a grant was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidGrant {
    #[error("a grant needs at least one verb: use view, exec, shell, files, start, stop or ports")]
    NoVerb,
    #[error("a grant for certain users needs at least one: leave the users out for every user")]
    NoUser,
    #[error("files are read and written as root: add the user root, or leave the verb files out")]
    FilesNeedRoot,
}

/// What may be done, and as whom.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Permission {
    verbs: BTreeSet<Verb>,
    /// The machine's users that commands may run as; every one when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    users: Option<BTreeSet<LinuxUser>>,
}

impl Permission {
    /// # Errors
    /// When nobody could do anything with it, or files were granted without root.
    pub fn new(verbs: BTreeSet<Verb>, users: Option<BTreeSet<LinuxUser>>) -> Result<Self, InvalidGrant> {
        if verbs.is_empty() {
            return Err(InvalidGrant::NoVerb);
        }
        if users.as_ref().is_some_and(BTreeSet::is_empty) {
            return Err(InvalidGrant::NoUser);
        }
        let mut permission = Self { verbs, users };
        // Whoever changes its state is told of it.
        if permission.verbs.contains(&Verb::Start) || permission.verbs.contains(&Verb::Stop) {
            permission.verbs.insert(Verb::View);
        }
        if permission.verbs.contains(&Verb::Files) && !permission.takes_user(LinuxUser::ROOT) {
            return Err(InvalidGrant::FilesNeedRoot);
        }
        Ok(permission)
    }

    pub fn verbs(&self) -> &BTreeSet<Verb> {
        &self.verbs
    }

    pub fn users(&self) -> Option<&BTreeSet<LinuxUser>> {
        self.users.as_ref()
    }

    pub fn takes_user(&self, user: &str) -> bool {
        self.users.as_ref().is_none_or(|users| users.contains(user))
    }

    /// Whether the verb is allowed, as this user where it acts as one.
    pub fn allows(&self, verb: Verb, user: &str) -> bool {
        self.verbs.contains(&verb) && (!verb.acts_as_a_user() || self.takes_user(user))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users(names: &[&str]) -> Option<BTreeSet<LinuxUser>> {
        Some(names.iter().map(|name| name.parse().unwrap()).collect())
    }

    #[test]
    fn verbs_read_back_as_written() {
        for verb in Verb::ALL {
            assert_eq!(verb.to_string().parse::<Verb>().unwrap(), verb);
            assert_eq!(serde_json::to_value(verb).unwrap(), verb.as_str());
        }
        assert!("Exec".parse::<Verb>().is_err());
    }

    #[test]
    fn users_count_where_somebody_acts_as_one() {
        let verbs = BTreeSet::from([Verb::Exec, Verb::Start]);
        let bob = Permission::new(verbs, users(&["bob"])).unwrap();
        assert!(bob.allows(Verb::Exec, "bob"));
        assert!(!bob.allows(Verb::Exec, "root"));
        assert!(bob.allows(Verb::Start, "root"));
        assert!(!bob.allows(Verb::Stop, "bob"));
    }

    #[test]
    fn whoever_may_change_a_machines_state_may_see_it() {
        for verb in [Verb::Start, Verb::Stop] {
            assert!(Permission::new(BTreeSet::from([verb]), None).unwrap().allows(Verb::View, "root"));
        }
        assert!(!Permission::new(BTreeSet::from([Verb::Exec]), None).unwrap().allows(Verb::View, "root"));
    }

    #[test]
    fn a_grant_that_allows_nothing_or_more_than_it_says_is_refused() {
        assert_eq!(Permission::new(BTreeSet::new(), None), Err(InvalidGrant::NoVerb));
        assert_eq!(Permission::new(Verb::usual(), users(&[])), Err(InvalidGrant::NoUser));
        let files = BTreeSet::from([Verb::Files]);
        assert_eq!(Permission::new(files.clone(), users(&["bob"])), Err(InvalidGrant::FilesNeedRoot));
        assert!(Permission::new(files, users(&["bob", "root"])).is_ok());
    }
}
