//! Files, configuration, ports and the console log.

use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, stream};
use warren_model::Code;
use warren_model::access::{FileKind, MachineAccess, WriteOptions};
use warren_model::record::Protocol;
use warren_runtime::agent::{GuestConfig, GuestFile};

use crate::lab::{Lab, bytes_of, collect, command, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn a_file_comes_back_as_it_was_written() {
    let lab = Lab::start().await;
    let content: Vec<u8> = (0..20_000_000u32).map(|n| (n % 251) as u8).collect();
    let options = WriteOptions { mode: Some(0o750), parents: true };
    let written = lab.hub.write_file(lab.machine, "/srv/a/b.bin", options, bytes_of(&content)).await.unwrap();
    assert_eq!((written.name.as_str(), written.size, written.mode), ("b.bin", 20_000_000, 0o750));
    assert!(lab.read("/srv/a/b.bin").await.unwrap() == content);
    lab.sh("chown 1000:50 /srv/a/b.bin").await;
    let again = lab.write("/srv/a/b.bin", b"").await.unwrap();
    assert_eq!((again.uid, again.gid, again.mode, again.size), (1000, 50, 0o750, 0));
    assert_eq!(lab.read("/srv/a/b.bin").await.unwrap(), b"");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unfinished_or_refused_write_changes_nothing() {
    let lab = Lab::start().await;
    lab.write("/tmp/kept", b"old").await.unwrap();
    let broken = stream::iter([Ok(Bytes::from_static(b"new")), Err(std::io::Error::other("broke off"))]).boxed();
    let error = lab.hub.write_file(lab.machine, "/tmp/kept", WriteOptions::default(), broken).await.unwrap_err();
    assert_eq!(error.code, Code::InvalidRequest);
    assert_eq!(lab.write("/small/big", &vec![1; 8 << 20]).await.unwrap_err().code, Code::MachineDiskFull);
    assert_eq!(lab.write("/no/such/file", b"x").await.unwrap_err().code, Code::PathNotFound);
    assert_eq!(lab.write("/proc/1/root/etc/", b"x").await.unwrap_err().code, Code::PathInvalid);
    assert_eq!(lab.write("/usr/bin/x", b"x").await.unwrap_err().code, Code::PathDenied);
    assert_eq!(lab.write("/tmp", b"x").await.unwrap_err().code, Code::PathConflict);
    assert_eq!(lab.read("/tmp/kept").await.unwrap(), b"old");
    eventually("no temporary file stays", async || {
        lab.sh("ls -A /tmp /small").await.stdout == "/small:\n\n/tmp:\nkept\n"
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_regular_file_never_holds_the_agent() {
    let lab = Lab::start().await;
    lab.sh("mkfifo /tmp/fifo; ln -s /dev/zero /tmp/zero; ln -s loop /tmp/loop").await;
    for path in ["/tmp/fifo", "/tmp/zero", "/dev/tty", "/dev/random", "/tmp", "/proc/self/fd"] {
        assert_eq!(lab.read(path).await.unwrap_err().code, Code::PathConflict, "{path}");
    }
    assert_eq!(lab.read("/tmp/loop").await.unwrap_err().code, Code::PathInvalid);
    assert_eq!(lab.read("/tmp/nothing").await.unwrap_err().code, Code::PathNotFound);
    for path in ["relative", "../etc/passwd", "/a\0b", ""] {
        assert_eq!(lab.read(path).await.unwrap_err().code, Code::PathInvalid, "{path:?}");
    }
    // A file whose size says nothing is read to its end.
    assert!(lab.read("/proc/self/status").await.unwrap().len() > 100);
    // A path leads nowhere else than in the machine.
    let passwd = lab.read("/../../../proc/1/root/../etc/passwd").await.unwrap();
    assert!(String::from_utf8_lossy(&passwd).contains("worker"));
}

#[tokio::test(flavor = "multi_thread")]
async fn directories_are_made_listed_and_removed() {
    let lab = Lab::start().await;
    let hub = &lab.hub;
    assert_eq!(hub.make_directory(lab.machine, "/tmp/a/b", false).await.unwrap_err().code, Code::PathNotFound);
    assert_eq!(hub.make_directory(lab.machine, "/tmp/a/b", true).await.unwrap().kind, FileKind::Directory);
    lab.sh("cd /tmp/a; echo hi > file; ln -s /etc link; mkfifo fifo").await;
    let entries = hub.list_directory(lab.machine, "/tmp/a/").await.unwrap();
    let seen: Vec<_> = entries.iter().map(|e| (e.path.as_str(), e.kind)).collect();
    let expected = [
        ("/tmp/a/b", FileKind::Directory),
        ("/tmp/a/fifo", FileKind::Other),
        ("/tmp/a/file", FileKind::File),
        ("/tmp/a/link", FileKind::Symlink),
    ];
    assert_eq!(seen, expected);
    assert_eq!(hub.stat(lab.machine, "/tmp/a/link").await.unwrap().target.as_deref(), Some("/etc"));
    assert_eq!(hub.stat(lab.machine, "/").await.unwrap().name, "/");
    assert_eq!(hub.remove(lab.machine, "/tmp/a", false).await.unwrap_err().code, Code::PathConflict);
    hub.remove(lab.machine, "/tmp/a", true).await.unwrap();
    assert_eq!(hub.stat(lab.machine, "/tmp/a").await.unwrap_err().code, Code::PathNotFound);
    assert!(lab.read("/etc/passwd").await.is_ok(), "what a link points at stays");
    assert_eq!(hub.remove(lab.machine, "/", true).await.unwrap_err().code, Code::PathInvalid);
    lab.sh("mkdir /tmp/many; cd /tmp/many; seq 10001 | xargs touch").await;
    assert_eq!(hub.list_directory(lab.machine, "/tmp/many").await.unwrap_err().code, Code::LimitOutOfRange);
}

#[tokio::test(flavor = "multi_thread")]
async fn configuration_is_applied_and_only_where_it_differs() {
    let lab = Lab::start().await;
    let file = |path: &str, content: &str| GuestFile { path: path.into(), mode: 0o644, content: content.into() };
    let mut config = GuestConfig {
        hostname: "worker".into(),
        files: vec![file("/etc/hosts", "127.0.0.1 localhost\n"), file("/etc/warren/facts.md", "# Facts\n")],
    };
    lab.hub.configure(lab.machine, &config).await.unwrap();
    assert_eq!(
        lab.sh("hostname; cat /etc/hostname /etc/hosts /etc/warren/facts.md").await.stdout,
        "worker\nworker\n127.0.0.1 localhost\n# Facts\n"
    );
    let inodes = async || lab.sh("stat -c %i /etc/hostname /etc/hosts /etc/warren/facts.md").await.stdout;
    let before = inodes().await;
    lab.hub.configure(lab.machine, &config).await.unwrap();
    assert_eq!(inodes().await, before);
    for bad in ["/root/.profile", "/etc/../root/x", "etc/x", "/etc/"] {
        config.files[0].path = bad.into();
        assert!(lab.hub.configure(lab.machine, &config).await.is_err(), "{bad}");
    }
    config.files.clear();
    config.hostname = "no spaces".into();
    assert!(lab.hub.configure(lab.machine, &config).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn listening_ports_are_named_with_who_listens() {
    let lab = Lab::start().await;
    lab.sh("perl -MIO::Socket::INET -MSocket -e '$a=IO::Socket::INET->new(Listen=>1,LocalAddr=>\"127.0.0.1\",LocalPort=>7001) or die; \
            $b=IO::Socket::INET->new(Proto=>\"udp\",LocalPort=>7002) or die; \
            socket(S,AF_INET6,SOCK_STREAM,0) or die; bind(S,pack_sockaddr_in6(7003,Socket::IN6ADDR_ANY)) or die; listen(S,1) or die; \
            sleep 60' > /dev/null 2>/tmp/err &").await;
    let mut found = Vec::new();
    eventually("three ports", async || {
        found = lab.hub.listening_ports(lab.machine).await.unwrap();
        found.len() == 3
    })
    .await;
    let seen: Vec<_> =
        found.iter().map(|p| (p.protocol, p.address.to_string(), p.port, p.process.as_deref())).collect();
    let perl = Some("perl");
    let expected = [
        (Protocol::Tcp, "127.0.0.1".to_owned(), 7001, perl),
        (Protocol::Tcp, "::".to_owned(), 7003, perl),
        (Protocol::Udp, "0.0.0.0".to_owned(), 7002, perl),
    ];
    assert_eq!(seen, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_console_log_has_a_tail_and_can_be_followed() {
    let lab = Lab::start().await;
    eventually("the agent's own first line", async || {
        let tail = collect(lab.hub.logs(lab.machine, 1 << 20, false).await.unwrap()).await;
        String::from_utf8_lossy(&tail).contains("started")
    })
    .await;
    let mut following = lab.hub.logs(lab.machine, 0, true).await.unwrap();
    lab.run(command(&["sh", "-c", "(sleep 0.3; echo later) &"])).await;
    let next = tokio::time::timeout(Duration::from_secs(5), following.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(&next[..], b"later\n");
    // Two files of 1 MiB at most, whatever is written.
    lab.sh("(sleep 0.2; head -c 5000000 /dev/zero | tr '\\0' x; echo; touch /tmp/written) &").await;
    eventually("all is written", async || lab.read("/tmp/written").await.is_ok()).await;
    let sizes = lab.sh("stat -c %s /var/log/warren-console.log*").await.stdout;
    assert!(sizes.lines().all(|size| size.parse::<u64>().unwrap() <= 1 << 20), "{sizes}");
}
