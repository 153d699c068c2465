//! What the host lacks, and the command that mends it.

use anyhow::bail;
use warren_runtime::driver::Finding;

/// Examines the host and prints a line for each thing, or a list of objects. Fails when something that is needed is
/// missing.
pub fn doctor(json: bool) -> anyhow::Result<()> {
    let mut findings = warren_runtime::driver::doctor();
    findings.push(packet_filter());
    if json {
        println!("{}", serde_json::json!({"items": findings, "next": null}));
    } else {
        print!("{}", render(&findings));
    }
    let missing = findings.iter().filter(|finding| !finding.ok).count();
    if missing > 0 {
        bail!("{missing} of {} things are missing", findings.len());
    }
    Ok(())
}

/// Rules are loaded once per network by the `nft` program; it is run, so that a broken one does not pass.
fn packet_filter() -> Finding {
    let version = std::process::Command::new("nft").arg("--version").output();
    let (ok, detail) = match version {
        Ok(output) if output.status.success() => (true, String::from_utf8_lossy(&output.stdout).trim().to_owned()),
        Ok(output) => (false, String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => (false, format!("nft cannot be run: {error}")),
    };
    let remedy = (!ok).then(|| "apt-get install nftables".to_owned());
    Finding { name: "packet filter".into(), ok, detail, remedy }
}

fn render(findings: &[Finding]) -> String {
    let width = findings.iter().map(|finding| finding.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for finding in findings {
        let mark = if finding.ok { "ok     " } else { "missing" };
        text.push_str(&format!("{mark}  {:width$}  {}\n", finding.name, finding.detail));
        if let (false, Some(remedy)) = (finding.ok, &finding.remedy) {
            text.push_str(&format!("         {:width$}  mend it with: {remedy}\n", ""));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_comes_with_the_command_that_mends_it() {
        let finding = |name: &str, ok| Finding {
            name: name.into(),
            ok,
            detail: "runc".into(),
            remedy: Some("apt-get install runc".into()),
        };
        assert_eq!(
            render(&[finding("runtime", true), finding("x", false)]),
            "ok       runtime  runc\nmissing  x        runc\n                  mend it with: apt-get install runc\n"
        );
    }
}
