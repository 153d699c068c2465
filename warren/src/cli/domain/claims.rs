//! `domain verify`, `claims` and `disclaim`: whose a name is.

use warren_model::wire::{ClaimDomain, ClaimState, DomainClaim};

use crate::cli::Context;
use crate::cli::failure::{self, Failure};
use crate::cli::output::{note, read};
use crate::cli::render::{maybe_time, printable, sheet, table};
use crate::client::route::Route;

/// Claims a name, or looks for the record of one that was claimed before.
///
/// # Errors
/// [`failure::NOT_YET`] while the name is not verified; what to do has been said then.
pub async fn verify(context: &Context, host: String) -> Result<(), Failure> {
    let Context { client, output } = context;
    let answer = client.post(&Route::new(&["domain-claims"]), &ClaimDomain { host }).await?;
    let claim: DomainClaim = read(answer.clone())?;
    output.object(answer, render_claim)?;
    if claim.state == ClaimState::Verified {
        return Ok(());
    }
    if !output.json {
        note(&todo(&claim));
    }
    Err(Failure::Silent(failure::NOT_YET))
}

pub async fn list(context: &Context, limit: Option<u32>) -> Result<(), Failure> {
    let page = context.client.list(&Route::new(&["domain-claims"]), limit.map(|limit| limit as usize)).await?;
    context.output.list(page, "No names were claimed; `warren domain verify HOST` does.", render_claims)
}

pub async fn disclaim(context: &Context, host: &str) -> Result<(), Failure> {
    let answer = context.client.delete(&Route::new(&["domain-claims", host])).await?;
    context.output.done(answer, &format!("dropped the claim to {host}"))
}

/// What verifies a name that is not verified yet.
fn todo(claim: &DomainClaim) -> String {
    let set = match claim.detail {
        None => "Set this TXT record in the DNS of the domain",
        Some(_) => "See that this TXT record is set in the DNS of the domain, and give it time to spread",
    };
    format!(
        "{set}. Then run this again:\n  warren domain verify {}\nThe server asks its own resolvers for the record: those of \
         --resolver of `warren up`, else those of its host.\nNot verified yet (exit status {}).",
        printable(&claim.host),
        failure::NOT_YET
    )
}

fn state(claim: &DomainClaim) -> &'static str {
    match claim.state {
        ClaimState::Pending => "pending",
        ClaimState::Verified => "verified",
    }
}

fn render_claim(claim: &DomainClaim) -> String {
    sheet(&[
        ("host", claim.host.clone()),
        ("state", state(claim).to_owned()),
        ("type", "TXT".to_owned()),
        ("name", claim.record.name.clone()),
        ("value", claim.record.value.clone()),
        ("missing", claim.detail.clone().unwrap_or_default()),
        ("verified", maybe_time(claim.verified_at)),
    ])
}

fn render_claims(claims: &[DomainClaim]) -> String {
    let row = |claim: &DomainClaim| {
        vec![claim.host.clone(), state(claim).to_owned(), claim.record.name.clone(), claim.record.value.clone()]
    };
    table(&["host", "state", "txt record", "value"], &[], claims.iter().map(row))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn claim(state: &str, detail: Option<&str>) -> DomainClaim {
        serde_json::from_value(json!({
            "host": "example.com",
            "state": state,
            "record": { "name": "_warren.example.com", "value": "warren-verification=0f" },
            "detail": detail,
            "created_at": "2026-11-20T09:30:00Z",
            "verified_at": (state == "verified").then_some("2026-11-20T09:31:00Z"),
        }))
        .unwrap()
    }

    #[test]
    fn a_name_that_is_not_verified_says_what_to_set_who_is_asked_and_what_is_next() {
        let new = claim("pending", None);
        insta::assert_snapshot!(render_claim(&new) + &todo(&new), @r"
        host      example.com
        state     pending
        type      TXT
        name      _warren.example.com
        value     warren-verification=0f
        Set this TXT record in the DNS of the domain. Then run this again:
          warren domain verify example.com
        The server asks its own resolvers for the record: those of --resolver of `warren up`, else those of its host.
        Not verified yet (exit status 4).
        ");
        let looked = claim("pending", Some("_warren.example.com does not exist (NXDOMAIN)"));
        insta::assert_snapshot!(render_claim(&looked) + &todo(&looked), @r"
        host      example.com
        state     pending
        type      TXT
        name      _warren.example.com
        value     warren-verification=0f
        missing   _warren.example.com does not exist (NXDOMAIN)
        See that this TXT record is set in the DNS of the domain, and give it time to spread. Then run this again:
          warren domain verify example.com
        The server asks its own resolvers for the record: those of --resolver of `warren up`, else those of its host.
        Not verified yet (exit status 4).
        ");
    }

    #[test]
    fn a_name_that_is_verified_says_since_when() {
        insta::assert_snapshot!(render_claim(&claim("verified", None)), @r"
        host      example.com
        state     verified
        type      TXT
        name      _warren.example.com
        value     warren-verification=0f
        verified  2026-11-20 09:31:00Z
        ");
    }
}
