//! The three examples of the article that the freestyle client comes with, run by the real client.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, ensure};
use serde_json::Value;

use super::stage::Stage;
use super::{claim, title};

const TITLE: &str = "The client that people already have: npm freestyle, the article's three examples unchanged";

/// Where the client and the examples are, as `scripts/install-client.sh` puts them.
pub(super) struct Client {
    directory: PathBuf,
    node: PathBuf,
}

impl Client {
    pub fn in_directory(directory: &Path) -> anyhow::Result<Self> {
        let directory =
            directory.canonicalize().with_context(|| format!("there is no directory {}", directory.display()))?;
        let node = ["x64", "arm64"].map(|kind| directory.join(format!("node_modules/node-linux-{kind}/bin/node")));
        let node = node.into_iter().find(|path| path.exists()).with_context(|| {
            format!("no client is in {}: scripts/install-client.sh puts one there", directory.display())
        })?;
        Ok(Self { directory, node })
    }

    fn run(&self, stage: &Stage, example: &str, environment: &[(&str, &str)]) -> anyhow::Result<String> {
        let url = format!("{}/compat/freestyle", stage.url);
        println!("$ FREESTYLE_API_URL={url} node {example}");
        let Output { status, stdout, stderr } = Command::new("timeout")
            .arg("60")
            .arg(&self.node)
            .arg(self.directory.join(example))
            .current_dir(&self.directory)
            .env("FREESTYLE_API_URL", url)
            .env("FREESTYLE_API_KEY", stage.key.as_deref().unwrap_or_default())
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .output()?;
        let said = String::from_utf8_lossy(&stdout).into_owned();
        ensure!(status.success(), "{example} failed: {said}{}", String::from_utf8_lossy(&stderr));
        Ok(said)
    }
}

/// Says what is missing, and how to have it.
pub(super) fn leave_out() {
    title(TITLE);
    println!(
        "  - left out, as there is no client for it. scripts/install-client.sh DIR installs one where npm reaches a package \
         registry, and warren demo --client DIR plays the chapter; make demo does both"
    );
}

pub(super) fn play(stage: &mut Stage, client: &Client) -> anyhow::Result<()> {
    title(TITLE);
    stage.act_as("product")?;
    let page = client.run(stage, "article-1.mjs", &[])?;
    println!("    {}", page.lines().find(|line| line.contains("<title>")).unwrap_or_default().trim());
    ensure!(page.contains("Directory listing for"), "the first example printed {page:?}");
    claim("two machines on a private network; one fetched a page from the other");

    let session = client.run(stage, "article-2.mjs", &[])?;
    let shown = session.lines().filter(|line| !line.starts_with("PrivateKey") && !line.starts_with('#'));
    shown.for_each(|line| println!("    {line}"));
    ensure!(session.contains("[Interface]") && session.contains("ses_"), "the second example printed {session:?}");
    let left = stage.json(&["vpn", "ls"])?;
    ensure!(left["items"].as_array().is_some_and(Vec::is_empty), "the second example left a session: {left}");
    claim("an operator's WireGuard session, opened and closed");

    let handed = client.run(stage, "article-3.mjs", &[])?;
    let handed: Value = serde_json::from_str(handed.trim()).context("the third example prints a token")?;
    let [token, machine] = ["token", "vmId"].map(|field| handed[field].as_str().unwrap_or_default());
    let home = client.run(stage, "article-3-client.mjs", &[("TOKEN", token), ("VM_ID", machine)])?;
    println!("    {}", home.trim());
    ensure!(home.trim() == "/root", "the client of the third example printed {home:?}");
    claim("a client with a token works on the one machine that was granted to it");
    Ok(())
}
