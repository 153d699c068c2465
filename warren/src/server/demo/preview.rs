//! One port of one machine becomes public over HTTPS, and nothing else does.

use anyhow::{Context as _, ensure};
use warren_lab::outside::{HOST, Outside};

use super::stage::{Stage, path_text};
use super::{claim, title};

/// Every name below it is free to take.
pub(super) const SUFFIX: &str = "preview.example";
const NAME: &str = "app.preview.example";

pub(super) fn play(stage: &Stage, outside: &Outside) -> anyhow::Result<()> {
    title("A preview, in public");
    let directory = tempfile::tempdir()?;
    let authority = directory.path().join("authority.pem");
    println!("$ warren domain ca > {}", authority.display());
    let printed = stage.command(&["domain", "ca"]).output()?;
    ensure!(printed.status.success(), "the authority's certificate was not printed");
    std::fs::write(&authority, printed.stdout)?;
    let authority = path_text(&authority)?;
    // Another server in the same machine, on a port that nobody declared.
    stage.exec("worker", "cd /srv/www && nohup python3 -m http.server 9090 >/dev/null 2>&1 &")?;

    let visit = |what: &str, url: &str| {
        println!("internet$ curl {url}{what}");
        let line = format!("curl -sS --max-time 3 --cacert {authority} --resolve {NAME}:443:{} {url}", HOST[0]);
        let page = outside.namespace.attempt(&line);
        print!("    {}{}", page.stdout, page.stderr);
        page
    };
    let url = format!("https://{NAME}/");
    ensure!(!visit("", &url).success, "{NAME} is public before anybody published it");
    stage.say_and_run(&["domain", "map", NAME, "worker:8080"])?;
    let page = visit("", &url);
    ensure!(page.success && page.stdout.trim() == "the worker of acme", "the preview does not open: {}", page.stderr);
    claim("the page opens over HTTPS from the internet");

    for (what, url) in [
        ("    # the neighbour port", format!("http://{}:9090/", HOST[0])),
        ("    # the machine's own address", "http://192.168.10.11:8080/".to_owned()),
    ] {
        ensure!(!visit(what, &url).stdout.contains("the worker of acme"), "{url} is public");
    }
    println!("$ warren domain map other.{SUFFIX} worker:9090");
    let refused = stage.command(&["domain", "map", &format!("other.{SUFFIX}"), "worker:9090"]).output()?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    print!("    {said}");
    ensure!(
        !refused.status.success() && said.contains("port_not_declared"),
        "a port that nobody declared was published"
    );
    stage.say_and_run(&["domain", "ls"])?;
    stage.say_and_run(&["domain", "unmap", NAME])?;
    ensure!(!visit("", &url).success, "{NAME} is still public");
    let left = stage.json(&["domain", "ls"])?;
    let left = left["items"].as_array().context("domains are a list")?;
    ensure!(left.is_empty(), "something is still public: {left:?}");
    claim("nothing but that one port was public, and now nothing is");
    Ok(())
}
