//! Measures an edge and dnsmasq on the same names, in turn, and prints the ratio of their medians.
//!
//! ```text
//! dns_against_dnsmasq EDGE-EXECUTABLE [NAMES] [PAIRS] [IN-FLIGHT]
//! ```
//!
//! Needs root (the edge gives privileges up) and dnsmasq. Both listen on ports of loopback.

use std::error::Error;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use warren_edge::load::{Load, LoadReport, measure};
use warren_edge::{EdgeClient, EdgeLog, NameRecord, NetworkView, Sockets, SpawnConfig};
use warren_model::NetworkNumber;

const ROUND: Duration = Duration::from_secs(1);

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let executable = arguments.first().ok_or("usage: dns_against_dnsmasq EDGE [NAMES] [PAIRS] [IN-FLIGHT]")?;
    let number = |index: usize, default: usize| arguments.get(index).map_or(Ok(default), |text| text.parse());
    let (count, pairs, in_flight) = (number(1, 1000)?, number(2, 9)?, number(3, 64)?);
    let directory = tempfile::tempdir()?;
    let names: Vec<NameRecord> = (0..count)
        .map(|n| NameRecord {
            name: format!("machine-{n}.vm.internal"),
            ipv4: Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 0, 1, 10)) + n as u32),
            ipv6: Ipv6Addr::from(u128::from(Ipv6Addr::new(0xfd00, 0, 0, 1, 0, 0, 0, 2)) + n as u128),
        })
        .collect();

    let client = EdgeClient::spawn(&SpawnConfig {
        executable: executable.into(),
        arguments: vec![],
        control: directory.path().join("edge.sock"),
        uid: 65534,
        gid: 65534,
        log: EdgeLog::Discard,
    })
    .await?;
    let sockets = Sockets::bind(Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST, 0)?;
    let edge = UdpSocket::from(sockets.udp4.try_clone()?).local_addr()?;
    let mut view = NetworkView {
        number: NetworkNumber::FIRST,
        generation: 1,
        gateway4: Ipv4Addr::new(10, 0, 0, 1),
        gateway6: "fd00:0:0:1::1".parse()?,
        cidr: "10.0.0.0/8".parse()?,
        cidr6: "fd00:0:0:1::/80".parse()?,
        names,
        forward: vec![],
    };
    client.put_network(&view, Some(sockets)).await?;
    control_costs(&client, &mut view).await?;

    let hosts = directory.path().join("hosts");
    std::fs::create_dir(&hosts)?;
    let lines = view.names.iter().fold(String::new(), |mut text, name| {
        let _ = writeln!(text, "{} {}\n{} {}", name.ipv4, name.name, name.ipv6, name.name);
        text
    });
    std::fs::write(hosts.join("names"), lines)?;
    let port = UdpSocket::bind("127.0.0.1:0")?.local_addr()?.port();
    let _dnsmasq = Dnsmasq::start(&hosts, port)?;
    let dnsmasq = SocketAddr::from((Ipv4Addr::LOCALHOST, port));

    let names: Vec<String> = view.names.iter().take(count).map(|name| name.name.clone()).collect();
    let ask = |server, duration| measure(&Load { server, names: names.clone(), in_flight, duration });
    let deadline = Instant::now() + Duration::from_secs(5);
    while ask(dnsmasq, Duration::from_millis(300)).map_or(0, |report| report.answered) == 0 {
        if Instant::now() > deadline {
            return Err("dnsmasq does not answer".into());
        }
    }
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..pairs {
        for (server, name, all) in [(edge, "edge", &mut ours), (dnsmasq, "dnsmasq", &mut theirs)] {
            let report: LoadReport = ask(server, ROUND)?;
            println!(
                "{name:8} {:8.0}/s  p50 {:?}  p99 {:?}  {} wrong  {} lost",
                report.per_second(),
                report.p50,
                report.p99,
                report.wrong,
                report.lost
            );
            all.push(report.per_second());
        }
    }
    client.shutdown().await?;
    let (ours, theirs) = (median(ours), median(theirs));
    println!("edge {ours:.0}/s, dnsmasq {theirs:.0}/s, ratio {:.2}", ours / theirs);
    Ok(())
}

/// What it costs to tell the edge of one more name.
async fn control_costs(client: &EdgeClient, view: &mut NetworkView) -> Result<(), Box<dyn Error>> {
    let (mut patches, mut puts) = (Vec::new(), Vec::new());
    for n in 0..51u16 {
        let [high, low] = n.to_be_bytes();
        let record = NameRecord {
            name: format!("late-{n}.vm.internal"),
            ipv4: Ipv4Addr::new(10, 200, high, low),
            ipv6: Ipv6Addr::new(0xfd00, 0, 0, 1, 0, 0, 1, n),
        };
        let started = Instant::now();
        let (base, next) = (view.generation, view.generation + 1);
        client.patch_network(view.number, base, next, std::slice::from_ref(&record), &[]).await?;
        patches.push(started.elapsed().as_secs_f64());
        view.names.push(record);
        view.generation = next + 1;
        let started = Instant::now();
        client.put_network(view, None).await?;
        puts.push(started.elapsed().as_secs_f64());
    }
    let microseconds = |all| median(all) * 1e6;
    println!("one more name: patch {:.0} µs, whole view {:.0} µs", microseconds(patches), microseconds(puts));
    Ok(())
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or_default()
}

struct Dnsmasq(Child);

impl Dnsmasq {
    fn start(hosts: &std::path::Path, port: u16) -> std::io::Result<Self> {
        let mut command = Command::new("dnsmasq");
        command
            .args([
                "--no-daemon",
                "--conf-file=/dev/null",
                "--no-resolv",
                "--no-hosts",
                "--user=root",
                "--cache-size=10000",
            ])
            .args(["--listen-address=127.0.0.1", "--bind-interfaces", "--local=/internal/"])
            .arg(format!("--hostsdir={}", hosts.display()))
            .arg(format!("--port={port}"))
            .stderr(Stdio::null());
        command.spawn().map(Self)
    }
}

impl Drop for Dnsmasq {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
