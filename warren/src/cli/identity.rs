//! `identity` and `token`: who may operate machines without a key of the account.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{ArgGroup, Args, Subcommand};
use warren_model::Verb;
use warren_model::wire::{CreateIdentity, CreateToken, Grant, GrantAccess, Identity, Token, UpdateIdentity};

use super::failure::Failure;
use super::render::{sheet, table, time};
use super::{Context, values};
use crate::client::route::Route;

#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum IdentityCommand {
    /// Make an identity, which may do nothing until something is granted to it
    #[command(after_help = "\
Examples:
  warren identity create alice
  warren identity create alice --metadata user=4711 --metadata plan=pro")]
    Create {
        /// 1 to 63 of a-z, 0-9 and '-'; without a name it is known by its id
        name: Option<String>,
        /// A note of your own, again for more
        #[arg(long, value_name = "KEY=VALUE", value_parser = values::pair)]
        metadata: Vec<(String, String)>,
    },
    /// List the account's identities
    #[command(after_help = "Examples:\n  warren identity ls")]
    Ls {
        /// Show at most so many
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        limit: Option<u32>,
    },
    /// Show an identity, and what was granted to it
    #[command(after_help = "Examples:\n  warren identity show alice")]
    Show {
        /// Its name or id
        identity: String,
    },
    /// Rename an identity, or replace its metadata
    #[command(group = ArgGroup::new("change").required(true).multiple(true).args(["name", "metadata"]), after_help = "\
Examples:
  warren identity set alice --name bob
  warren identity set alice --metadata plan=free")]
    Set {
        /// Its name or id
        identity: String,
        /// What it is to be called: 1 to 63 of a-z, 0-9 and '-'
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
        /// All its notes, again for more
        #[arg(long, value_name = "KEY=VALUE", value_parser = values::pair)]
        metadata: Vec<(String, String)>,
    },
    /// Delete an identity with its grants; its tokens stop working at once
    #[command(after_help = "Examples:\n  warren identity rm alice")]
    Rm {
        /// Its name or id
        identity: String,
    },
    /// Let an identity do something with a machine, or with every machine of a network
    #[command(after_help = "\
  view   list and show the machine, with its console and traffic
  exec   run commands without a terminal
  shell  run commands with a terminal
  files  read and write its files, as root in the machine
  start  start it; goes with view
  stop   stop it, and with start also restart; goes with view
  ports  see which ports are listened on

What is granted takes the place of what was granted on the same machine or network before. Without --verbs that is
everything but stop.

Examples:
  warren identity grant alice worker
  warren identity grant alice worker --verbs exec,files
  warren identity grant alice worker --verbs exec --user www-data
  warren identity grant alice --network agents --verbs view")]
    Grant(GrantArgs),
    /// Take back what was granted, at once and in open streams too
    #[command(
        after_help = "Examples:\n  warren identity revoke alice worker\n  warren identity revoke alice --network agents"
    )]
    Revoke(TargetArgs),
    /// List what was granted to an identity
    #[command(after_help = "Examples:\n  warren identity grants alice")]
    Grants {
        /// Its name or id
        identity: String,
        /// Show at most so many
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        limit: Option<u32>,
    },
}

/// Who, and on what.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct TargetArgs {
    /// The identity's name or id
    identity: String,
    /// The machine's name or id
    #[arg(required_unless_present = "network", conflicts_with = "network")]
    machine: Option<String>,
    /// Every machine of this network, those that come later too
    #[arg(long, value_name = "NETWORK")]
    network: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct GrantArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// What may be done, separated by commas [default: everything but stop]
    #[arg(long, value_name = "VERBS", value_delimiter = ',', value_parser = verb())]
    verbs: Vec<Verb>,
    /// A user of the machine that commands may run as, again for more [default: every one]
    #[arg(long = "user", value_name = "USER")]
    users: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum TokenCommand {
    /// Make a token of an identity, which is shown only now
    #[command(after_help = "\
A client sends it like a key: as `Authorization: Bearer TOKEN`, or in WARREN_API_KEY.

Examples:
  warren token create alice
  warren token create alice --ttl 1h --json | jq -r .token")]
    Create {
        /// The identity's name or id
        identity: String,
        /// How long it is valid, such as 30m, 12h or 90d; 1s to 365d [default: 24h]
        #[arg(long, value_name = "TIME", value_parser = values::duration)]
        ttl: Option<Duration>,
    },
    /// List an identity's tokens, without their secrets
    #[command(after_help = "Examples:\n  warren token ls alice")]
    Ls {
        /// The identity's name or id
        identity: String,
        /// Show at most so many
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        limit: Option<u32>,
    },
    /// Make a token invalid, at once and for good
    #[command(after_help = "Examples:\n  warren token revoke tok_01jd8m…")]
    Revoke {
        /// Its id
        token: String,
    },
}

/// A verb, with all of them for those who complete or ask for help.
fn verb() -> impl TypedValueParser<Value = Verb> {
    PossibleValuesParser::new(Verb::ALL.map(Verb::as_str)).try_map(|text| text.parse::<Verb>())
}

impl TargetArgs {
    fn route(&self) -> Route {
        match (&self.machine, &self.network) {
            (_, Some(network)) => Route::new(&["identities", &self.identity, "networks", network]),
            (machine, None) => {
                Route::new(&["identities", &self.identity, "machines", machine.as_deref().unwrap_or_default()])
            }
        }
    }

    fn called(&self) -> String {
        match (&self.machine, &self.network) {
            (_, Some(network)) => format!("network {network}"),
            (machine, None) => format!("machine {}", machine.as_deref().unwrap_or_default()),
        }
    }
}

pub async fn identity(context: &Context, command: IdentityCommand) -> Result<(), Failure> {
    let Context { client, output } = context;
    match command {
        IdentityCommand::Create { name, metadata } => {
            let body = CreateIdentity { name, metadata: metadata.into_iter().collect() };
            let answer = client.post(&Route::new(&["identities"]), &body).await?;
            output.object(answer, render_identity)
        }
        IdentityCommand::Ls { limit } => {
            let page = client.list(&Route::new(&["identities"]), limit.map(|limit| limit as usize)).await?;
            output.list(page, "There are no identities; `warren identity create` makes one.", render_identities)
        }
        IdentityCommand::Show { identity } => {
            let mut answer = client.get(&Route::new(&["identities", &identity])).await?;
            let route = Route::new(&["identities", &identity, "grants"]);
            if output.json {
                answer["grants"] = client.list(&route, None).await?.items.into();
                return output.json(&answer);
            }
            output.object(answer, render_identity)?;
            grants(context, &identity, None).await
        }
        IdentityCommand::Set { identity, name, metadata } => {
            let metadata: BTreeMap<_, _> = metadata.into_iter().collect();
            let body = UpdateIdentity { name, metadata: Some(metadata).filter(|metadata| !metadata.is_empty()) };
            let answer = client.patch(&Route::new(&["identities", &identity]), &body).await?;
            output.object(answer, render_identity)
        }
        IdentityCommand::Rm { identity } => {
            let answer = client.delete(&Route::new(&["identities", &identity])).await?;
            output.done(answer, &format!("deleted {identity}"))
        }
        IdentityCommand::Grant(GrantArgs { target, verbs, users }) => {
            let verbs: BTreeSet<_> = verbs.into_iter().collect();
            let users: BTreeSet<_> = users.into_iter().collect();
            let body = GrantAccess {
                verbs: Some(verbs).filter(|verbs| !verbs.is_empty()),
                users: Some(users).filter(|users| !users.is_empty()),
            };
            let answer = client.put(&target.route(), &body).await?;
            output.object(answer, |grant: &Grant| render_grants(std::slice::from_ref(grant)))
        }
        IdentityCommand::Revoke(target) => {
            let answer = client.delete(&target.route()).await?;
            output.done(answer, &format!("{} lost what was granted on {}", target.identity, target.called()))
        }
        IdentityCommand::Grants { identity, limit } => grants(context, &identity, limit).await,
    }
}

async fn grants(context: &Context, identity: &str, limit: Option<u32>) -> Result<(), Failure> {
    let route = Route::new(&["identities", identity, "grants"]);
    let page = context.client.list(&route, limit.map(|limit| limit as usize)).await?;
    context.output.list(page, "Nothing was granted; `warren identity grant` does.", render_grants)
}

pub async fn token(context: &Context, command: TokenCommand) -> Result<(), Failure> {
    let Context { client, output } = context;
    match command {
        TokenCommand::Create { identity, ttl } => {
            let body = CreateToken { expires_in_seconds: ttl.map(|length| length.as_secs()) };
            let answer = client.post(&Route::new(&["identities", &identity, "tokens"]), &body).await?;
            output.object(answer, render_token)
        }
        TokenCommand::Ls { identity, limit } => {
            let route = Route::new(&["identities", &identity, "tokens"]);
            let page = client.list(&route, limit.map(|limit| limit as usize)).await?;
            output.list(page, "The identity has no tokens; `warren token create` makes one.", render_tokens)
        }
        TokenCommand::Revoke { token } => {
            if token.starts_with("wt_") {
                let text = "that is a token's secret: name it by its id, tok_…, which `warren token ls` shows";
                return Err(Failure::Usage(text.to_owned()));
            }
            let answer = client.delete(&Route::new(&["tokens", &token])).await?;
            output.done(answer, &format!("revoked {token}"))
        }
    }
}

fn render_identity(identity: &Identity) -> String {
    let notes: Vec<_> = identity.metadata.iter().map(|(key, value)| format!("{key}={value}")).collect();
    sheet(&[
        ("id", identity.id.clone()),
        ("name", identity.name.clone().unwrap_or_default()),
        ("metadata", notes.join(" ")),
        ("created", time(identity.created_at)),
    ])
}

fn render_identities(identities: &[Identity]) -> String {
    let row = |identity: &Identity| {
        vec![identity.name.clone().unwrap_or_default(), identity.id.clone(), time(identity.created_at)]
    };
    table(&["name", "id", "created"], &[], identities.iter().map(row))
}

fn render_grants(grants: &[Grant]) -> String {
    let row = |grant: &Grant| {
        let on = match (&grant.machine, &grant.network) {
            (Some(machine), _) => format!("machine {}", machine.name),
            (None, Some(network)) => format!("network {}", network.name),
            (None, None) => String::new(),
        };
        let verbs: Vec<_> = grant.verbs.iter().map(|verb| verb.as_str()).collect();
        let users = grant.users.as_ref().map(|users| users.iter().map(String::as_str).collect::<Vec<_>>().join(","));
        vec![on, verbs.join(","), users.unwrap_or_else(|| "every user".to_owned()), time(grant.granted_at)]
    };
    table(&["on", "verbs", "users", "granted"], &[], grants.iter().map(row))
}

fn render_token(token: &Token) -> String {
    sheet(&[
        ("id", token.id.clone()),
        ("identity", token.identity.clone()),
        ("expires", time(token.expires_at)),
        ("token", token.token.as_deref().map(|token| format!("{token}  (shown only now)")).unwrap_or_default()),
    ])
}

fn render_tokens(tokens: &[Token]) -> String {
    let row = |token: &Token| {
        let end = match token.revoked_at {
            Some(at) => format!("revoked {}", time(at)),
            None => time(token.expires_at),
        };
        vec![token.id.clone(), time(token.created_at), token.last_used_at.map_or_else(|| "never".to_owned(), time), end]
    };
    table(&["id", "created", "last used", "ends"], &[], tokens.iter().map(row))
}

#[cfg(test)]
mod tests {
    use super::*;
    use warren_model::wire::Reference;

    fn at(text: &str) -> jiff::Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn grants_show_what_may_be_done_and_as_whom() {
        let one = Grant {
            identity: "idn_01".into(),
            machine: Some(Reference { id: "mch_01".into(), name: "worker".into() }),
            network: None,
            verbs: BTreeSet::from([Verb::Exec, Verb::View]),
            users: Some(BTreeSet::from(["www-data".into()])),
            granted_at: at("2026-11-20T09:30:00Z"),
            granted_by: "key_01".into(),
        };
        let other = Grant {
            machine: None,
            network: Some(Reference { id: "net_01".into(), name: "agents".into() }),
            users: None,
            ..one.clone()
        };
        insta::assert_snapshot!(render_grants(&[one, other]), @r"
        ON              VERBS      USERS       GRANTED
        machine worker  view,exec  www-data    2026-11-20 09:30:00Z
        network agents  view,exec  every user  2026-11-20 09:30:00Z
        ");
    }

    #[test]
    fn a_token_shows_its_secret_once() {
        let mut token = Token {
            id: "tok_01".into(),
            identity: "idn_01".into(),
            created_at: at("2026-11-20T09:30:00Z"),
            expires_at: at("2026-11-21T09:30:00Z"),
            last_used_at: None,
            revoked_at: None,
            token: Some("wt_secret".into()),
            detail: None,
        };
        insta::assert_snapshot!(render_token(&token), @r"
        id        tok_01
        identity  idn_01
        expires   2026-11-21 09:30:00Z
        token     wt_secret  (shown only now)
        ");
        token.token = None;
        let revoked = Token { revoked_at: Some(at("2026-11-20T10:00:00Z")), ..token.clone() };
        insta::assert_snapshot!(render_tokens(&[token, revoked]), @r"
        ID      CREATED               LAST USED  ENDS
        tok_01  2026-11-20 09:30:00Z  never      2026-11-21 09:30:00Z
        tok_01  2026-11-20 09:30:00Z  never      revoked 2026-11-20 10:00:00Z
        ");
    }
}
