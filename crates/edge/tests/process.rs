//! The edge as a process: what it may do, and who outlives whom.

mod common;

use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Edge, addresses, error_text, loopback, question, record, try_udp, udp, view, with_rules};
use hickory_proto::rr::RecordType;
use nix::sys::signal::Signal;
use warren_edge::{EdgeClient, EdgeError, EdgeLog, RefusalCode, SpawnConfig};

const NAME: &str = "worker.vm.internal";

fn refusal<T: std::fmt::Debug>(result: Result<T, EdgeError>) -> RefusalCode {
    match result {
        Err(EdgeError::Refused(refusal)) => refusal.code,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn it_holds_no_privilege_and_nothing_that_it_inherited() {
    let (edge, client) = Edge::start().await;
    let (sockets, at) = loopback();
    client.put_network(&view(1, 1, &[(NAME, 10)]), Some(sockets), None).await.unwrap();
    assert_eq!(addresses(&udp(at.udp4, NAME, RecordType::A)).len(), 1);

    // Every thread, since each has credentials of its own.
    let mut threads = 0;
    for task in std::fs::read_dir(format!("/proc/{}/task", edge.pid)).unwrap() {
        let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name}"));
            line[name.len()..].split_whitespace().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(field("Uid:"), ["65534"; 4]);
        assert_eq!(field("Gid:"), ["65534"; 4]);
        assert!(field("Groups:").is_empty());
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
            assert_eq!(field(set), ["0000000000000000"], "{set}");
        }
        assert_eq!(field("NoNewPrivs:"), ["1"]);
        assert_eq!(field("Seccomp:"), ["2"]);
        threads += 1;
    }
    assert!(threads > 1);
    let process = format!("/proc/{}", edge.pid);
    assert_eq!(std::fs::metadata(format!("{process}/environ")).unwrap().uid(), 0, "dumpable");
    let root = std::fs::read_link(format!("{process}/root")).unwrap();
    assert!(root.to_string_lossy().ends_with(" (deleted)"), "{root:?}");
    let session = nix::unistd::getsid(Some(nix::unistd::Pid::from_raw(edge.pid))).unwrap();
    assert_eq!(session.as_raw(), edge.pid);
    let environment = std::fs::read(format!("{process}/environ")).unwrap();
    assert!(!environment.windows(5).any(|window| window == b"PATH="));
    let socket = std::fs::metadata(edge.control()).unwrap();
    assert_eq!((socket.permissions().mode() & 0o777, socket.uid()), (0o600, 0));
    for descriptor in std::fs::read_dir(format!("{process}/fd")).unwrap() {
        // One may have been closed since they were listed.
        let Ok(target) = std::fs::read_link(descriptor.unwrap().path()) else { continue };
        let target = target.to_string_lossy();
        let expected = ["socket:[", "anon_inode:", "/dev/null"].iter().any(|kind| target.starts_with(kind));
        let own = ["edge.log", "edge-names-a", "edge-names-b"].iter().any(|name| target.ends_with(name));
        assert!(expected || own, "{target}");
    }
}

#[tokio::test]
async fn dns_goes_on_without_a_daemon_and_the_next_one_finds_what_is_there() {
    let (edge, client) = Edge::start().await;
    let (sockets, at) = loopback();
    client.put_network(&view(1, 7, &[(NAME, 10)]), Some(sockets), None).await.unwrap();
    let (sockets, _) = loopback();
    client.put_network(&view(2, 9, &[]), Some(sockets), None).await.unwrap();
    let before = client.status().await.unwrap();
    drop(client);
    assert_eq!(addresses(&udp(at.udp4, NAME, RecordType::A)).len(), 1);

    let client = EdgeClient::connect(&edge.control()).await.unwrap().expect("the edge is still there");
    let after = client.status().await.unwrap();
    assert_eq!(after.networks, before.networks);
    assert_eq!((after.pid, client.pid()), (edge.pid, edge.pid));
    assert_eq!(after.networks.into_values().collect::<Vec<_>>(), [7, 9]);
    // The sockets are still there, so a view is all it takes.
    client.put_network(&view(1, 8, &[(NAME, 10), ("late.vm.internal", 11)]), None, None).await.unwrap();
    assert_eq!(addresses(&udp(at.udp4, "late.vm.internal", RecordType::A)).len(), 1);
}

/// Not a test of its own: the daemon of the test below, which is killed.
#[tokio::test]
async fn daemon_that_is_killed() {
    let Some(control) = std::env::var_os("EDGE_TEST_CONTROL") else { return };
    let client = EdgeClient::spawn(&SpawnConfig {
        executable: env!("CARGO_BIN_EXE_warren-edge").into(),
        arguments: vec![],
        control: control.into(),
        uid: 65534,
        gid: 65534,
        log: EdgeLog::Inherit,
    })
    .await
    .unwrap();
    let (sockets, at) = loopback();
    client.put_network(&view(1, 3, &[(NAME, 10)]), Some(sockets), None).await.unwrap();
    println!("\nready {}", at.udp4);
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn it_outlives_the_process_that_started_it() {
    let directory = tempfile::tempdir().unwrap();
    let control = directory.path().join("edge.sock");
    let mut daemon = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "daemon_that_is_killed", "--nocapture"])
        .env("EDGE_TEST_CONTROL", &control)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(daemon.stdout.take().unwrap()).lines();
    let at = lines.map_while(Result::ok).find_map(|line| Some(line.strip_prefix("ready ")?.parse().unwrap())).unwrap();
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    // Nobody reads the edge's log any more.
    drop(daemon.stderr.take());

    assert_eq!(addresses(&udp(at, NAME, RecordType::A)).len(), 1);
    let client = EdgeClient::connect(&control).await.unwrap().expect("the edge is still there");
    assert_eq!(client.status().await.unwrap().networks.into_values().collect::<Vec<_>>(), [3]);
    client.put_network(&view(1, 4, &[(NAME, 10), ("two.internal", 12)]), None, None).await.unwrap();
    assert_eq!(addresses(&udp(at, "two.internal", RecordType::A)).len(), 1);
    client.remove_network(view(1, 4, &[]).number).await.unwrap();
    client.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_view_that_cannot_be_taken_is_no_broken_connection() {
    let (edge, client) = Edge::start().await;
    let (sockets, at) = loopback();
    client.put_network(&view(1, 1, &[(NAME, 10)]), Some(sockets), None).await.unwrap();
    let mut long = view(1, 2, &[(NAME, 10)]);
    long.policy = "x".repeat(65 << 20);
    let invalid = view(1, 2, &[("example.com", 10)]);
    for (bad, what) in [(long, "too long"), (invalid, "no name of the network"), (view(2, 1, &[]), "no sockets")] {
        let error = client.put_network(&bad, None, None).await.unwrap_err();
        assert!(!error.is_broken(), "{what}: {error:?}");
    }
    assert_eq!(client.status().await.unwrap().networks.into_values().collect::<Vec<_>>(), [1]);
    assert_eq!(addresses(&udp(at.udp4, NAME, RecordType::A)).len(), 1);
    edge.kill();
    client.closed().await;
    assert!(client.put_network(&view(1, 3, &[]), None, None).await.unwrap_err().is_broken());
}

#[tokio::test]
async fn an_edge_that_hangs_up_before_it_answers_is_none() {
    let directory = tempfile::tempdir().unwrap();
    let control = directory.path().join("edge.sock");
    let ending = tokio::net::UnixListener::bind(&control).unwrap();
    let (client, ()) = tokio::join!(EdgeClient::connect(&control), async {
        drop(ending.accept().await.unwrap());
    });
    assert!(client.unwrap().is_none());
}

#[tokio::test]
async fn an_edge_of_another_version_is_asked_to_end_and_is_none() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let directory = tempfile::tempdir().unwrap();
    let control = directory.path().join("edge.sock");
    let older = tokio::net::UnixListener::bind(&control).unwrap();
    let (client, asked) = tokio::join!(EdgeClient::connect(&control), async {
        let (mut stream, _) = older.accept().await.unwrap();
        let mut asked = Vec::new();
        for answer in [r#"{"hello":{"protocol":1,"pid":1}}"#, r#""done""#] {
            let mut request = vec![0; stream.read_u32().await.unwrap() as usize];
            stream.read_exact(&mut request).await.unwrap();
            asked.push(String::from_utf8(request).unwrap());
            stream.write_u32(answer.len() as u32).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
        asked
    });
    assert!(client.unwrap().is_none());
    assert_eq!(asked, [r#"{"hello":{"protocol":8}}"#, r#""shutdown""#]);
}

#[tokio::test]
async fn a_crash_is_noticed_closes_everything_and_a_new_edge_takes_over() {
    let (mut edge, client) = Edge::start().await;
    let (sockets, at) = loopback();
    client.put_network(&view(1, 1, &[(NAME, 10)]), Some(sockets), None).await.unwrap();
    edge.kill();
    tokio::time::timeout(Duration::from_secs(30), client.closed()).await.expect("the end is noticed");
    assert!(matches!(client.status().await, Err(EdgeError::Closed)));
    assert!(try_udp(at.udp4, &question(NAME, RecordType::A), Duration::from_millis(300)).is_err());
    assert!(EdgeClient::connect(&edge.control()).await.unwrap().is_none());

    let client = EdgeClient::spawn(&edge.config()).await.unwrap();
    assert_ne!(client.pid(), edge.pid);
    edge.pid = client.pid();
    assert!(client.status().await.unwrap().networks.is_empty());
    assert_eq!(refusal(client.put_network(&view(1, 1, &[]), None, None).await), RefusalCode::SocketsMissing);
    let (sockets, at) = loopback();
    client.put_network(&view(1, 1, &[(NAME, 10)]), Some(sockets), None).await.unwrap();
    assert_eq!(addresses(&udp(at.udp4, NAME, RecordType::A)).len(), 1);
}

#[tokio::test]
async fn an_edge_that_hangs_is_found_out_and_can_be_killed() {
    let (edge, client) = Edge::start().await;
    client.status().await.unwrap();
    let begun = Instant::now();
    edge.signal(Signal::SIGSTOP);
    assert!(matches!(client.status().await, Err(EdgeError::TimedOut)));
    // Other requests are given 10 s.
    assert!(begun.elapsed() < Duration::from_secs(9), "{:?}", begun.elapsed());
    client.kill().await.unwrap();
    assert!(EdgeClient::connect(&edge.control()).await.unwrap().is_none());
    client.kill().await.unwrap();
}

#[tokio::test]
async fn an_edge_that_hangs_while_it_is_watched_is_ended() {
    let (edge, client) = Edge::start().await;
    let watched = tokio::time::timeout(Duration::from_millis(2500), client.ended()).await;
    assert!(watched.is_err(), "an edge that answers goes on");
    edge.signal(Signal::SIGSTOP);
    tokio::time::timeout(Duration::from_secs(60), client.ended()).await.expect("it is ended");
    assert!(EdgeClient::connect(&edge.control()).await.unwrap().is_none());
}

#[tokio::test]
async fn an_edge_that_does_not_even_greet_is_none() {
    let (mut edge, client) = Edge::start().await;
    edge.signal(Signal::SIGSTOP);
    drop(client);
    assert!(EdgeClient::connect(&edge.control()).await.unwrap().is_none());
    let next = EdgeClient::spawn(&edge.config()).await.unwrap();
    edge.pid = next.pid();
    next.status().await.unwrap();
}

#[tokio::test]
async fn synthetic_addresses_and_refusals_outlive_who_gave_them() {
    let (mut edge, client) = Edge::start().await;
    let listed = with_rules(view(1, 1, &[]), &[("api", "*.example.com", &["tcp/443"])]);
    let (sockets, at) = loopback();
    client.put_network(&listed, Some(sockets), None).await.unwrap();
    let names: Vec<String> = (0..50).map(|index| format!("n{index}.example.com.")).collect();
    let given: Vec<_> = names.iter().map(|name| addresses(&udp(at.udp4, name, RecordType::A))).collect();
    assert!(given.iter().all(|addresses| addresses.len() == 1), "{given:?}");
    let refused = udp(at.udp6, "evil.example.", RecordType::A);
    let taken = client.take_denials(0).await.unwrap();
    let [denial] = &taken.denials[..] else { panic!("{taken:?}") };
    let reason = "no rule allows lab/agent to reach evil.example";
    assert_eq!(error_text(&refused), format!("18 {}: {reason}", denial.id));
    assert_eq!((denial.network, denial.member), (listed.network, Some(listed.members[0].id)));
    assert!(denial.suggested_rule.is_some());

    // The daemon that took it dies; the next one finds it again, and acknowledges it.
    drop(client);
    let client = EdgeClient::connect(&edge.control()).await.unwrap().expect("the edge is still there");
    assert_eq!(client.take_denials(0).await.unwrap(), taken);
    let rest = client.take_denials(taken.last).await.unwrap();
    assert_eq!((rest.denials.len(), rest.totals.len()), (0, 1));

    // Both die. The order in which names are asked for is another one, and the addresses are the same.
    drop(client);
    edge.kill();
    let deadline = Instant::now() + Duration::from_secs(30);
    while EdgeClient::connect(&edge.control()).await.unwrap().is_some() {
        assert!(Instant::now() < deadline, "the edge is still there");
    }
    let client = EdgeClient::spawn(&edge.config()).await.unwrap();
    edge.pid = client.pid();
    let (sockets, at) = loopback();
    client.put_network(&listed, Some(sockets), None).await.unwrap();
    assert_eq!(client.status().await.unwrap().names, 50);
    for (name, before) in names.iter().zip(&given).rev() {
        assert_eq!(addresses(&udp(at.udp4, name, RecordType::A)), *before, "{name}");
    }
    client.remove_network(listed.number).await.unwrap();
    assert_eq!(client.status().await.unwrap().names, 0);
}

#[tokio::test]
async fn what_cannot_be_done_is_refused_and_changes_nothing() {
    let (edge, client) = Edge::start().await;
    let (mut sockets, at) = loopback();
    std::mem::swap(&mut sockets.udp4, &mut sockets.tcp4);
    assert_eq!(refusal(client.put_network(&view(1, 1, &[]), Some(sockets), None).await), RefusalCode::SocketsUnfit);
    let (mut sockets, _) = loopback();
    std::mem::swap(&mut sockets.udp4, &mut sockets.udp6);
    assert_eq!(refusal(client.put_network(&view(1, 1, &[]), Some(sockets), None).await), RefusalCode::SocketsUnfit);
    assert!(client.status().await.unwrap().networks.is_empty());
    assert!(try_udp(at.udp4, &question(NAME, RecordType::A), Duration::from_millis(100)).is_err());

    let (sockets, at) = loopback();
    client.put_network(&view(1, 1, &[(NAME, 10)]), Some(sockets), None).await.unwrap();
    assert_eq!(
        refusal(client.put_network(&view(1, 2, &[("evil.example", 1)]), None, None).await),
        RefusalCode::InvalidName
    );
    assert_eq!(addresses(&udp(at.udp4, NAME, RecordType::A)).len(), 1);
    client.remove_network(view(9, 1, &[]).number).await.unwrap();

    let second = EdgeClient::spawn(&edge.config()).await;
    assert!(matches!(second, Err(EdgeError::Occupied { .. } | EdgeError::Ended(_))), "{second:?}");
    assert!(EdgeClient::connect(&edge.control()).await.unwrap().is_some(), "the first one is unharmed");
}

#[tokio::test]
async fn an_edge_that_cannot_give_up_its_privileges_does_not_start() {
    let directory = tempfile::tempdir().unwrap();
    let config = |uid| SpawnConfig {
        executable: env!("CARGO_BIN_EXE_warren-edge").into(),
        arguments: vec![],
        control: directory.path().join("edge.sock"),
        uid,
        gid: 65534,
        log: EdgeLog::Discard,
    };
    assert!(matches!(EdgeClient::spawn(&config(0)).await, Err(EdgeError::Ended(_))));
    let missing = SpawnConfig { executable: "/nonexistent".into(), ..config(65534) };
    assert!(matches!(EdgeClient::spawn(&missing).await, Err(EdgeError::Spawn { .. })));
}

#[tokio::test]
async fn shutdown_ends_the_process() {
    let (edge, client) = Edge::start().await;
    client.shutdown().await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while std::path::Path::new(&format!("/proc/{}", edge.pid)).exists() {
        assert!(Instant::now() < deadline, "the edge is still there");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(EdgeClient::connect(&edge.control()).await.unwrap().is_none());
    assert!(edge.log().contains("the edge ends"), "{}", edge.log());
}

#[tokio::test]
async fn ten_thousand_names_and_three_hundred_networks_fit() {
    let (_edge, client) = Edge::start().await;
    let mut large = view(1, 1, &[]);
    large.names = (0..10_000u16)
        .map(|n| {
            let mut name = record(&format!("m{n}.vm.internal"), 0);
            let [high, low] = n.to_be_bytes();
            name.ipv4 = Some(std::net::Ipv4Addr::new(10, 0, 16 + high, low));
            name
        })
        .collect();
    let (sockets, at) = loopback();
    client.put_network(&large, Some(sockets), None).await.unwrap();
    assert_eq!(addresses(&udp(at.udp4, "m9999.vm.internal", RecordType::A)).len(), 1);
    for number in 2..=300 {
        let (sockets, _) = loopback();
        client.put_network(&view(number, 1, &[(NAME, 10)]), Some(sockets), None).await.unwrap();
    }
    assert_eq!(client.status().await.unwrap().networks.len(), 300);
}
