//! What the tests of boundaries ask a server.

use std::io::Write as _;

use serde_json::Value;

use super::Server;

impl Server {
    /// Applies a policy, which has to be accepted.
    #[track_caller]
    pub fn apply(&self, policy: &str) -> Value {
        let file = policy_file(policy);
        self.json(&["policy", "apply", file.path().to_str().unwrap()])
    }

    /// What a policy would change.
    #[track_caller]
    pub fn dry_run(&self, policy: &str) -> Value {
        let file = policy_file(policy);
        self.json(&["policy", "apply", file.path().to_str().unwrap(), "--dry-run"])
    }

    /// Tries to apply a policy that has to be refused, and answers the problem.
    #[track_caller]
    pub fn refuses(&self, policy: &str) -> Value {
        let file = policy_file(policy);
        self.refused(&["policy", "apply", file.path().to_str().unwrap()])
    }

    /// Applies a policy, or answers the problem with it.
    #[track_caller]
    pub fn try_apply(&self, policy: &str) -> Result<(), Value> {
        let file = policy_file(policy);
        let output = self.run(&["policy", "apply", file.path().to_str().unwrap(), "--json"]);
        match output.status.success() {
            true => Ok(()),
            false => {
                Err(serde_json::from_slice(&output.stderr)
                    .unwrap_or_else(|_| panic!("{}", super::text(&output.stderr))))
            }
        }
    }

    /// The newest refusals.
    pub fn denials(&self) -> Vec<Value> {
        self.json(&["denials", "--limit", "1000"])["items"].as_array().cloned().unwrap_or_default()
    }

    /// Whether policy promises that this is allowed, and by which rule.
    #[track_caller]
    pub fn explain(&self, from: &str, to: &str, port: &str) -> (bool, Option<String>) {
        let said = self.json(&["explain", from, to, "--port", port]);
        let verdict = said["verdict"].as_str().unwrap();
        assert!(["allow", "deny"].contains(&verdict), "{said}");
        (verdict == "allow", said["rule"].as_str().map(str::to_owned))
    }

    /// The process that serves names and proxies.
    pub fn edge(&self) -> Option<i32> {
        let mark = self.data_dir().display().to_string();
        let installation = self.installation();
        let processes = std::process::Command::new("ps").args(["-eo", "pid,args"]).output().unwrap();
        let processes = super::text(&processes.stdout);
        let is_edge = |line: &&str| line.contains(" edge") && (line.contains(&mark) || line.contains(&installation));
        processes.lines().find(is_edge)?.split_whitespace().next()?.parse().ok()
    }

    /// SIGKILL to the process that serves names and proxies.
    pub fn kill_edge(&self) {
        let pid = self.edge().expect("an edge runs");
        assert!(std::process::Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success());
    }
}

fn policy_file(policy: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    file.write_all(policy.as_bytes()).unwrap();
    file
}
