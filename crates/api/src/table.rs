//! The authorization table: every route, and what each kind of caller gets there.
//!
//! The router is built by walking this table, so a route without a row does not exist. To add a route, write its
//! handler in `routes/` and give it a row here.

use utoipa_axum::router::UtoipaMethodRouter;
use utoipa_axum::routes;

use warren_model::Verb;

use crate::compat::{Dialect, freestyle};
use crate::routes::domains::{claims, map};
use crate::routes::policy::{apply, explain, history, reach};
use crate::routes::{
    accounts, audit, create, denials, domains, events, exec, files, grants, identities, images, inside, keys, machines,
    networks, policy, power, server, sessions, tokens, topology,
};
use crate::state::Shared;

/// Who calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallerKind {
    /// No key, or none that is valid.
    Nobody,
    /// A token of an identity.
    Token,
    /// A key of an account.
    Account,
    /// The root key.
    Root,
}

/// What a route does to a request, which decides how it is bounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Answers from memory, also when the server is overloaded.
    Free,
    /// Reads; bounded by the request timeout.
    Read,
    /// Writes, and may wait for the host; runs to its end even when the client goes away.
    Write,
    /// Streams, or runs a command; ends with the client.
    Stream,
}

/// One route and who may call it. A denied caller gets `unauthorized` without a valid key, else `forbidden`.
#[derive(Debug)]
pub struct Row {
    pub method: &'static str,
    pub path: &'static str,
    pub class: Class,
    pub nobody: bool,
    /// What a token's identity must have been granted on the machine in the path; `None` where no token will do.
    pub token: Option<&'static [Verb]>,
    pub account: bool,
    pub root: bool,
}

impl Row {
    /// Whether it is Warren's own, and no other product's.
    pub fn is_native(&self) -> bool {
        Dialect::is_native(self.path)
    }

    pub fn allows(&self, caller: CallerKind) -> bool {
        match caller {
            CallerKind::Nobody => self.nobody,
            CallerKind::Token => self.nobody || self.token.is_some(),
            CallerKind::Account => self.account,
            CallerKind::Root => self.root,
        }
    }
}

pub(crate) struct Route {
    pub row: &'static Row,
    pub handler: fn() -> UtoipaMethodRouter<Shared>,
}

macro_rules! who {
    (anyone) => {
        [true, true, true]
    };
    (granted) => {
        [false, true, true]
    };
    (account) => {
        [false, true, true]
    };
    (root) => {
        [false, false, true]
    };
}

macro_rules! needs {
    () => {
        None
    };
    (($($verb:ident),*)) => {
        Some(&[$(Verb::$verb),*])
    };
}

macro_rules! table {
    ($($method:ident $path:literal $class:ident $who:ident $(($($verb:ident),*))? => $($handler:ident)::+;)*) => {
        const ROWS: &[Row] = &[$({
            const WHO: [bool; 3] = who!($who);
            Row {
                method: stringify!($method),
                path: $path,
                class: Class::$class,
                nobody: WHO[0],
                token: needs!($(($($verb),*))?),
                account: WHO[1],
                root: WHO[2],
            }
        }),*];
        const HANDLERS: &[fn() -> UtoipaMethodRouter<Shared>] = &[$(|| routes!($($handler)::+)),*];
    };
}

// Callers: `anyone` needs no key, `account` needs any valid key, `root` needs the root key. `granted` takes a token too,
// whose identity was granted these verbs on the machine in the path.
table! {
    GET    "/healthz"                                           Free   anyone                => server::healthz;
    GET    "/readyz"                                            Free   anyone                => server::readyz;
    GET    "/openapi.json"                                      Free   anyone                => server::document;
    GET    "/metrics"                                           Free   root                  => server::metrics;
    GET    "/v1/whoami"                                         Read   granted()             => server::whoami;
    GET    "/v1/accounts"                                       Read   root                  => accounts::list;
    POST   "/v1/accounts"                                       Write  root                  => accounts::create;
    GET    "/v1/accounts/{account}"                             Read   root                  => accounts::show;
    GET    "/v1/keys"                                           Read   account               => keys::list;
    POST   "/v1/keys"                                           Write  account               => keys::create;
    DELETE "/v1/keys/{key}"                                     Write  account               => keys::revoke;
    GET    "/v1/identities"                                     Read   account               => identities::list;
    POST   "/v1/identities"                                     Write  account               => identities::create;
    GET    "/v1/identities/{identity}"                          Read   account               => identities::show;
    PATCH  "/v1/identities/{identity}"                          Write  account               => identities::update;
    DELETE "/v1/identities/{identity}"                          Write  account               => identities::delete;
    GET    "/v1/identities/{identity}/grants"                   Read   account               => grants::list;
    PUT    "/v1/identities/{identity}/machines/{machine}"       Write  account               => grants::grant_machine;
    DELETE "/v1/identities/{identity}/machines/{machine}"       Write  account               => grants::revoke_machine;
    PUT    "/v1/identities/{identity}/networks/{network}"       Write  account               => grants::grant_network;
    DELETE "/v1/identities/{identity}/networks/{network}"       Write  account               => grants::revoke_network;
    GET    "/v1/identities/{identity}/tokens"                   Read   account               => tokens::list;
    POST   "/v1/identities/{identity}/tokens"                   Write  account               => tokens::create;
    DELETE "/v1/tokens/{token}"                                 Write  account               => tokens::revoke;
    GET    "/v1/networks"                                       Read   account               => networks::list;
    POST   "/v1/networks"                                       Write  account               => networks::create;
    GET    "/v1/networks/{network}"                             Read   account               => networks::show;
    PATCH  "/v1/networks/{network}"                             Write  account               => networks::rename;
    DELETE "/v1/networks/{network}"                             Write  account               => networks::delete;
    GET    "/v1/networks/{network}/sessions"                    Read   account               => sessions::list_in_network;
    POST   "/v1/networks/{network}/sessions"                    Write  account               => sessions::open;
    GET    "/v1/sessions"                                       Read   account               => sessions::list;
    GET    "/v1/sessions/{session}"                             Read   account               => sessions::show;
    DELETE "/v1/sessions/{session}"                             Write  account               => sessions::close;
    GET    "/v1/machines"                                       Read   granted()             => machines::list;
    POST   "/v1/machines"                                       Write  account               => create::create;
    GET    "/v1/machines/{machine}"                             Read   granted(View)         => machines::show;
    PATCH  "/v1/machines/{machine}"                             Write  account               => machines::update;
    DELETE "/v1/machines/{machine}"                             Write  account               => power::delete;
    POST   "/v1/machines/{machine}/start"                       Write  granted(Start)        => power::start;
    POST   "/v1/machines/{machine}/stop"                        Write  granted(Stop)         => power::stop;
    POST   "/v1/machines/{machine}/restart"                     Write  granted(Start, Stop)  => power::restart;
    POST   "/v1/machines/{machine}/exec"                        Stream granted(Exec)         => exec::run;
    GET    "/v1/machines/{machine}/exec"                        Stream granted()             => exec::stream;
    GET    "/v1/machines/{machine}/files"                       Stream granted(Files)        => files::read;
    PUT    "/v1/machines/{machine}/files"                       Stream granted(Files)        => files::write;
    DELETE "/v1/machines/{machine}/files"                       Write  granted(Files)        => files::remove;
    GET    "/v1/machines/{machine}/files/list"                  Read   granted(Files)        => files::list;
    GET    "/v1/machines/{machine}/files/stat"                  Read   granted(Files)        => files::stat;
    POST   "/v1/machines/{machine}/files/directories"           Write  granted(Files)        => files::make_directory;
    GET    "/v1/machines/{machine}/ports"                       Read   granted(Ports)        => inside::ports;
    GET    "/v1/machines/{machine}/logs"                        Stream granted(View)         => inside::logs;
    GET    "/v1/machines/{machine}/traffic"                     Read   granted(View)         => inside::traffic;
    GET    "/v1/domains"                                        Read   account               => domains::list;
    POST   "/v1/domains"                                        Write  account               => map::create;
    GET    "/v1/domains/authority"                              Read   account               => domains::authority;
    GET    "/v1/domains/{domain}"                               Read   account               => domains::show;
    PATCH  "/v1/domains/{domain}"                               Write  account               => map::update;
    DELETE "/v1/domains/{domain}"                               Write  account               => map::delete;
    GET    "/v1/domain-claims"                                  Read   account               => claims::list;
    POST   "/v1/domain-claims"                                  Write  account               => claims::claim;
    DELETE "/v1/domain-claims/{domain}"                         Write  account               => claims::delete;
    GET    "/v1/images"                                         Read   account               => images::list;
    GET    "/v1/images/{image}"                                 Read   account               => images::show;
    PUT    "/v1/images/{image}"                                 Stream root                  => images::import;
    DELETE "/v1/images/{image}"                                 Write  root                  => images::remove;
    POST   "/v1/images/{image}/build"                           Stream account               => images::build;
    POST   "/v1/images/{image}/pull"                            Stream root                  => images::pull;
    GET    "/v1/policy"                                         Read   account               => policy::show;
    PUT    "/v1/policy"                                         Write  account               => apply::apply;
    GET    "/v1/policy/versions"                                Read   account               => history::list;
    GET    "/v1/policy/versions/{version}"                      Read   account               => history::show;
    GET    "/v1/policy/diff"                                    Read   account               => history::diff;
    POST   "/v1/policy/rollback"                                Write  account               => apply::roll_back;
    POST   "/v1/policy/test"                                    Read   account               => apply::test;
    POST   "/v1/explain"                                        Read   account               => explain::explain;
    GET    "/v1/reach"                                          Read   account               => reach::list;
    GET    "/v1/denials"                                        Stream account               => denials::list;
    POST   "/v1/audit"                                          Stream account               => audit::run;
    GET    "/v1/audit/key"                                      Read   account               => audit::key;
    GET    "/v1/audit/schedule"                                 Read   root                  => audit::schedule;
    PUT    "/v1/audit/schedule"                                 Write  root                  => audit::set_schedule;
    DELETE "/v1/audit/schedule"                                 Write  root                  => audit::remove_schedule;
    GET    "/v1/audit-log"                                      Stream root                  => audit::log;
    GET    "/v1/topology"                                       Read   account               => topology::show;
    GET    "/v1/events"                                         Stream account               => events::follow;

    GET    "/compat/freestyle/auth/v1/whoami"                                Read   granted()      => freestyle::account::whoami;
    GET    "/compat/freestyle/auth/v1/background-requests/{request}"         Read   account        => freestyle::account::background;
    GET    "/compat/freestyle/observability/v1/logs"                         Read   account        => freestyle::account::logs;
    POST   "/compat/freestyle/v1/vpcs"                                       Write  account        => freestyle::vpcs::create;
    POST   "/compat/freestyle/v1/vpcs/{network}/wireguard/ephemeral"         Write  account        => freestyle::vpcs::open_session;
    DELETE "/compat/freestyle/v1/vpcs/{network}/wireguard/ephemeral"         Write  account        => freestyle::vpcs::close_session;
    POST   "/compat/freestyle/v1/vpcs/{network}/wireguard/peers"             Write  account        => freestyle::vpcs::add_peer;
    GET    "/compat/freestyle/v1/vms"                                        Read   account        => freestyle::machines::list;
    POST   "/compat/freestyle/v1/vms"                                        Write  account        => freestyle::create::create;
    GET    "/compat/freestyle/v1/vms/snapshots"                              Read   account        => freestyle::snapshots::list;
    POST   "/compat/freestyle/v1/vms/snapshots"                              Read   account        => freestyle::snapshots::create;
    GET    "/compat/freestyle/v1/vms/snapshots/{snapshot}"                   Read   account        => freestyle::snapshots::show;
    PATCH  "/compat/freestyle/v1/vms/snapshots/{snapshot}"                   Read   account        => freestyle::snapshots::rename;
    DELETE "/compat/freestyle/v1/vms/snapshots/{snapshot}"                   Read   account        => freestyle::snapshots::delete;
    GET    "/compat/freestyle/v1/vms/{machine}"                              Read   granted(View)  => freestyle::machines::show;
    DELETE "/compat/freestyle/v1/vms/{machine}"                              Write  account        => freestyle::machines::delete;
    POST   "/compat/freestyle/v1/vms/{machine}/start"                        Write  granted(Start) => freestyle::machines::start;
    POST   "/compat/freestyle/v1/vms/{machine}/stop"                         Write  account        => freestyle::machines::stop;
    POST   "/compat/freestyle/v1/vms/{machine}/kill"                         Write  account        => freestyle::machines::kill;
    POST   "/compat/freestyle/v1/vms/{machine}/await"                        Stream account        => freestyle::machines::wait_for_exit;
    POST   "/compat/freestyle/v1/vms/{machine}/optimize"                     Read   account        => freestyle::machines::optimize;
    POST   "/compat/freestyle/v1/vms/{machine}/suspend"                      Read   account        => freestyle::machines::suspend;
    POST   "/compat/freestyle/v1/vms/{machine}/resize"                       Read   account        => freestyle::machines::resize;
    POST   "/compat/freestyle/v1/vms/{machine}/fork"                         Read   account        => freestyle::machines::fork;
    POST   "/compat/freestyle/v1/vms/{machine}/snapshot"                     Read   account        => freestyle::snapshots::of_machine;
    POST   "/compat/freestyle/v1/vms/{machine}/exec-await"                   Stream granted(Exec)  => freestyle::exec::run;
    GET    "/compat/freestyle/v1/vms/{machine}/files/{filepath}"             Stream granted(Files) => freestyle::files::read;
    PUT    "/compat/freestyle/v1/vms/{machine}/files/{filepath}"             Stream granted(Files) => freestyle::files::write;
    GET    "/compat/freestyle/v1/vms/{machine}/pty"                          Stream granted(Shell) => freestyle::pty::open;
    GET    "/compat/freestyle/v1/vms/{machine}/pty/sessions"                 Read   granted(Shell) => freestyle::pty::list;
    GET    "/compat/freestyle/v1/vms/{machine}/pty/sessions/{session}"       Stream granted(Shell) => freestyle::pty::attach;
    DELETE "/compat/freestyle/v1/vms/{machine}/pty/sessions/{session}"       Write  granted(Shell) => freestyle::pty::close;
    GET    "/compat/freestyle/identity/v1/identities"                        Read   account        => freestyle::identities::list;
    POST   "/compat/freestyle/identity/v1/identities"                        Write  account        => freestyle::identities::create;
    DELETE "/compat/freestyle/identity/v1/identities/{identity}"             Write  account        => freestyle::identities::delete;
    GET    "/compat/freestyle/identity/v1/identities/{identity}/permissions/vm"           Read  account => freestyle::permissions::list;
    GET    "/compat/freestyle/identity/v1/identities/{identity}/permissions/vm/{machine}" Read  account => freestyle::permissions::show;
    POST   "/compat/freestyle/identity/v1/identities/{identity}/permissions/vm/{machine}" Write account => freestyle::permissions::grant;
    PUT    "/compat/freestyle/identity/v1/identities/{identity}/permissions/vm/{machine}" Write account => freestyle::permissions::update;
    DELETE "/compat/freestyle/identity/v1/identities/{identity}/permissions/vm/{machine}" Write account => freestyle::permissions::revoke;
    GET    "/compat/freestyle/identity/v1/identities/{identity}/tokens"                   Read  account => freestyle::tokens::list;
    POST   "/compat/freestyle/identity/v1/identities/{identity}/tokens"                   Write account => freestyle::tokens::create;
    DELETE "/compat/freestyle/identity/v1/identities/{identity}/tokens/{token}"           Write account => freestyle::tokens::revoke;
    GET    "/compat/freestyle/domains/v1/domains"                            Read   account        => freestyle::domains::list;
    GET    "/compat/freestyle/domains/v1/mappings"                           Read   account        => freestyle::domains::list_mappings;
    POST   "/compat/freestyle/domains/v1/mappings/{domain}"                  Write  account        => freestyle::domains::map;
    DELETE "/compat/freestyle/domains/v1/mappings/{domain}"                  Write  account        => freestyle::domains::unmap;
    GET    "/compat/freestyle/domains/v1/verifications"                      Read   account        => freestyle::domains::list_verifications;
    POST   "/compat/freestyle/domains/v1/verifications"                      Write  account        => freestyle::domains::begin_verification;
    PUT    "/compat/freestyle/domains/v1/verifications"                      Write  account        => freestyle::domains::verify;
    DELETE "/compat/freestyle/domains/v1/verifications"                      Write  account        => freestyle::domains::end_verification;
    POST   "/compat/freestyle/domains/v1/certs/{domain}/wildcard"            Read   account        => freestyle::domains::certify;
}

/// Every row of the table.
pub fn rows() -> &'static [Row] {
    ROWS
}

pub(crate) fn all() -> impl Iterator<Item = Route> {
    ROWS.iter().zip(HANDLERS).map(|(row, handler)| Route { row, handler: *handler })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_row_says_the_method_and_path_of_its_handler() {
        let mut seen = BTreeSet::new();
        for route in all() {
            let (_, paths, _) = (route.handler)();
            let found: Vec<_> = paths
                .paths
                .iter()
                .flat_map(|(path, item)| {
                    let item = serde_json::to_value(item).unwrap();
                    let methods = ["get", "put", "post", "delete", "patch"];
                    let methods = methods.into_iter().filter(move |method| item.get(*method).is_some());
                    methods.map(move |method| (method.to_uppercase(), path.clone())).collect::<Vec<_>>()
                })
                .collect();
            assert_eq!(found, [(route.row.method.to_owned(), route.row.path.to_owned())]);
            assert!(seen.insert(found), "{} {} twice", route.row.method, route.row.path);
        }
    }

    #[test]
    fn whatever_a_lesser_caller_may_a_greater_one_may_too() {
        for row in rows() {
            assert!(row.root, "{} {}", row.method, row.path);
            assert!(row.account || !row.nobody, "{} {}", row.method, row.path);
            assert!(row.account || row.token.is_none(), "{} {}", row.method, row.path);
        }
    }
}
