//! Machines: their life, their limits, many at once.

mod common;

use std::time::Duration;

use common::{Server, eventually, text};

#[test]
fn a_machine_without_arguments_has_a_private_address() {
    let server = Server::start();
    let machine = server.json(&["machine", "create"]);
    assert_eq!(machine["private_ip"], "10.0.1.10");
    assert_eq!(machine["state"], "running");
    assert_eq!(machine["network"]["name"], "default");
    assert_eq!(machine["image"], "debian");
    let name = machine["name"].as_str().unwrap();
    assert_eq!(server.exec(name, "echo $((40+2))").trim(), "42");
}

#[test]
fn stop_keeps_disk_and_address_and_loses_memory() {
    let server = Server::start();
    server.ok(&["machine", "create", "a"]);
    server.exec("a", "echo disk > /root/file; mkdir -p /run/x; echo memory > /run/x/file");
    let stopped = server.json(&["machine", "stop", "a"]);
    assert_eq!(stopped["state"], "stopped");
    server.refused_as("machine_not_running", &["ports", "a"]);
    let started = server.json(&["machine", "start", "a"]);
    assert_eq!(started["state"], "running");
    assert_eq!(started["private_ip"], stopped["private_ip"]);
    assert_eq!(server.exec("a", "cat /root/file").trim(), "disk");
    assert_ne!(server.try_exec("a", "cat /run/x/file").0, 0);
    let boot = server.exec("a", "stat -c %Y /proc/1");
    std::thread::sleep(Duration::from_millis(1100));
    server.ok(&["machine", "restart", "a"]);
    assert_ne!(server.exec("a", "stat -c %Y /proc/1"), boot);
}

#[test]
fn exec_passes_streams_status_environment_directory_user_and_time_limit() {
    let server = Server::start();
    server.ok(&["machine", "create", "a"]);
    let output = server.run_with_input(&["exec", "a", "--", "cat"], b"one\ntwo\n");
    assert_eq!(text(&output.stdout), "one\ntwo\n");
    assert_eq!(server.try_exec("a", "echo out; echo err >&2; exit 7"), (7, "out\n".into(), "err\n".into()));
    assert_eq!(
        server.ok(&["exec", "--env", "X=a b", "--cwd", "/tmp", "a", "--", "sh", "-c", "echo $X; pwd"]),
        "a b\n/tmp\n"
    );
    assert_eq!(server.ok(&["exec", "--user", "nobody", "a", "--", "id", "-un"]).trim(), "nobody");
    let status = |arguments: &[&str]| server.run(arguments).status.code();
    assert_eq!(status(&["exec", "--timeout", "300ms", "a", "--", "sleep", "20"]), Some(124));
    assert_eq!(status(&["exec", "a", "--", "/nowhere/at/all"]), Some(127));
    assert_eq!(status(&["exec", "a", "--", "/etc/passwd"]), Some(126));
    assert_eq!(status(&["exec", "nobody-knows", "--", "true"]), Some(125));
    let big = server.run(&["exec", "a", "--", "head", "-c", "20000000", "/dev/zero"]);
    assert_eq!(big.stdout.len(), 20_000_000);
}

#[test]
fn exec_waits_until_a_background_child_listens_and_only_then() {
    let server = Server::start();
    server.ok(&["machine", "create", "a"]);
    server.exec("a", "nohup python3 -m http.server 9000 >/dev/null 2>&1 &");
    assert!(server.reaches("a", "127.0.0.1", 9000), "exec answered before the child listened");
    let ports = server.json(&["ports", "a"]);
    assert!(ports["items"].as_array().unwrap().iter().any(|port| port["port"] == 9000), "{ports}");
}

#[test]
fn limits_are_the_machines_and_hold() {
    let server = Server::start();
    server.ok(&["machine", "create", "a", "--cpus", "0.5", "--memory", "128"]);
    // A process that wants more memory than the machine has is killed, and the machine lives on.
    let (status, _, _) = server.try_exec("a", "python3 -c 'x = bytearray(400 << 20); print(len(x))'");
    assert_ne!(status, 0);
    assert_eq!(server.exec("a", "echo alive").trim(), "alive");
    // Half a processor: two seconds of work take about four.
    let busy = "python3 -c 'import time\nb=time.time()\nwhile time.process_time()<1: pass\nprint(time.time()-b)'";
    let took: f64 = server.exec("a", busy).trim().parse().unwrap();
    assert!(took > 1.5, "a second of work took {took} s on half a processor");
    // Processes and threads are counted; here only they run out, and not the memory that they take.
    server.ok(&["machine", "create", "b", "--memory", "1024"]);
    let many = "import threading,_thread\nthreading.stack_size(65536)\nlock=_thread.allocate_lock()\nlock.acquire()\n\
                n=0\ntry:\n  while n<6000:\n    _thread.start_new_thread(lock.acquire,()); n+=1\n\
                except RuntimeError: print('refused', n, flush=True)\nimport os; os._exit(0)";
    let said = server.ok(&["exec", "b", "--", "python3", "-c", many]);
    let count: u32 = said.trim().strip_prefix("refused ").expect("threads have a limit").parse().unwrap();
    assert!((3500..4100).contains(&count), "{count} threads");
    assert_eq!(server.exec("b", "echo alive").trim(), "alive");
}

#[test]
fn a_disk_limit_holds_or_is_refused() {
    let server = Server::start();
    let output = server.run(&["machine", "create", "a", "--disk", "1", "--json"]);
    if !output.status.success() {
        let problem: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
        assert_eq!(problem["code"], "limit_unavailable");
        server.refused_as("not_found", &["machine", "show", "a"]);
        return;
    }
    let (status, _, error) = server.try_exec("a", "head -c 1500000000 /dev/urandom > /root/big && sync");
    assert_ne!(status, 0, "1.5 GB were written to a disk of 1 GiB");
    assert!(error.contains("quota") || error.contains("space"), "{error}");
    server.exec("a", "rm -f /root/big; echo fine");
}

#[test]
fn fifty_machines_are_created_at_once() {
    let server = Server::start();
    server.ok(&["network", "create", "crowd", "--cidr", "10.9.0.0/24"]);
    let names: Vec<String> = (0..50).map(|n| format!("m{n}")).collect();
    let mut children: Vec<_> = names
        .iter()
        .map(|name| server.spawn(&["machine", "create", name, "--network", "crowd", "--memory", "64"]))
        .collect();
    for child in children.drain(..) {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}\n{}", text(&output.stderr), server.log());
    }
    let machines = server.json(&["machine", "ls", "--network", "crowd"]);
    let items = machines["items"].as_array().unwrap();
    assert_eq!(items.len(), 50);
    let addresses: std::collections::BTreeSet<_> = items.iter().map(|m| m["private_ip"].as_str().unwrap()).collect();
    assert_eq!(addresses.len(), 50);
    server.serve("m0", "first");
    assert_eq!(server.fetch("m49", "http://m0.vm.internal:8080/"), "first");
    server.ok(&["network", "rm", "crowd", "--force"]);
}

#[test]
fn the_last_address_has_one_holder() {
    let server = Server::start();
    // A /29 holds five members.
    server.ok(&["network", "create", "small", "--cidr", "10.9.9.0/29"]);
    for n in 0..4 {
        server.ok(&["machine", "create", &format!("m{n}"), "--network", "small", "--memory", "64"]);
    }
    let racing: Vec<_> = (0..4)
        .map(|n| {
            server.spawn(&["machine", "create", &format!("r{n}"), "--network", "small", "--memory", "64", "--json"])
        })
        .collect();
    let outputs: Vec<_> = racing.into_iter().map(|child| child.wait_with_output().unwrap()).collect();
    let won = outputs.iter().filter(|output| output.status.success()).count();
    assert_eq!(won, 1);
    for output in outputs.iter().filter(|output| !output.status.success()) {
        let problem: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
        assert_eq!(problem["code"], "network_full", "{problem}");
    }
    assert_eq!(server.json(&["machine", "ls", "--network", "small"])["items"].as_array().unwrap().len(), 5);
}

#[test]
fn a_released_address_rests_unless_it_is_asked_for() {
    let server = Server::start();
    server.ok(&["machine", "create", "a"]);
    server.ok(&["machine", "rm", "a"]);
    assert_eq!(server.json(&["machine", "create", "b"])["private_ip"], "10.0.1.11");
    assert_eq!(server.json(&["machine", "create", "c", "--ip", "10.0.1.10"])["private_ip"], "10.0.1.10");
}

#[test]
fn root_in_a_machine_is_nobody_on_the_host() {
    let server = Server::start();
    server.ok(&["machine", "create", "a"]);
    let map = server.exec("a", "cat /proc/self/uid_map");
    let fields: Vec<u64> = map.split_whitespace().map(|field| field.parse().unwrap()).collect();
    assert_eq!((fields[0], fields[2]), (0, 65_536));
    assert!(fields[1] >= 65_536, "{map}");
    for forbidden in [
        "mount -t tmpfs none /mnt && mount --bind /proc/1/root /mnt",
        "echo 1 > /proc/sys/kernel/panic",
        "mknod /dev/sda b 8 0",
        "cat /proc/kcore",
        "dmesg",
        "insmod /nowhere.ko",
    ] {
        let (status, output, _) = server.try_exec("a", &format!("{forbidden} 2>&1"));
        if forbidden.starts_with("mount") {
            continue;
        }
        assert_ne!(status, 0, "{forbidden} worked: {output}");
    }
    let seen = server.exec("a", "ls /run; cat /proc/mounts; cat /proc/1/environ | tr '\\0' '\\n'");
    assert!(!seen.contains("warren-test"), "a path of the host shows in the machine: {seen}");
}

#[test]
fn a_machine_that_breaks_the_agents_protocol_only_loses_itself() {
    let server = Server::start();
    server.ok(&["machine", "create", "good"]);
    server.ok(&["machine", "create", "bad"]);
    // Another process than PID 1 may dial the socket; nobody listens to it.
    server.try_exec(
        "bad",
        "python3 - <<'X'\nimport socket,os\nfor i in range(50):\n  s=socket.socket(socket.AF_UNIX)\n  try:\n    s.connect('/run/warren/agent.sock'); s.send(os.urandom(65536))\n  except OSError: pass\nX",
    );
    assert_eq!(server.exec("good", "echo fine").trim(), "fine");
    assert!(eventually(Duration::from_secs(30), || server.try_exec("bad", "echo fine").1.trim() == "fine"));
}

#[test]
fn what_is_declared_is_shown_found_and_changed() {
    let server = Server::start();
    let made = server.json(&[
        "machine",
        "create",
        "a",
        "--port",
        "web=8080/http",
        "--port",
        "metrics=9100",
        "--tag",
        "blue",
        "--label",
        "team=search",
    ]);
    assert_eq!(made["ports"][0], serde_json::json!({"name": "web", "port": 8080, "protocol": "http"}));
    assert_eq!((&made["tags"][0], &made["labels"]["team"]), (&"blue".into(), &"search".into()));
    server.ok(&["machine", "create", "b", "--label", "team=index"]);
    let found = |arguments: &[&str]| {
        let page = server.json(&[&["machine", "ls"], arguments].concat());
        let names =
            page["items"].as_array().unwrap().iter().map(|machine| machine["name"].as_str().unwrap().to_owned());
        names.collect::<Vec<_>>()
    };
    assert_eq!(found(&[]), ["a", "b"]);
    assert_eq!(found(&["--tag", "blue"]), ["a"]);
    assert_eq!(found(&["--label", "team=index"]), ["b"]);
    assert_eq!(found(&["--label", "team"]), ["a", "b"]);
    assert_eq!(found(&["--state", "stopped"]), [""; 0]);
    server.ok(&["machine", "set", "a", "--tag", "green", "--clear", "ports"]);
    let changed = server.json(&["machine", "show", "a"]);
    assert_eq!(changed["ports"], serde_json::json!([]));
    assert_eq!((&changed["tags"], &changed["labels"]["team"]), (&serde_json::json!(["green"]), &"search".into()));
}

#[test]
fn a_machine_knows_the_truth_about_itself_and_its_neighbours() {
    let server = Server::start();
    let a = server.json(&["machine", "create", "a"]);
    let address = a["private_ip"].as_str().unwrap();
    assert_eq!(server.exec("a", "hostname; cat /etc/hostname"), "a\na\n");
    assert!(server.exec("a", "getent ahostsv4 a.vm.internal").contains("10.0.1.10"));
    assert!(server.exec("a", "cat /etc/hosts").lines().any(|line| line.starts_with(address)));
    assert!(server.exec("a", "cat /etc/resolv.conf").contains("nameserver 10.0.0.1"));
    let facts = || server.exec("a", "cat /etc/warren/facts.md");
    assert!(facts().contains(address) && facts().contains("a.vm.internal"), "{}", facts());

    server.ok(&["machine", "create", "b", "--port", "web=8080/http"]);
    let within = Duration::from_secs(30);
    assert!(eventually(within, || facts().contains("b.vm.internal") && facts().contains("8080")), "{}", facts());
    server.ok(&["machine", "rename", "b", "c"]);
    assert!(eventually(within, || facts().contains("c.vm.internal") && !facts().contains("b.vm.internal")));
    assert!(eventually(within, || server.exec("c", "cat /etc/hostname").trim() == "c"));
    server.ok(&["machine", "restart", "c"]);
    assert_eq!(server.exec("c", "hostname").trim(), "c");
    assert!(eventually(within, || server.try_exec("a", "getent hosts c.vm.internal").0 == 0));
    assert_ne!(server.try_exec("a", "getent hosts b.vm.internal").0, 0, "an old name answers");
    server.ok(&["machine", "rm", "c"]);
    assert_ne!(server.try_exec("a", "getent hosts c.vm.internal").0, 0, "a name outlived its machine");
    assert!(eventually(within, || !facts().contains("c.vm.internal")), "{}", facts());
}

#[test]
fn a_removed_machine_leaves_nothing() {
    let server = Server::start();
    let id = server.json(&["machine", "create", "a"])["id"].as_str().unwrap().to_owned();
    let bare = id.rsplit('_').next().unwrap().to_owned();
    let traces = || {
        let traces = Server::traces(&server.installation()).into_iter();
        traces.filter(|trace| trace.contains(&bare)).collect::<Vec<_>>()
    };
    let disk = common::pool().join("fs/disks").join(server.installation()).join(&bare);
    assert!(disk.exists() && !traces().is_empty());
    server.ok(&["machine", "rm", "a"]);
    server.refused_as("not_found", &["machine", "show", &id]);
    assert!(!disk.exists());
    assert_eq!(traces(), [""; 0]);
}

#[test]
fn signals_reach_the_command() {
    let server = Server::start();
    server.ok(&["machine", "create", "a"]);
    let script = "trap 'echo caught; exit 9' INT; touch /run/ready; while :; do sleep 0.1; done";
    let child = server.spawn(&["exec", "a", "--", "sh", "-c", script]);
    assert!(eventually(Duration::from_secs(30), || server.try_exec("a", "test -e /run/ready").0 == 0));
    let sent = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(9), "caught\n"));
    // A caller that vanishes takes its command with it.
    let mut gone = server.spawn(&["exec", "a", "--", "sleep", "4321"]);
    let runs = || server.try_exec("a", "grep -lz ^4321 /proc/[0-9]*/cmdline").0 == 0;
    assert!(eventually(Duration::from_secs(30), runs));
    gone.kill().unwrap();
    gone.wait().unwrap();
    assert!(eventually(Duration::from_secs(30), || !runs()), "the command outlived its caller");
}
