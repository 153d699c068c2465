//! `explain` and `reach`: what the policy in force says.

use clap::Args;
use warren_model::policy::Expect;
use warren_model::wire::{Explain, Explanation, Reach};

use super::Context;
use super::failure::Failure;
use super::render::{printable, sheet, table};
use crate::client::route::Route;

#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(after_help = "\
FROM and TO are a machine, NETWORK/MACHINE, NETWORK/tag:TAG, net:NETWORK, an address or a CIDR; TO may also be the name of a
host outside. The operators of `warren vpn` are NETWORK/tag:operator, and one session is its id or name, session-…, held to what
it was opened for. Where they mean several, the verdict is allow only when every pair is allowed; the first that is not is
shown.

Examples:
  warren explain worker db --port tcp/5432
  warren explain dev/tag:agent net:prod --port tcp/5432
  warren explain worker api.github.com --port tcp/443 --json | jq .missing_rule
  warren explain worker 169.254.169.254 --port tcp/80
  warren explain dev/tag:operator worker --port tcp/8080
  warren explain session-7k2m9q4x worker --port tcp/8080")]
pub struct ExplainArgs {
    /// Who sends
    pub from: String,
    /// Where it goes
    pub to: String,
    /// tcp/5432, udp/5000-5010, tcp or icmp
    #[arg(long, short, value_name = "PORT")]
    pub port: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
#[command(after_help = "\
Examples:
  warren reach
  warren reach --network dev
  warren reach --json | jq '.items[] | {from, open: [.to[] | select(.open != [])]}'")]
pub struct ReachArgs {
    /// Only what machines in this network reach, by name or id
    #[arg(long, value_name = "NAME")]
    pub network: Option<String>,
}

pub async fn explain(context: &Context, args: ExplainArgs) -> Result<(), Failure> {
    let body = Explain { from: args.from, to: args.to, port: args.port };
    let answer = context.client.post(&Route::new(&["explain"]), &body).await?;
    context.output.object(answer, render_explanation)
}

pub async fn reach(context: &Context, args: ReachArgs) -> Result<(), Failure> {
    let route = Route::new(&["reach"]).maybe("network", args.network.as_ref());
    let page = context.client.list(&route, None).await?;
    context.output.list(page, "There are no machines; `warren machine create` makes one.", render_reach)
}

fn render_explanation(explanation: &Explanation) -> String {
    let verdict = match explanation.verdict {
        Expect::Allow => "allow",
        Expect::Deny => "deny",
    };
    let Explanation { from, to, port, .. } = explanation;
    let mut text = printable(&format!("{verdict}  {from} -> {to}  {port}"));
    text.push('\n');
    let of = match explanation.pairs {
        0 | 1 => String::new(),
        pairs => format!("{pairs} pairs"),
    };
    text += &sheet(&[
        ("because", explanation.reason.clone()),
        ("rule", explanation.rule.clone().unwrap_or_else(|| "none".to_owned())),
        ("path", explanation.path.join(" -> ")),
        ("of", of),
        ("policy", explanation.policy.clone()),
    ]);
    if !explanation.near_misses.is_empty() {
        text += "near misses:\n";
        for miss in &explanation.near_misses {
            text += &printable(&format!("  {}: {}", miss.rule, miss.why));
            text.push('\n');
        }
    }
    if let Some(rule) = &explanation.missing_rule {
        // JSON in one line is YAML in flow style.
        let rule = serde_json::to_string(rule).unwrap_or_default();
        text += &format!("this rule under `allow` would allow it:\n  - {}\n", printable(&rule));
    }
    text
}

fn render_reach(reach: &[Reach]) -> String {
    let open = |open: &[String]| if open.is_empty() { "-".to_owned() } else { open.join(" ") };
    let mut rows = Vec::new();
    for sender in reach {
        for to in &sender.to {
            let declared = to.declared.iter().map(|port| {
                let verdict = if port.verdict == Expect::Allow { "yes" } else { "no" };
                format!("{} {verdict}", port.name)
            });
            let declared: Vec<_> = declared.collect();
            rows.push(vec![sender.from.clone(), to.to.clone(), open(&to.open), declared.join(", ")]);
        }
        for name in &sender.names {
            rows.push(vec![sender.from.clone(), name.name.clone(), open(&name.open), name.rules.join(", ")]);
        }
        let internet = if sender.internet { "open" } else { "-" };
        rows.push(vec![sender.from.clone(), "the public internet".to_owned(), internet.to_owned(), String::new()]);
    }
    table(&["from", "to", "open", "declared ports or rules"], &[], rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use warren_model::wire::{ReachedMachine, ReachedName, ReachedPort};

    #[test]
    fn an_explanation_says_the_verdict_first_and_the_missing_rule_last() {
        let rule = r#"{"id":"dev-agent-to-prod-db","from":"dev/agent","to":"prod/db","ports":["tcp/5432"]}"#;
        let explanation = Explanation {
            verdict: Expect::Deny,
            rule: None,
            reason: "no rule allows dev/agent to reach prod/db on tcp/5432".into(),
            from: "dev/agent".into(),
            to: "prod/db".into(),
            port: "tcp/5432".into(),
            pairs: 4,
            missing_rule: serde_json::from_str(rule).unwrap(),
            near_misses: serde_json::from_str(r#"[{"rule":"agent-web","why":"it is for tcp/443"}]"#).unwrap(),
            path: vec!["dev/agent (10.1.1.10)".into(), "network dev: refused".into()],
            policy: "ab12".into(),
        };
        insta::assert_snapshot!(render_explanation(&explanation), @r#"
        deny  dev/agent -> prod/db  tcp/5432
        because  no rule allows dev/agent to reach prod/db on tcp/5432
        rule     none
        path     dev/agent (10.1.1.10) -> network dev: refused
        of       4 pairs
        policy   ab12
        near misses:
          agent-web: it is for tcp/443
        this rule under `allow` would allow it:
          - {"id":"dev-agent-to-prod-db","from":"dev/agent","to":"prod/db","ports":["tcp/5432"]}
        "#);
    }

    #[test]
    fn the_matrix_has_a_row_for_each_pair_and_each_name() {
        let reach = Reach {
            from: "dev/agent".into(),
            machine: "agent".into(),
            network: "dev".into(),
            to: vec![
                ReachedMachine {
                    to: "dev/db".into(),
                    open: vec!["tcp/5432".into(), "icmp".into()],
                    declared: vec![ReachedPort {
                        name: "sql".into(),
                        port: "tcp/5432".into(),
                        verdict: Expect::Allow,
                        rule: Some("agent-db".into()),
                    }],
                },
                ReachedMachine { to: "prod/db".into(), open: vec![], declared: vec![] },
            ],
            names: vec![ReachedName {
                name: "*.github.com".into(),
                open: vec!["tcp/443".into()],
                rules: vec!["gh".into()],
            }],
            internet: false,
        };
        insta::assert_snapshot!(render_reach(&[reach]), @r"
        FROM       TO                   OPEN           DECLARED PORTS OR RULES
        dev/agent  dev/db               tcp/5432 icmp  sql yes
        dev/agent  prod/db              -
        dev/agent  *.github.com         tcp/443        gh
        dev/agent  the public internet  -
        ");
    }
}
