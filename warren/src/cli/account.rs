//! `account`, `key`, `whoami`, `version`.

use std::time::Duration;

use clap::Subcommand;
use serde_json::json;
use warren_model::wire::{Account, CreateAccount, CreateKey, Key, ServerInfo};

use super::failure::Failure;
use super::render::{maybe_time, sheet, table, time};
use super::{Context, values};
use crate::client::route::Route;

#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum AccountCommand {
    /// Make an account, and its first key, which is shown only now
    #[command(after_help = "Examples:\n  warren account create acme\n  warren account create acme --json | jq -r .key")]
    Create {
        /// 1 to 63 of a-z, 0-9 and '-'
        name: String,
    },
    /// List the accounts
    #[command(after_help = "Examples:\n  warren account ls")]
    Ls {
        /// Show at most so many
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        limit: Option<u32>,
    },
    /// Show an account
    #[command(after_help = "Examples:\n  warren account show acme")]
    Show {
        /// Its name or id
        #[arg(value_name = "ACCOUNT")]
        shown: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum KeyCommand {
    /// Make a key, which is shown only now
    #[command(after_help = "\
Examples:
  warren key create --name ci
  warren key create --expires-in 12h --json | jq -r .key
  warren --account acme key create              for another account, with the root key")]
    Create {
        /// What it is for: 1 to 63 of a-z, 0-9 and '-'
        #[arg(long)]
        name: Option<String>,
        /// When it ends to be valid, such as 30m, 12h or 90d; 1m to 365d, and never when absent
        #[arg(long, value_name = "TIME", value_parser = values::duration)]
        expires_in: Option<Duration>,
    },
    /// List the account's keys, without their secrets
    #[command(after_help = "Examples:\n  warren key ls")]
    Ls {
        /// Show at most so many
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        limit: Option<u32>,
    },
    /// Make a key invalid, at once and for good
    #[command(after_help = "Examples:\n  warren key revoke key_01jd8m…")]
    Revoke {
        /// Its id
        #[arg(value_name = "KEY")]
        revoked: String,
    },
}

pub async fn account(context: &Context, command: AccountCommand) -> Result<(), Failure> {
    let Context { client, output } = context;
    match command {
        AccountCommand::Create { name } => {
            let answer = client.post(&Route::new(&["accounts"]), &CreateAccount { name }).await?;
            output.object(answer, render_account)
        }
        AccountCommand::Ls { limit } => {
            let page = client.list(&Route::new(&["accounts"]), limit.map(|limit| limit as usize)).await?;
            output.list(page, "There are no accounts.", render_accounts)
        }
        AccountCommand::Show { shown } => {
            let answer = client.get(&Route::new(&["accounts", &shown])).await?;
            output.object(answer, render_account)
        }
    }
}

pub async fn key(context: &Context, command: KeyCommand) -> Result<(), Failure> {
    let Context { client, output } = context;
    match command {
        KeyCommand::Create { name, expires_in } => {
            let body = CreateKey { name, expires_in_seconds: expires_in.map(|length| length.as_secs()) };
            let answer = client.post(&Route::new(&["keys"]), &body).await?;
            output.object(answer, render_key)
        }
        KeyCommand::Ls { limit } => {
            let page = client.list(&Route::new(&["keys"]), limit.map(|limit| limit as usize)).await?;
            output.list(page, "The account has no keys; `warren key create` makes one.", render_keys)
        }
        KeyCommand::Revoke { revoked } => {
            let answer = client.delete(&Route::new(&["keys", &revoked])).await?;
            output.done(answer, &format!("revoked {revoked}"))
        }
    }
}

pub async fn whoami(context: &Context) -> Result<(), Failure> {
    let answer = context.client.get(&Route::new(&["whoami"])).await?;
    context.output.object(answer, render_whoami)
}

/// The version of this command; the server's too, when it answers.
pub async fn version(context: &Context) -> Result<(), Failure> {
    let own = env!("CARGO_PKG_VERSION");
    let server = context.client.get(&Route::new(&["whoami"])).await.ok();
    let server = server.and_then(|answer| answer.get("version")?.as_str().map(str::to_owned));
    if context.output.json {
        return context.output.json(&json!({ "version": own, "server": server }));
    }
    context.output.text(&render_version(own, server.as_deref()))
}

fn render_account(account: &Account) -> String {
    sheet(&[
        ("id", account.id.clone()),
        ("name", account.name.clone()),
        ("created", time(account.created_at)),
        ("key", secret(account.key.as_deref())),
    ])
}

fn render_accounts(accounts: &[Account]) -> String {
    let rows = accounts.iter().map(|account| vec![account.name.clone(), account.id.clone(), time(account.created_at)]);
    table(&["name", "id", "created"], &[], rows)
}

fn render_key(key: &Key) -> String {
    sheet(&[
        ("id", key.id.clone()),
        ("name", key.name.clone().unwrap_or_default()),
        ("created", time(key.created_at)),
        ("expires", maybe_time(key.expires_at)),
        ("key", secret(key.key.as_deref())),
    ])
}

fn render_keys(keys: &[Key]) -> String {
    let row = |key: &Key| {
        let end = match (key.revoked_at, key.expires_at) {
            (Some(at), _) => format!("revoked {}", time(at)),
            (None, Some(at)) => time(at),
            (None, None) => "never".to_owned(),
        };
        vec![
            key.id.clone(),
            key.name.clone().unwrap_or_default(),
            time(key.created_at),
            key.last_used_at.map_or_else(|| "never".to_owned(), time),
            end,
        ]
    };
    table(&["id", "name", "created", "last used", "ends"], &[], keys.iter().map(row))
}

fn render_whoami(info: &ServerInfo) -> String {
    sheet(&[
        ("account", format!("{} ({})", info.account.name, info.account.id)),
        (
            "key",
            info.key.as_ref().map(|key| format!("{key}{}", if info.root { ", root" } else { "" })).unwrap_or_default(),
        ),
        ("identity", info.identity.clone().unwrap_or_default()),
        ("token", info.token.clone().unwrap_or_default()),
        ("installation", info.installation.clone()),
        ("server", format!("warren {}", info.version)),
    ])
}

fn render_version(own: &str, server: Option<&str>) -> String {
    match server {
        Some(server) => format!("warren {own}\nserver {server}\n"),
        None => format!("warren {own}\n"),
    }
}

fn secret(key: Option<&str>) -> String {
    key.map(|key| format!("{key}  (shown only now)")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use warren_model::wire::Reference;

    fn at(text: &str) -> jiff::Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn an_account_shows_its_key_once() {
        let mut account = Account {
            id: "acc_01".into(),
            name: "acme".into(),
            created_at: at("2026-11-20T09:30:00Z"),
            key: Some("wrn_secret".into()),
            detail: None,
        };
        insta::assert_snapshot!(render_account(&account), @r"
        id       acc_01
        name     acme
        created  2026-11-20 09:30:00Z
        key      wrn_secret  (shown only now)
        ");
        account.key = None;
        insta::assert_snapshot!(render_accounts(&[account]), @r"
        NAME  ID      CREATED
        acme  acc_01  2026-11-20 09:30:00Z
        ");
    }

    #[test]
    fn keys_show_how_they_end() {
        let key = |id: &str| Key {
            id: id.into(),
            name: None,
            created_at: at("2026-11-20T09:30:00Z"),
            expires_at: None,
            last_used_at: None,
            revoked_at: None,
            key: None,
            detail: None,
        };
        let mut expiring = key("key_02");
        expiring.name = Some("ci".into());
        expiring.expires_at = Some(at("2027-01-01T00:00:00Z"));
        expiring.last_used_at = Some(at("2026-11-21T00:00:00Z"));
        let mut revoked = expiring.clone();
        revoked.revoked_at = Some(at("2026-11-22T00:00:00Z"));
        insta::assert_snapshot!(render_keys(&[key("key_01"), expiring, revoked]), @r"
        ID      NAME  CREATED               LAST USED             ENDS
        key_01        2026-11-20 09:30:00Z  never                 never
        key_02  ci    2026-11-20 09:30:00Z  2026-11-21 00:00:00Z  2027-01-01 00:00:00Z
        key_02  ci    2026-11-20 09:30:00Z  2026-11-21 00:00:00Z  revoked 2026-11-22 00:00:00Z
        ");
    }

    #[test]
    fn whoami_tells_the_account_and_the_key() {
        let info = ServerInfo {
            version: "0.1.0".into(),
            installation: "abcde".into(),
            account: Reference { id: "acc_01".into(), name: "default".into() },
            key: Some("key_01".into()),
            root: true,
            identity: None,
            token: None,
        };
        insta::assert_snapshot!(render_whoami(&info), @r"
        account       default (acc_01)
        key           key_01, root
        installation  abcde
        server        warren 0.1.0
        ");
    }
}
