//! `policy`: what may talk to what.

use std::io::Read;

use clap::Subcommand;
use warren_model::policy::read::MAX_BYTES;
use warren_model::policy::{Expect, Rule, Target};
use warren_model::problem::TextError;
use warren_model::wire::{
    AppliedPolicy, ApplyPolicy, Passages, PolicyDiff, PolicyInForce, PolicyRule, PolicySummary, RollBackPolicy,
    TestPolicy, TestedPolicy,
};

use super::Context;
use super::failure::{FAILED, Failure};
use super::output::{note, read};
use super::render::{printable, table, time};
use crate::client::error::ClientError;
use crate::client::route::Route;

/// How many failing tests the API lists at most.
const LISTED: usize = 100;

#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum PolicyCommand {
    /// Put a policy in force, and wait until it is enforced
    #[command(after_help = "\
The file is YAML or JSON. It is refused as a whole when anything in it is wrong or one of its tests fails; the policy that
was in force then stays so.

Examples:
  warren policy apply policy.yaml
  warren policy apply policy.yaml --dry-run     say what it would open, close and cut
  generate-policy | warren policy apply -")]
    Apply {
        /// The file, or - for stdin
        file: String,
        /// Only say what it would change
        #[arg(long)]
        dry_run: bool,
    },
    /// Show the policy in force as it was written, with the rules that are built in
    #[command(after_help = "\
Examples:
  warren policy show
  warren policy show --version 3 > policy.yaml
  warren policy show --json | jq '.builtin'")]
    Show {
        /// An earlier one; 0 is the empty policy
        #[arg(long, value_name = "N")]
        version: Option<u64>,
    },
    /// List the versions, the newest first
    #[command(after_help = "Examples:\n  warren policy history\n  warren policy history --limit 10")]
    History {
        /// Show at most so many
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        limit: Option<u32>,
    },
    /// Show how two versions differ, and what that opens and closes
    #[command(after_help = "\
Examples:
  warren policy diff                            the one in force against the one before it
  warren policy diff 3                          the one in force against version 3
  warren policy diff 3 5")]
    Diff {
        /// A version [default: the one before the other]
        a: Option<u64>,
        /// A later version [default: the one in force]
        b: Option<u64>,
    },
    /// Put an earlier version in force again, as a new version
    #[command(after_help = "\
Examples:
  warren policy rollback 3
  warren policy rollback 3 --dry-run
  warren policy rollback 0                      the empty policy")]
    Rollback {
        version: u64,
        /// Only say what it would change
        #[arg(long)]
        dry_run: bool,
    },
    /// Run the tests of a policy, and apply nothing
    #[command(after_help = "\
Ends with 1 when a test fails.

Examples:
  warren policy test                            those of the policy in force
  warren policy test policy.yaml")]
    Test {
        /// The file, or - for stdin [default: the policy in force]
        file: Option<String>,
    },
}

/// Runs the command and answers the exit status.
pub async fn run(context: &Context, command: PolicyCommand) -> Result<i32, Failure> {
    let Context { client, output } = context;
    match command {
        PolicyCommand::Apply { file, dry_run } => {
            let text = text_of(&file)?;
            if text.trim().is_empty() {
                return Err(Failure::Said(format!(
                    "{} is empty, and applying it would remove every rule: write {{}} to have none",
                    shown_name(&file)
                )));
            }
            let body = ApplyPolicy { text, dry_run: dry_run.then_some(true), based_on: None };
            let answer = client.put(&Route::new(&["policy"]), &body).await;
            applied(context, answer, shown_name(&file))?;
        }
        PolicyCommand::Rollback { version, dry_run } => {
            let body = RollBackPolicy { version, dry_run: dry_run.then_some(true) };
            let answer = client.post(&Route::new(&["policy", "rollback"]), &body).await;
            applied(context, answer, &format!("version {version}"))?;
        }
        PolicyCommand::Show { version: None } => {
            let answer = client.get(&Route::new(&["policy"])).await?;
            output.object(answer, render_policy)?;
        }
        PolicyCommand::Show { version: Some(version) } => {
            let answer = client.get(&Route::new(&["policy", "versions", &version.to_string()])).await?;
            output.object(answer, render_policy)?;
        }
        PolicyCommand::History { limit } => {
            let route = Route::new(&["policy", "versions"]);
            let page = client.list(&route, limit.map(|limit| limit as usize)).await?;
            output.list(page, "No policy was applied yet; `warren policy apply FILE` applies one.", render_history)?;
        }
        PolicyCommand::Diff { a, b } => {
            let route = Route::new(&["policy", "diff"]).maybe("from", a).maybe("to", b);
            output.object(client.get(&route).await?, render_diff)?;
        }
        PolicyCommand::Test { file } => {
            let text = file.as_deref().map(text_of).transpose()?;
            let name = file.as_deref().map_or("policy", shown_name);
            let answer = client.post(&Route::new(&["policy", "test"]), &TestPolicy { text }).await;
            let answer = placed(context, answer, name)?;
            let tested: TestedPolicy = read(answer.clone())?;
            if !output.json {
                said(name, &tested.failures);
            }
            output.object(answer, render_tested)?;
            if !tested.passed {
                return Ok(FAILED);
            }
        }
    }
    Ok(super::failure::DONE)
}

fn text_of(file: &str) -> Result<String, Failure> {
    let unreadable = |source| Failure::local(format!("cannot read {}", shown_name(file)), source);
    let mut bytes = Vec::new();
    let reader: Box<dyn Read> = match file {
        "-" => Box::new(std::io::stdin().lock()),
        path => Box::new(std::fs::File::open(path).map_err(unreadable)?),
    };
    reader.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() > MAX_BYTES {
        return Err(Failure::Said(format!(
            "{} is larger than {MAX_BYTES} bytes, which no policy may be",
            shown_name(file)
        )));
    }
    String::from_utf8(bytes).map_err(|_| Failure::Said(format!("{} is not text in UTF-8", shown_name(file))))
}

fn shown_name(file: &str) -> &str {
    if file == "-" { "stdin" } else { file }
}

fn applied(context: &Context, answer: Result<serde_json::Value, ClientError>, name: &str) -> Result<(), Failure> {
    let answer = placed(context, answer, name)?;
    if !context.output.json {
        let applied: AppliedPolicy = read(answer.clone())?;
        for warning in &applied.warnings {
            note(&format!("warren: warning: {}", printable(warning)));
        }
    }
    context.output.object(answer, render_applied)
}

/// Says what is wrong in a file where it is wrong.
fn placed(
    context: &Context,
    answer: Result<serde_json::Value, ClientError>,
    name: &str,
) -> Result<serde_json::Value, Failure> {
    match answer {
        Err(ClientError::Refused(refusal)) if !context.output.json => {
            let errors = refusal.document.get("errors").cloned().and_then(|errors| serde_json::from_value(errors).ok());
            let errors: Vec<TextError> = errors.unwrap_or_default();
            if errors.is_empty() {
                return Err(ClientError::Refused(refusal).into());
            }
            said(name, &errors);
            Err(Failure::Silent(FAILED))
        }
        answer => Ok(answer?),
    }
}

/// `FILE:LINE:COLUMN: message`, one a line.
fn said(name: &str, errors: &[TextError]) {
    for TextError { line, column, message } in errors {
        note(&format!("{name}:{line}:{column}: {}", printable(message)));
    }
}

fn short(hash: &str) -> &str {
    hash.get(..12).unwrap_or(hash)
}

fn render_applied(applied: &AppliedPolicy) -> String {
    let hash = short(&applied.hash);
    let Some(change) = &applied.change else {
        return match applied.unchanged {
            true => format!("version {} ({hash}) is in force already\n", applied.version),
            false => format!("version {} ({hash}) is in force\n", applied.version),
        };
    };
    let mut text = match applied.unchanged {
        true => format!("nothing would change: version {} ({hash}) has the same text\n", applied.version),
        false => format!("would be version {} ({hash})\n", applied.version),
    };
    text += &passages("opens", &change.opens);
    text += &passages("closes", &change.closes);
    if !applied.cuts.is_empty() {
        text += "cuts open connections:\n";
        for flow in &applied.cuts {
            text += &format!("  {} -> {} tcp/{}, allowed by {}\n", flow.machine, flow.name, flow.port, flow.rule);
        }
    }
    text
}

fn passages(heading: &str, passages: &Passages) -> String {
    if passages.items.is_empty() {
        return format!("{heading} nothing\n");
    }
    let mut text = format!("{heading}:\n");
    for passage in &passages.items {
        text += &printable(&format!("  {} -> {}  {}", passage.from, passage.to, passage.ports.join(" ")));
        text.push('\n');
    }
    if passages.more > 0 {
        text += &format!("  and {} more\n", passages.more);
    }
    text
}

/// The text as it was written, and the rest as comments, so that the whole is a policy again.
fn render_policy(policy: &PolicyInForce) -> String {
    let mut text = format!("# version {}, {}", policy.version, short(&policy.hash));
    match (policy.applied_at, &policy.key) {
        (Some(at), Some(key)) => text += &format!(", applied {} with {key}", time(at)),
        _ => text += ", which every account begins with",
    }
    if let Some(from) = policy.rolled_back_from {
        text += &format!(", version {from} again");
    }
    text.push('\n');
    for line in policy.text.lines() {
        text += &printable(&line.replace('\t', "  "));
        text.push('\n');
    }
    if !policy.builtin.is_empty() {
        text += "\n# Built in:\n";
        let rows = policy.builtin.iter().map(|rule| {
            let effect = effect(rule.effect).to_owned();
            vec![effect, rule.id.clone(), rule.network.clone().unwrap_or_default(), rule.description.clone()]
        });
        let shown = table(&["effect", "rule", "network", "what it says"], &[], rows);
        text.extend(shown.lines().map(|line| format!("#   {line}\n")));
    }
    for warning in &policy.warnings {
        text += &printable(&format!("# Warning: {warning}"));
        text.push('\n');
    }
    text
}

fn effect(effect: Expect) -> &'static str {
    match effect {
        Expect::Allow => "allow",
        Expect::Deny => "deny",
    }
}

fn render_history(versions: &[PolicySummary]) -> String {
    let rows = versions.iter().map(|version| {
        let note = match (version.current, version.rolled_back_from) {
            (true, Some(from)) => format!("in force; version {from} again"),
            (true, None) => "in force".to_owned(),
            (false, Some(from)) => format!("version {from} again"),
            (false, None) => String::new(),
        };
        vec![
            version.version.to_string(),
            time(version.applied_at),
            version.key_name.clone().unwrap_or_else(|| version.key.clone()),
            version.rules.to_string(),
            short(&version.hash).to_owned(),
            note,
        ]
    });
    table(&["version", "applied", "key", "rules", "hash", ""], &[0, 3], rows)
}

fn render_diff(diff: &PolicyDiff) -> String {
    let mut text = format!("version {} -> version {}\n", diff.from, diff.to);
    let mut line = |sign: &str, said: String| {
        text += &printable(&format!("{sign} {said}"));
        text.push('\n');
    };
    for network in &diff.networks {
        let said = |settings: &Option<_>| match settings {
            Some(settings) => serde_json::to_string(settings).unwrap_or_default(),
            None => "nothing".to_owned(),
        };
        line("~", format!("network {}: {} -> {}", network.network, said(&network.before), said(&network.after)));
    }
    diff.removed.iter().for_each(|removed| line("-", rule(removed)));
    for changed in &diff.changed {
        line("-", rule(&changed.before));
        line("+", rule(&changed.after));
    }
    diff.added.iter().for_each(|added| line("+", rule(added)));
    text += &passages("opens", &diff.opens);
    text + &passages("closes", &diff.closes)
}

fn rule(PolicyRule { effect, rule }: &PolicyRule) -> String {
    let word = if *effect == Expect::Allow { "allow" } else { "forbid" };
    let Rule { id, from, to, ports, .. } = rule;
    let to = match to {
        Target::Inside(subject) => subject.to_string(),
        Target::Outside(pattern) => format!("name {pattern}"),
    };
    let ports: Vec<_> = ports.iter().map(ToString::to_string).collect();
    let ports = if ports.is_empty() { "any".to_owned() } else { ports.join(" ") };
    let mut text = format!("{word} {id}: {from} -> {to}  {ports}");
    if let Some(application) = rule.application {
        let named = serde_json::to_value(application).ok();
        text += &format!("  as {}", named.as_ref().and_then(serde_json::Value::as_str).unwrap_or_default());
    }
    if let Some(expires) = rule.expires {
        text += &format!("  until {}", time(expires));
    }
    if let Some(owner) = &rule.owner {
        text += &format!("  owner {owner}");
    }
    text
}

fn render_tested(tested: &TestedPolicy) -> String {
    match (tested.tests, tested.passed) {
        (0, _) => "the policy has no tests\n".to_owned(),
        (1, true) => "1 test passes\n".to_owned(),
        (count, true) => format!("{count} tests pass\n"),
        // Beyond, failures are not listed.
        (count, false) if tested.failures.len() >= LISTED && (tested.failures.len() as u64) < count => {
            format!("at least {} of {count} tests fail\n", tested.failures.len())
        }
        (count, false) => format!("{} of {count} tests fail\n", tested.failures.len()),
    }
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
