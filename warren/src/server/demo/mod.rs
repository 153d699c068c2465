//! The main job, for real, in a network namespace of its own, with an internet of its own behind it.
//!
//! Every step is the command that a person would type, and every claim is checked; the first one that does not hold
//! ends the demo with an error. What it makes it removes, also after an error.

mod article;
mod boundaries;
mod operator;
mod preview;
mod stage;

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use nix::sched::{CloneFlags, setns};
use warren_lab::Lab;
use warren_lab::laptop::Laptop;
use warren_lab::outside::Outside;

use crate::cli::host::DemoArgs;
use article::Client;
use stage::{Stage, path_text};

/// Bytes that travel while the daemon is killed.
const TRANSFER: u64 = 96 << 20;
/// How fast they travel, so that the daemon's death falls into the middle.
const RATE: &str = "24M";
/// How long the whole transfer may take.
const TRANSFER_WITHIN: Duration = Duration::from_secs(30);

pub fn demo(args: DemoArgs) -> anyhow::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("the demo starts a server, which has to run as root: run it with sudo");
    }
    let client = args.client.as_deref().map(Client::in_directory).transpose()?;
    let temporary = tempfile::Builder::new().prefix("warren-demo-").tempdir()?;
    let data_dir = args.data_dir.clone().unwrap_or_else(|| temporary.path().join("data"));
    let pool_dir = args.pool_dir.clone().unwrap_or_else(|| data_dir.join("pool"));
    let mut stage = Stage {
        program: std::env::current_exe()?,
        data_dir,
        pool_dir,
        log: temporary.path().join("server.log"),
        key: None,
        server: None,
        url: String::new(),
    };
    title("An image");
    let pool = stage.pool_dir.clone();
    // The only step that needs the host's network: packages are downloaded.
    stage.say_and_run(&["image", "build", "debian", "--pool-dir", path_text(&pool)?])?;
    let lab = Lab::new();
    let (outside, host) = Outside::new(&lab);
    let laptop = Laptop::new(&lab, &host);
    // From here on nothing can touch the host's own network.
    setns(host.fd(), CloneFlags::CLONE_NEWNET).context("cannot enter the demo's network namespace")?;
    let outcome = play(&mut stage, &outside, &laptop, client.as_ref());
    let removed = stage.leave_nothing();
    outcome?;
    removed?;
    println!("\nEverything that was claimed was seen.");
    Ok(())
}

fn play(stage: &mut Stage, outside: &Outside, laptop: &Laptop, client: Option<&Client>) -> anyhow::Result<()> {
    title("A server");
    stage.start_server()?;

    title("A network and two machines");
    stage.act_as("acme")?;
    stage.say_and_run(&["network", "create", "agents", "--cidr", "192.168.10.0/24"])?;
    stage.create_machine("agent", "agents", "192.168.10.10", None)?;
    stage.create_machine("worker", "agents", "192.168.10.11", Some("web=8080/http"))?;
    stage.serve_page("worker", "the worker of acme")?;
    stage.expect_page("agent", "http://192.168.10.11:8080/", "the worker of acme")?;
    stage.expect_page("agent", "http://worker.vm.internal:8080/", "the worker of acme")?;
    claim("the page was fetched by private address and by .internal name");

    title("Another account, with the same addresses");
    let acme = stage.key.clone();
    stage.act_as("globex")?;
    stage.say_and_run(&["network", "create", "agents", "--cidr", "192.168.10.0/24"])?;
    stage.create_machine("other", "agents", "192.168.10.11", None)?;
    stage.create_machine("client", "agents", "192.168.10.12", None)?;
    stage.serve_page("other", "the machine of globex")?;
    stage.expect_page("client", "http://192.168.10.11:8080/", "the machine of globex")?;
    stage.expect_silence("client", "http://192.168.10.10:8080/")?;
    let globex = std::mem::replace(&mut stage.key, acme.clone());
    stage.expect_page("agent", "http://192.168.10.11:8080/", "the worker of acme")?;
    stage.expect_silence("agent", "http://192.168.10.12:8080/")?;
    claim("192.168.10.11 exists twice, and neither account ever meets the other's");

    title("The daemon is killed while bytes travel");
    survive_the_daemon(stage)?;

    operator::play(stage, laptop)?;
    preview::play(stage, outside)?;

    boundaries::play(stage, outside)?;

    match client {
        Some(client) => {
            let acme = stage.key.clone();
            article::play(stage, client)?;
            stage.key = acme;
        }
        None => article::leave_out(),
    }

    title("The topology");
    stage.say_and_run(&["topology"])?;
    stage.key = globex;
    stage.say_and_run(&["topology"])?;
    Ok(())
}

fn survive_the_daemon(stage: &mut Stage) -> anyhow::Result<()> {
    let prepare = format!("head -c {TRANSFER} /dev/urandom > /srv/www/big && sha256sum < /srv/www/big");
    let expected = stage.exec("worker", &prepare)?;
    let transfer = format!(
        "nohup sh -c 'curl -sS --limit-rate {RATE} -o /root/copy http://worker.vm.internal:8080/big; \
         echo $? > /root/finished' >/dev/null 2>&1 & \
         nohup sh -c 'while [ ! -e /root/finished ]; do getent hosts worker.vm.internal >/dev/null \
         && echo answered >> /root/names || echo failed >> /root/names; sleep 0.2; done' >/dev/null 2>&1 &"
    );
    stage.exec("agent", &transfer)?;
    std::thread::sleep(Duration::from_millis(800));
    let before: u64 = stage.exec("agent", "stat -c %s /root/copy")?.trim().parse()?;
    ensure!(before > 0 && before < TRANSFER, "the transfer is not in its middle: {before} of {TRANSFER} bytes");
    stage.kill_server()?;
    println!("    the daemon is dead; {before} of {TRANSFER} bytes had arrived");
    // Long enough for the rest of the transfer to happen without a daemon.
    std::thread::sleep(Duration::from_secs(5));
    stage.start_server()?;

    let deadline = Instant::now() + TRANSFER_WITHIN;
    while stage.exec("agent", "cat /root/finished 2>/dev/null || echo running")?.trim() != "0" {
        ensure!(Instant::now() < deadline, "the transfer did not end");
        std::thread::sleep(Duration::from_millis(200));
    }
    let arrived = stage.exec("agent", "sha256sum < /root/copy")?;
    ensure!(arrived == expected, "the bytes differ: {arrived} and {expected}");
    println!("    sha256 at the sender   {expected}    sha256 at the receiver {arrived}");
    let names = stage.exec("agent", "sort /root/names | uniq -c")?;
    ensure!(!names.contains("failed"), "names were not answered while the daemon was dead:\n{names}");
    claim("not a byte was lost, and every name was answered, while there was no daemon");
    Ok(())
}

fn title(text: &str) {
    println!("\n== {text}");
}

fn claim(text: &str) {
    println!("  ✓ {text}");
}
