//! `denials`, and what a command in a machine was refused.

use clap::Args;
use http::HeaderValue;
use serde_json::Value;
use warren_model::policy::Protocol;
use warren_model::wire::{Denial, Page};
use warren_model::{MachineId, SessionId};

use super::Context;
use super::failure::Failure;
use super::follow::follow;
use super::output::{note, read};
use super::render::{printable, time};
use crate::client::route::Route;

/// What is shown unless told otherwise.
const DEFAULT_LIMIT: u32 = 100;

#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
#[command(after_help = "\
Each says which rule forbade it, or that none allowed it; --json also has the rule that would allow it.

Examples:
  warren denials
  warren denials --machine worker --follow
  warren denials --json | jq '.items[].suggested_rule'")]
pub struct DenialsArgs {
    /// Only what was refused to this machine, by name or id
    #[arg(long, value_name = "MACHINE")]
    pub machine: Option<String>,
    /// Go on with what is refused from now on, one denial a line
    #[arg(long, short)]
    pub follow: bool,
    /// How many of the newest to show, 1 to 1000 [default: 100]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000), conflicts_with = "follow")]
    pub limit: Option<u32>,
}

pub async fn run(context: &Context, args: DenialsArgs) -> Result<(), Failure> {
    let route = Route::new(&["denials"]).maybe("machine", args.machine.as_ref());
    if args.follow {
        let place = |denial: &Value| HeaderValue::from_str(denial.get("id")?.as_str()?).ok();
        return follow(context, &route.query("follow", true), false, place, render).await;
    }
    let answer = context.client.get(&route.query("limit", args.limit.unwrap_or(DEFAULT_LIMIT))).await?;
    let page: Page<Value> = read(answer)?;
    context.output.list(page, "Nothing was refused.", |denials: &[Denial]| {
        denials.iter().map(|denial| render(denial) + "\n").collect()
    })
}

/// Tells what a command ran into, after its own output, each with the next step.
pub fn tell(denials: &[Denial]) {
    for denial in denials {
        note(&sentence(denial));
    }
}

fn sentence(denial: &Denial) -> String {
    let times = if denial.count > 1 { format!(" {} times", denial.count) } else { String::new() };
    let rule = denial.rule.as_deref().unwrap_or("none allows it");
    let mut text = format!("warren: refused{times}: {}: {} (rule: {rule})", flow(denial), denial.reason);
    if let Some(command) = question(denial) {
        text += &format!("; see `{command}`");
    }
    printable(&text)
}

fn render(denial: &Denial) -> String {
    let times = if denial.count > 1 { format!("  {} times", denial.count) } else { String::new() };
    let layer = serde_json::to_value(denial.layer).ok();
    let layer = layer.as_ref().and_then(Value::as_str).unwrap_or_default();
    let rule = denial.rule.as_deref().unwrap_or("-");
    let text = format!("{}  {layer:<7}  {}  {rule}  {}{times}", time(denial.time), flow(denial), denial.reason);
    printable(&text)
}

/// `worker -> api.example.com (198.18.0.1) tcp/443`
fn flow(denial: &Denial) -> String {
    let sender = sender(denial);
    let to = match (&denial.name, denial.to) {
        (Some(name), Some(address)) => format!("{name} ({address})"),
        (Some(name), None) => name.clone(),
        (None, Some(address)) => address.to_string(),
        (None, None) => "somewhere".to_owned(),
    };
    format!("{sender} -> {to} {}", port(denial))
}

/// Who was refused: a name, or what is known of one that has none any more.
fn sender(denial: &Denial) -> String {
    match denial.machine.as_deref() {
        None => "a machine or session that is gone".to_owned(),
        Some(id) if id.parse::<SessionId>().is_ok() => format!("a session that is over ({id})"),
        Some(id) if id.parse::<MachineId>().is_ok() => format!("a machine that is gone ({id})"),
        Some(name) => name.to_owned(),
    }
}

fn port(denial: &Denial) -> String {
    match denial.port {
        Some(port) => format!("{}/{port}", denial.protocol),
        None => denial.protocol.to_string(),
    }
}

/// What to ask to learn more; nothing where no question can be put.
fn question(denial: &Denial) -> Option<String> {
    let machine = denial.machine.as_ref()?;
    let to = denial.name.clone().or(denial.to.map(|to| to.to_string()))?;
    // What came from a machine is quoted nowhere: it stands in the command only when it needs no quotes. One with a `*` is
    // no name that can be asked about, and a shell would put file names in its place.
    let plain = |text: &str| {
        !text.starts_with('-') && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:/".contains(&byte))
    };
    if denial.protocol == Protocol::Other || !plain(&to) || !plain(machine) {
        return None;
    }
    let port = match (denial.protocol, denial.port) {
        // What was refused before a port was named; most of what has a name is there.
        (Protocol::Tcp, None) => "tcp/443".to_owned(),
        (Protocol::Udp, None) => return None,
        _ => port(denial),
    };
    Some(format!("warren explain {machine} {to} --port {port}"))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use warren_model::denial::Layer;

    pub fn denial() -> Denial {
        Denial {
            id: "dny_01".into(),
            time: "2026-11-20T09:30:00Z".parse().unwrap(),
            machine: Some("worker".into()),
            to: Some("198.18.0.1".parse().unwrap()),
            name: Some("api.example.com".into()),
            port: Some(443),
            protocol: Protocol::Tcp,
            layer: Layer::Dns,
            rule: None,
            reason: "no rule allows dev/worker to reach api.example.com on tcp/443".into(),
            suggested_rule: None,
            count: 1,
        }
    }

    #[test]
    fn a_denial_is_one_line_with_the_next_step() {
        insta::assert_snapshot!(sentence(&denial()), @"warren: refused: worker -> api.example.com (198.18.0.1) tcp/443: no rule allows dev/worker to reach api.example.com on tcp/443 (rule: none allows it); see `warren explain worker api.example.com --port tcp/443`");
        let ping =
            Denial { name: None, port: None, protocol: Protocol::Icmp, count: 3, rule: Some("no".into()), ..denial() };
        insta::assert_snapshot!(sentence(&ping), @"warren: refused 3 times: worker -> 198.18.0.1 icmp: no rule allows dev/worker to reach api.example.com on tcp/443 (rule: no); see `warren explain worker 198.18.0.1 --port icmp`");
        insta::assert_snapshot!(render(&ping), @"2026-11-20 09:30:00Z  dns      worker -> 198.18.0.1 icmp  no  no rule allows dev/worker to reach api.example.com on tcp/443  3 times");
    }

    #[test]
    fn who_is_gone_is_told_as_what_it_was() {
        for (machine, expected) in [
            (Some("ses_01jd8m00000000000000000001"), "a session that is over (ses_01jd8m00000000000000000001) -> "),
            (Some("mch_01jd8m00000000000000000001"), "a machine that is gone (mch_01jd8m00000000000000000001) -> "),
            (Some("session-00000001"), "session-00000001 -> "),
            (None, "a machine or session that is gone -> "),
        ] {
            let told = flow(&Denial { machine: machine.map(Into::into), ..denial() });
            assert!(told.starts_with(expected), "{told}");
        }
    }

    #[test]
    fn a_name_that_a_machine_made_up_is_no_part_of_a_command() {
        for name in ["$(reboot).example.com", "*.example.com", "--json"] {
            let odd = Denial { name: Some(name.into()), ..denial() };
            assert!(!sentence(&odd).contains("warren explain"), "{name}");
        }
        // A name is refused before anybody says a port.
        let early = Denial { port: None, ..denial() };
        assert!(sentence(&early).ends_with("`warren explain worker api.example.com --port tcp/443`"));
        let other = Denial { protocol: Protocol::Other, port: None, ..denial() };
        assert!(!sentence(&other).contains("warren explain"));
        assert!(!sentence(&Denial { reason: "a\u{1b}[2Jb".into(), ..denial() }).contains('\u{1b}'));
    }
}
