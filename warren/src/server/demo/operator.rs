//! An operator on a laptop behind an address translator, with stock WireGuard tools.

use std::os::unix::fs::OpenOptionsExt as _;

use anyhow::{Context as _, ensure};
use warren_lab::laptop::Laptop;

use super::stage::{Stage, path_text};
use super::{claim, title};

const PAGE: &str = "http://192.168.10.11:8080/";

fn fetches(laptop: &Laptop) -> bool {
    println!("laptop$ curl -sS {PAGE}");
    let page = laptop.namespace.attempt(&format!("curl -sS --max-time 2 {PAGE}"));
    print!("    {}{}", page.stdout, page.stderr);
    page.success
}

pub(super) fn play(stage: &Stage, laptop: &Laptop) -> anyhow::Result<()> {
    title("An operator joins with WireGuard, from behind an address translator");
    ensure!(!fetches(laptop), "the laptop is in the network before anybody let it in");
    let directory = tempfile::tempdir()?;
    let config = directory.path().join(format!("{}.conf", laptop.interface(0)));
    println!("$ warren vpn open agents > {}", config.display());
    let opened = stage.json(&["vpn", "open", "agents"])?;
    let text = opened["client_config"].as_str().context("the session came without a configuration")?;
    let id = opened["session_id"].as_str().context("the session came without an id")?;
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&config)?;
    std::io::Write::write_all(&mut file, text.as_bytes())?;
    let shown = text.lines().filter(|line| !line.starts_with("PrivateKey") && !line.starts_with('#'));
    shown.for_each(|line| println!("    {line}"));
    println!("laptop$ wg-quick up {}", config.display());
    let up = laptop.namespace.attempt(&format!("wg-quick up {}", path_text(&config)?));
    ensure!(up.success, "wg-quick: {}{}", up.stdout, up.stderr);
    ensure!(fetches(laptop), "the operator does not reach the worker");
    stage.say_and_run(&["vpn", "ls"])?;
    claim("the operator is a member of the network, with an address in it");

    stage.say_and_run(&["vpn", "close", id])?;
    ensure!(!fetches(laptop), "the session is closed, and the operator still reaches the worker");
    let down = laptop.namespace.attempt(&format!("wg-quick down {}", path_text(&config)?));
    ensure!(down.success, "wg-quick: {}{}", down.stdout, down.stderr);
    let left = stage.json(&["vpn", "ls"])?;
    ensure!(left["items"].as_array().is_some_and(Vec::is_empty), "a session is left: {left}");
    claim("closed, the operator is cut and nothing of the session is left");
    Ok(())
}
