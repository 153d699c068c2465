//! An operator on a laptop behind an address translator, with stock WireGuard tools.

use std::fs::OpenOptions;
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
    let config = laptop.configuration();
    println!("$ umask 077; warren vpn open agents > {}", path_text(&config)?);
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&config)?;
    let opened = stage.command(&["vpn", "open", "agents"]).stdout(file).status()?;
    ensure!(opened.success(), "the session was not opened");
    let text = std::fs::read_to_string(&config)?;
    let shown = text.lines().filter(|line| !line.starts_with("PrivateKey") && !line.starts_with('#'));
    shown.for_each(|line| println!("    {line}"));
    println!("laptop$ wg-quick up {}", config.display());
    let tunnel = laptop.up(&config).map_err(anyhow::Error::msg)?;
    ensure!(fetches(laptop), "the operator does not reach the worker");
    stage.say_and_run(&["vpn", "ls"])?;
    claim("the operator is a member of the network, with an address in it");

    let open = stage.json(&["vpn", "ls"])?;
    let id = open["items"][0]["id"].as_str().context("the session is not listed")?;
    stage.say_and_run(&["vpn", "close", id])?;
    ensure!(!fetches(laptop), "the session is closed, and the operator still reaches the worker");
    println!("laptop$ wg-quick down {}", config.display());
    tunnel.down().map_err(anyhow::Error::msg)?;
    let left = stage.json(&["vpn", "ls"])?;
    ensure!(left["items"].as_array().is_some_and(Vec::is_empty), "a session is left: {left}");
    claim("closed, the operator is cut and nothing of the session is left");
    Ok(())
}
