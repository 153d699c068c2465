//! The report as a page for people: one file, nothing from elsewhere, no script.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Write};

use warren_model::audit::Verdict;

use crate::report::{Cell, Evidence, Observed, Party, Probed, Report};

/// Wider than this, a table of everybody against everybody shows nothing any more.
const GRID: usize = 60;

const STYLE: &str = "
:root{color-scheme:light dark;--line:#8886;--pass:#1a7f37;--fail:#cf222e;--open:#9a6700}
body{font:15px/1.5 system-ui,sans-serif;max-width:76rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem}h2{font-size:1.2rem;margin-top:2.2rem;border-bottom:1px solid var(--line)}
table{border-collapse:collapse;font-size:13px;margin:.6rem 0}
th,td{border:1px solid var(--line);padding:.25rem .5rem;text-align:left;vertical-align:top}
th{background:#8882}code,pre{font:12px/1.45 ui-monospace,monospace}pre{padding:.8rem;border:1px solid var(--line);overflow:auto}
.wide{overflow-x:auto}.badge{font-weight:700;padding:.1rem .5rem;border-radius:.3rem;color:#fff;white-space:nowrap}
.pass{background:var(--pass)}.fail{background:var(--fail)}.inconclusive{background:var(--open)}
td.pass,td.fail,td.inconclusive{color:#fff}.hash{word-break:break-all}
";

/// The whole page. It does not depend on [`Report::page_sha256`], which is made of it.
pub fn render(report: &Report) -> String {
    let mut page = Page(String::new());
    // Writing into a String cannot fail.
    let _ = page.report(report);
    page.0
}

struct Page(String);

impl Page {
    fn report(&mut self, report: &Report) -> fmt::Result {
        let account = Text(&report.scope.account.name);
        write!(
            self.0,
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
             <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; \
             base-uri 'none'; form-action 'none'\">\n\
             <meta name=\"viewport\" content=\"width=device-width\"><meta name=\"referrer\" content=\"no-referrer\">\n\
             <title>Isolation audit {} of {account}: {}</title>\n<style>{STYLE}</style></head><body>\n\
             <h1>Isolation audit {} of account {account}: {}</h1>\n",
            report.number,
            report.result.as_str(),
            report.number,
            Badge(report.result),
        )?;
        self.summary(report)?;
        self.grid(report)?;
        self.undone(report)?;
        self.policy(report)?;
        self.inventory(report)?;
        self.live(report)?;
        self.records(report)?;
        self.standards(report)?;
        self.cells("All flows", &report.cells.iter().collect::<Vec<_>>(), true)?;
        self.0.write_str("</body></html>\n")
    }

    fn summary(&mut self, report: &Report) -> fmt::Result {
        let counts = &report.counts;
        let scope = match &report.scope.network {
            Some(network) => format!("flows from network {}", network.name),
            None => "all networks of the account".to_owned(),
        };
        let across = if report.scope.across_accounts { ", other accounts as targets" } else { "" };
        let previous = match &report.previous {
            Some(link) => format!("report {}, SHA-256 {}", link.number, link.sha256),
            None => "none: this is the first".to_owned(),
        };
        let rows = [
            ("Result", report.result.as_str().to_owned()),
            ("Scope", format!("{scope}{across}")),
            ("Asked for by", report.scope.asked_by.clone()),
            ("From, to", format!("{} to {}", report.started_at, report.finished_at)),
            (
                "Flows",
                format!(
                    "{} tried: {} pass, {} fail, {} inconclusive ({} that policy allows, {} that it refuses)",
                    counts.cells,
                    counts.pass,
                    counts.fail,
                    counts.inconclusive,
                    counts.expected_allow,
                    counts.expected_deny
                ),
            ),
            ("Machines", format!("{} of {} probed", counts.machines_probed, counts.machines)),
            ("Policy", format!("version {}, hash {}", report.policy.version, report.policy.hash)),
            ("Host", report.installation.host.clone().unwrap_or_else(|| "not named in an account's report".to_owned())),
            ("Kernel", report.installation.kernel.clone()),
            ("Warren", format!("{}, installation {}", report.installation.warren, report.installation.id)),
            ("Signed with key", report.installation.key_id.clone()),
            ("Report before", previous),
        ];
        self.0.write_str("<table>")?;
        for (name, value) in rows {
            writeln!(self.0, "<tr><th>{}</th><td class=\"hash\">{}</td></tr>", Text(name), Text(&value))?;
        }
        self.0.write_str(
            "</table>\n<p>This page belongs to <code>report.json</code>, which carries its SHA-256 and is signed. Check \
             both without any server: <code>warren audit verify DIR --key FILE</code>, with the public key that \
             <code>warren audit key</code> printed.</p>\n",
        )?;
        self.list("Why it is not a pass", &report.reasons)?;
        self.list("What differs from the report before", &report.differences)
    }

    fn list(&mut self, title: &str, items: &[String]) -> fmt::Result {
        if items.is_empty() {
            return Ok(());
        }
        write!(self.0, "<h2>{}</h2><ul>", Text(title))?;
        for item in items {
            writeln!(self.0, "<li>{}</li>", Text(item))?;
        }
        self.0.write_str("</ul>\n")
    }

    /// Everybody against everybody: in each field what policy says, how many flows were tried, and the worst verdict.
    fn grid(&mut self, report: &Report) -> fmt::Result {
        let mut fields: BTreeMap<(String, String), Vec<&Cell>> = BTreeMap::new();
        for cell in &report.cells {
            fields.entry((cell.from.label(), cell.to.label())).or_default().push(cell);
        }
        let mut from: Vec<&String> = fields.keys().map(|(from, _)| from).collect();
        let mut to: Vec<&String> = fields.keys().map(|(_, to)| to).collect();
        from.dedup();
        to.sort();
        to.dedup();
        if fields.is_empty() || from.len() > GRID || to.len() > GRID {
            return Ok(());
        }
        self.0.write_str("<h2>The matrix</h2>\n<div class=\"wide\"><table><tr><th>from \\ to</th>")?;
        for to in &to {
            write!(self.0, "<th>{}</th>", Text(to))?;
        }
        self.0.write_str("</tr>\n")?;
        for from in from {
            write!(self.0, "<tr><th>{}</th>", Text(from))?;
            for to in &to {
                match fields.get(&(from.clone(), (*to).clone())) {
                    Some(cells) => self.field(cells)?,
                    None => self.0.write_str("<td></td>")?,
                }
            }
            self.0.write_str("</tr>\n")?;
        }
        self.0.write_str("</table></div>\n")
    }

    fn field(&mut self, cells: &[&Cell]) -> fmt::Result {
        let has = |verdict| cells.iter().any(|cell| cell.verdict == verdict);
        let worst = [Verdict::Fail, Verdict::Inconclusive].into_iter().find(|verdict| has(*verdict));
        let worst = worst.unwrap_or(Verdict::Pass);
        let allowed = cells.iter().filter(|cell| cell.expected.allowed).count();
        let said = match (allowed, cells.len() - allowed) {
            (allowed, 0) => format!("{allowed} allowed"),
            (0, refused) => format!("{refused} refused"),
            (allowed, refused) => format!("{allowed} allowed, {refused} refused"),
        };
        write!(self.0, "<td class=\"{}\">{}: {}</td>", worst.as_str(), worst.as_str(), Text(&said))
    }

    fn undone(&mut self, report: &Report) -> fmt::Result {
        let failed: Vec<&Cell> = report.cells.iter().filter(|cell| cell.verdict == Verdict::Fail).collect();
        let open: Vec<&Cell> = report.cells.iter().filter(|cell| cell.verdict == Verdict::Inconclusive).collect();
        self.cells("Flows that do not do what policy says", &failed, false)?;
        self.cells("Inconclusive flows", &open, false)
    }

    fn cells(&mut self, title: &str, cells: &[&Cell], folded: bool) -> fmt::Result {
        if cells.is_empty() {
            return Ok(());
        }
        write!(self.0, "<h2>{} ({})</h2>", Text(title), cells.len())?;
        if folded {
            self.0.write_str("<details><summary>Show them</summary>")?;
        }
        self.0.write_str(
            "<div class=\"wide\"><table><tr><th>verdict</th><th>from</th><th>to</th><th>what</th><th>policy</th>\
             <th>observed</th><th>because</th><th>evidence</th></tr>\n",
        )?;
        for cell in cells {
            let address = match (cell.to.address(), &cell.to) {
                (Some(address), Party::Machine { .. } | Party::Foreign { .. }) => {
                    format!(" {address}")
                }
                _ => String::new(),
            };
            let port = match (cell.port, cell.free_port) {
                (Some(_), true) => "/a free port".to_owned(),
                (Some(port), false) => format!("/{port}"),
                (None, _) => String::new(),
            };
            let expected = if cell.expected.allowed { "allowed" } else { "refused" };
            let rule = cell.expected.rule.as_deref().map(|rule| format!(" by {rule}")).unwrap_or_default();
            let observed = match cell.observed {
                Observed::Reached => "reached",
                Observed::NotReached => "not reached",
                Observed::Unknown => "unknown",
            };
            writeln!(
                self.0,
                "<tr><td class=\"{verdict}\">{verdict}</td><td>{}</td><td>{}{address}</td><td>{}{port}</td>\
                 <td>{expected}{}</td><td>{observed}</td><td>{}</td><td>{}</td></tr>",
                Text(&cell.from.label()),
                Text(&cell.to.label()),
                cell.protocol.as_str(),
                Text(&rule),
                Text(&cell.because),
                Text(&evidence(&cell.evidence)),
                verdict = cell.verdict.as_str(),
            )?;
        }
        self.0.write_str("</table></div>")?;
        self.0.write_str(if folded { "</details>\n" } else { "\n" })
    }

    fn policy(&mut self, report: &Report) -> fmt::Result {
        let policy = &report.policy;
        let approved = match &policy.approved {
            Some(approval) => {
                let name = approval.key_name.as_deref().map(|name| format!(" ({name})")).unwrap_or_default();
                format!("applied by key {}{name} at {}", approval.key, approval.at)
            }
            None => "nobody applied a policy: the built-in rules hold".to_owned(),
        };
        write!(self.0, "<h2>Policy, version {}</h2><p>{}</p>", policy.version, Text(&approved))?;
        if !policy.text.is_empty() {
            write!(self.0, "<details><summary>Its text</summary><pre>{}</pre></details>", Text(&policy.text))?;
        }
        let since = policy.since_previous.iter().map(|applied| {
            format!(
                "version {}, hash {}, by key {} at {}",
                applied.version, applied.hash, applied.approved.key, applied.approved.at
            )
        });
        self.list("Versions since the report before", &since.collect::<Vec<_>>())?;
        self.0.write_str("<h2>Exceptions</h2>")?;
        if policy.exceptions.is_empty() {
            return self.0.write_str("<p>No rule opens anything.</p>\n");
        }
        self.0.write_str(
            "<table><tr><th>rule</th><th>from</th><th>to</th><th>ports</th><th>owner</th><th>expires</th><th>reason</th></tr>\n",
        )?;
        for rule in &policy.exceptions {
            let ports: Vec<String> = rule.ports.iter().map(ToString::to_string).collect();
            let ports = if ports.is_empty() { "all".to_owned() } else { ports.join(", ") };
            let expires = match (rule.expires, rule.expired) {
                (None, _) => "never".to_owned(),
                (Some(at), true) => format!("{at}: expired, opens nothing"),
                (Some(at), false) => at.to_string(),
            };
            let cells = [
                rule.id.as_str(),
                &rule.from,
                &rule.to,
                &ports,
                rule.owner.as_deref().unwrap_or("nobody named"),
                &expires,
                rule.reason.as_deref().unwrap_or("none given"),
            ];
            self.row(&cells)?;
        }
        self.0.write_str("</table>\n")
    }

    fn row(&mut self, cells: &[&str]) -> fmt::Result {
        self.0.write_str("<tr>")?;
        for cell in cells {
            write!(self.0, "<td>{}</td>", Text(cell))?;
        }
        self.0.write_str("</tr>\n")
    }

    fn inventory(&mut self, report: &Report) -> fmt::Result {
        let inventory = &report.inventory;
        self.0.write_str(
            "<h2>Networks</h2><table><tr><th>name</th><th>ranges</th><th>egress</th><th>members among each other</th>\
             <th>machines</th></tr>\n",
        )?;
        for network in &inventory.networks {
            let ranges = format!("{} {}", network.cidr, network.cidr6);
            let machines = network.machines.to_string();
            self.row(&[&network.name, &ranges, &network.egress, &network.intra, &machines])?;
        }
        self.0.write_str(
            "</table>\n<h2>Machines</h2><table><tr><th>name</th><th>addresses</th><th>tags</th><th>state</th>\
             <th>probed</th></tr>\n",
        )?;
        for machine in &inventory.machines {
            let probed = match &machine.probed {
                Probed::Yes => "yes".to_owned(),
                Probed::OutOfScope => "only as a target: outside the scope".to_owned(),
                Probed::No { why } => format!("NO: {why}"),
            };
            let name = format!("{}/{}", machine.network, machine.name);
            let addresses = format!("{} {}", machine.ipv4, machine.ipv6);
            self.row(&[&name, &addresses, &machine.tags.join(", "), &machine.state, &probed])?;
        }
        self.0.write_str("</table>\n")?;
        self.list("Gaps: what could not be examined", &inventory.gaps)?;
        self.list("What an audit does not examine", &inventory.notes)
    }

    fn live(&mut self, report: &Report) -> fmt::Result {
        self.0.write_str(
            "<h2>Live rules against the policy</h2><table><tr><th>network</th><th>reconciled</th><th>detail</th></tr>\n",
        )?;
        for rules in &report.live {
            let reconciled = if rules.reconciled { "yes" } else { "NO" };
            self.row(&[&rules.network.name, reconciled, &rules.detail])?;
        }
        self.0.write_str("</table>\n")
    }

    fn records(&mut self, report: &Report) -> fmt::Result {
        let denials = &report.denials;
        write!(self.0, "<h2>Refusals on record</h2><p>{} in the last day.</p>", denials.total)?;
        if denials.total > 0 {
            self.0.write_str("<table><tr><th>layer</th><th>refusals</th></tr>\n")?;
            for (layer, count) in &denials.by_layer {
                self.row(&[layer, &count.to_string()])?;
            }
            self.0.write_str("</table>\n<table><tr><th>machine or session</th><th>refusals</th></tr>\n")?;
            for (machine, count) in &denials.by_machine {
                self.row(&[machine, &count.to_string()])?;
            }
            self.0.write_str("</table>\n")?;
        }
        self.0.write_str("<h2>Log of mutations</h2>")?;
        match &report.log {
            Some(log) => {
                let intact = if log.intact { "the chain is whole" } else { "THE CHAIN IS BROKEN" };
                let (number, hash) = (log.number, Text(&log.sha256));
                writeln!(
                    self.0,
                    "<p class=\"hash\">{intact}; its last line is number {number}, SHA-256 <code>{hash}</code>.</p>"
                )
            }
            None => self.0.write_str("<p>It has no line yet.</p>\n"),
        }
    }

    fn standards(&mut self, report: &Report) -> fmt::Result {
        self.0.write_str(
            "<h2>Standards</h2><table><tr><th>requirement</th><th>title</th><th>evidence in this report</th>\
             <th>shows</th></tr>\n",
        )?;
        for standard in &report.standards {
            self.row(&[&standard.id, &standard.title, &standard.evidence.join(", "), &standard.shows])?;
        }
        self.0.write_str("</table>\n")
    }
}

fn evidence(evidence: &Evidence) -> String {
    let word = |reached| if reached { "worked" } else { "FAILED" };
    let outcome = match &evidence.outcome {
        Some(outcome) => serde_json::to_string(outcome).unwrap_or_default(),
        None => "nothing".to_owned(),
    };
    let mut text = format!(
        "sender saw {outcome}; token {}; canary control {} ({}); sender control {} ({})",
        if evidence.token_seen { "came out at the canary" } else { "not seen at the canary" },
        word(evidence.canary_control.reached),
        evidence.canary_control.what,
        word(evidence.sender_control.reached),
        evidence.sender_control.what,
    );
    if let Some(counter) = evidence.counter {
        let _ =
            write!(text, "; refusals counted {} to {} for {} packets", counter.before, counter.after, counter.attempts);
    }
    text
}

struct Badge(Verdict);

impl Display for Badge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<span class=\"badge {0}\">{0}</span>", self.0.as_str())
    }
}

/// Text that cannot be taken for markup.
struct Text<'a>(&'a str);

impl Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars() {
            match character {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                // Neither a terminal nor a browser has to make sense of those.
                control if control.is_control() && control != '\n' && control != '\t' => f.write_char('\u{fffd}')?,
                other => f.write_char(other)?,
            }
        }
        Ok(())
    }
}
