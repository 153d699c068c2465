//! Commands: streams, status, users, terminals, time limits, background children.

use std::time::{Duration, Instant};

use bytes::Bytes;
use warren_model::Code;
use warren_model::access::{ExecInput, ExecOutput, MachineAccess, Signal, TerminalSize};

use crate::lab::{Lab, SOON, command, eventually, finish};

#[tokio::test(flavor = "multi_thread")]
async fn a_command_says_what_it_wrote_and_how_it_ended() {
    let lab = Lab::start().await;
    let ran = lab.sh("echo out; echo err >&2; exit 7").await;
    assert_eq!((ran.stdout.as_str(), ran.stderr.as_str(), ran.exit.status), ("out\n", "err\n", 7));
    assert_eq!((ran.exit.signal, ran.exit.timed_out), (None, false));
    let killed = lab.sh("kill -9 $$").await.exit;
    assert_eq!((killed.status, killed.signal), (137, Some(9)));
    // A real-time signal has no name and ends a command all the same.
    let killed = lab.sh("kill -40 $$").await.exit;
    assert_eq!((killed.status, killed.signal), (168, Some(40)));
}

#[tokio::test(flavor = "multi_thread")]
async fn stdin_reaches_the_command_and_its_end_does_too() {
    let lab = Lab::start().await;
    let session = lab.exec(command(&["sha256sum"])).await.unwrap();
    let input = session.input.clone();
    let feeding = tokio::spawn(async move {
        for _ in 0..64 {
            input.send(ExecInput::Stdin(Bytes::from(vec![7; 1 << 20]))).await.unwrap();
        }
        input.send(ExecInput::StdinClosed).await.unwrap();
    });
    let ran = finish(session).await;
    feeding.await.unwrap();
    let expected = lab.sh("head -c 67108864 /dev/zero | tr '\\0' '\\7' | sha256sum").await.stdout;
    assert_eq!(ran.stdout, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_does_not_read_its_stdin_still_gets_signals_and_ends() {
    let lab = Lab::start().await;
    let session = lab.exec(command(&["sleep", "100"])).await.unwrap();
    session.input.send(ExecInput::Stdin(Bytes::from(vec![0; 200_000]))).await.unwrap();
    session.input.send(ExecInput::Signal(Signal::Usr1)).await.unwrap();
    assert_eq!(finish(session).await.exit.signal, Some(10));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_run_says_why() {
    let lab = Lab::start().await;
    lab.write("/tmp/text", b"just text").await.unwrap();
    lab.sh("printf '#!/no/such/shell\\n' > /tmp/script; chmod +x /tmp/script; chmod -x /tmp/text").await;
    let code = async |change: &dyn Fn(&mut warren_model::access::ExecCommand)| {
        let mut asked = command(&["true"]);
        change(&mut asked);
        lab.exec(asked).await.map(drop).unwrap_err().code
    };
    assert_eq!(code(&|c| c.argv = vec!["no-such-program".into()]).await, Code::CommandNotFound);
    assert_eq!(code(&|c| c.argv = vec!["/no/such/program".into()]).await, Code::CommandNotFound);
    // Longer than an answer may be.
    let long = "n".repeat(200_000);
    assert_eq!(code(&|c| c.argv = vec![long.clone()]).await, Code::CommandNotExecutable);
    assert_eq!(code(&|c| c.user = Some(long.clone())).await, Code::UserNotFound);
    assert_eq!(code(&|c| c.cwd = Some(long.clone())).await, Code::DirectoryNotFound);
    assert!(lab.hub.is_connected(lab.machine));
    assert_eq!(code(&|c| c.argv = vec!["/tmp/text".into()]).await, Code::CommandNotExecutable);
    assert_eq!(code(&|c| c.argv = vec!["/tmp".into()]).await, Code::CommandNotExecutable);
    assert_eq!(code(&|c| c.argv = vec!["/tmp/script".into()]).await, Code::CommandNotExecutable);
    assert_eq!(code(&|c| c.argv = vec![]).await, Code::InvalidRequest);
    assert_eq!(code(&|c| c.argv = vec!["a\0b".into()]).await, Code::InvalidRequest);
    assert_eq!(code(&|c| c.user = Some("nobody-here".into())).await, Code::UserNotFound);
    assert_eq!(code(&|c| c.cwd = Some("/no/such/directory".into())).await, Code::DirectoryNotFound);
    assert_eq!(code(&|c| c.cwd = Some("relative".into())).await, Code::DirectoryNotFound);
    assert_eq!(code(&|c| c.argv = vec!["echo".into(), "x".repeat(3 << 20)]).await, Code::InvalidRequest);
    assert!(lab.hub.is_connected(lab.machine));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_gets_its_groups_home_and_environment() {
    let lab = Lab::start().await;
    let mut asked =
        command(&["sh", "-c", "id -u; id -g; id -G; echo $HOME $USER $SHELL $EXTRA; pwd; echo x > /dev/stdout"]);
    asked.user = Some("worker".into());
    asked.env.insert("EXTRA".into(), "more".into());
    let ran = lab.run(asked.clone()).await;
    assert_eq!(
        ran.stdout, "1000\n1000\n1000 50\n/home/worker worker /bin/sh more\n/home/worker\nx\n",
        "{}",
        ran.stderr
    );
    asked.user = Some("1000".into());
    asked.cwd = Some("/tmp".into());
    assert!(lab.run(asked).await.stdout.contains("\n/tmp\n"));
    let mut stranger = command(&["id", "-u"]);
    stranger.user = Some("4711".into());
    assert_eq!(lab.run(stranger).await.stdout, "4711\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_the_agent_leaks_into_a_command() {
    let lab = Lab::start().await;
    let ran = lab.sh("ls /proc/self/fd | tr '\\n' ' '; grep -E 'Sig(Blk|Ign)' /proc/self/status | cut -f2").await;
    assert_eq!(ran.stdout, "0 1 2 3 0000000000000000\n0000000000000000\n");
    // The agent reports without waiting for its log, which a thread of its own opens.
    let stdio = "/dev/null\n/var/log/warren-console.log\n/var/log/warren-console.log\n";
    eventually("the agent's output is its log", async || {
        lab.sh("readlink /proc/1/fd/0 /proc/1/fd/1 /proc/1/fd/2").await.stdout == stdio
    })
    .await;
    let leader = lab.sh("ps -o sid= -p 1 2>/dev/null || cut -d' ' -f6 /proc/1/stat").await.stdout;
    assert_eq!(leader.trim(), "1", "PID 1 leads its session");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_limit_ends_the_whole_group_even_one_that_ignores_sigterm() {
    let lab = Lab::start().await;
    let mut asked = command(&["sh", "-c", "trap '' TERM; echo started; sleep 111 & sleep 111"]);
    asked.timeout_ms = Some(300);
    let begun = Instant::now();
    let ran = lab.run(asked).await;
    assert_eq!((ran.exit.status, ran.exit.timed_out, ran.stdout.as_str()), (124, true, "started\n"));
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    eventually("nothing is left", async || lab.sh("pgrep -x sleep").await.exit.status == 1).await;
    let mut quick = command(&["sleep", "100"]);
    quick.timeout_ms = Some(100);
    assert!(lab.run(quick).await.exit.timed_out);
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_the_session_ends_the_command_but_not_what_it_put_into_the_background() {
    let lab = Lab::start().await;
    let mut session = lab.exec(command(&["sh", "-c", "setsid sleep 222 & echo ready; sleep 333"])).await.unwrap();
    assert!(matches!(session.output.recv().await, Some(ExecOutput::Stdout(_))));
    eventually("the command runs", async || lab.sh("pgrep -x -f 'sleep 333'").await.exit.status == 0).await;
    drop(session);
    eventually("the command ends", async || lab.sh("pgrep -x -f 'sleep 333'").await.exit.status == 1).await;
    assert_eq!(lab.sh("pgrep -x -f 'sleep 222'").await.exit.status, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_background_child_that_holds_stdout_does_not_hold_the_exec_and_can_go_on_writing() {
    let lab = Lab::start().await;
    let begun = Instant::now();
    let ran = lab.sh("(sleep 3; echo from behind; echo survived > /tmp/survived) & echo done").await;
    assert_eq!(ran.stdout, "done\n");
    assert!(begun.elapsed() < Duration::from_millis(2500), "{:?}", begun.elapsed());
    eventually("it did not die of a closed pipe", async || lab.read("/tmp/survived").await.is_ok()).await;
    let log = crate::lab::collect(lab.hub.logs(lab.machine, 10_000, false).await.unwrap()).await;
    assert!(String::from_utf8_lossy(&log).contains("from behind"));
    // One that never stops does not hold it either.
    assert_eq!(lab.sh("yes & echo done; exit 3").await.exit.status, 3);
    lab.sh("pkill -x yes").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn settling_waits_for_a_listener_and_not_longer() {
    let lab = Lab::start().await;
    let server = "perl -MIO::Socket::INET -e 'select undef,undef,undef,0.3; \
                  $s = IO::Socket::INET->new(Listen => 1, LocalPort => 8080) or die; sleep 60'";
    for (how, port) in [("{} > /dev/null 2>&1 &", 8080), ("setsid -f env -i {}", 8081), ("(setsid {} &) &", 8082)] {
        let server = server.replace("8080", &port.to_string());
        let mut asked = command(&["sh", "-c", &how.replace("{}", &server)]);
        asked.settle = true;
        let begun = Instant::now();
        lab.run(asked).await;
        let took = begun.elapsed();
        assert!((Duration::from_millis(290)..Duration::from_millis(990)).contains(&took), "{how}: {took:?}");
        let ports = lab.hub.listening_ports(lab.machine).await.unwrap();
        let found = ports.iter().find(|found| found.port == port).expect("it listens");
        assert_eq!(found.process.as_deref(), Some("perl"), "{ports:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn settling_sees_a_process_whose_parents_end_while_it_looks() {
    let lab = Lab::start().await;
    for _ in 0..60 {
        let mut asked = command(&["sh", "-c", "(((sh -c '((setsid sleep 0.1 &) &) &') &) &) &"]);
        asked.settle = true;
        let begun = Instant::now();
        lab.run(asked).await;
        assert!(begun.elapsed() >= Duration::from_millis(100), "{:?}", begun.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn settling_costs_nothing_where_nothing_is_left_and_a_second_at_most() {
    let lab = Lab::start().await;
    let timed = async |line: &str| {
        let mut asked = command(&["sh", "-c", line]);
        asked.settle = true;
        let begun = Instant::now();
        lab.run(asked).await;
        begun.elapsed()
    };
    timed("true").await;
    assert!(timed("true").await < Duration::from_millis(500));
    let second = timed("sleep 300 &").await;
    assert!((Duration::from_millis(950)..Duration::from_secs(5)).contains(&second), "{second:?}");
    // What an earlier command left is not this one's, even while another one is under way.
    let other = lab.exec(command(&["sleep", "20"])).await.unwrap();
    assert!(timed("true").await < Duration::from_millis(500));
    let short = timed("sleep 0.3 &").await;
    assert!((Duration::from_millis(290)..Duration::from_millis(950)).contains(&short), "{short:?}");
    drop(other);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_is_one_has_a_size_and_takes_control_characters() {
    let lab = Lab::start().await;
    let mut asked = command(&[
        "sh",
        "-c",
        "tty; stty size; trap 'stty size; exit 5' WINCH; echo ready; while :; do sleep 0.05; done",
    ]);
    asked.terminal = Some(TerminalSize { rows: 30, cols: 100 });
    asked.user = Some("worker".into());
    let session = lab.exec(asked).await.unwrap();
    let input = session.input.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(300)).await;
        input.send(ExecInput::Resize(TerminalSize { rows: 40, cols: 120 })).await.unwrap();
        tokio::time::sleep(SOON).await;
    });
    let ran = finish(session).await;
    assert_eq!((ran.stdout.as_str(), ran.exit.status), ("/dev/pts/0\r\n30 100\r\nready\r\n40 120\r\n", 5));

    let mut asked = command(&["cat"]);
    asked.terminal = Some(TerminalSize { rows: 24, cols: 80 });
    let session = lab.exec(asked.clone()).await.unwrap();
    session.input.send(ExecInput::Stdin(Bytes::from_static(b"hello\n\x03"))).await.unwrap();
    let ran = finish(session).await;
    assert_eq!(ran.exit.signal, Some(2), "control-C interrupts: {:?}", ran.stdout);
    let session = lab.exec(asked).await.unwrap();
    session.input.send(ExecInput::Stdin(Bytes::from_static(b"hello\n"))).await.unwrap();
    session.input.send(ExecInput::StdinClosed).await.unwrap();
    let ran = finish(session).await;
    assert_eq!((ran.exit.status, ran.stdout.matches("hello").count()), (0, 2), "{:?}", ran.stdout);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_holds_the_command_back_and_nobody_else() {
    let lab = Lab::start().await;
    let slow: Vec<_> = {
        let mut sessions = Vec::new();
        for _ in 0..8 {
            sessions.push(lab.exec(command(&["sh", "-c", "cat /dev/zero"])).await.unwrap());
        }
        sessions
    };
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(lab.sh("echo others go on").await.stdout, "others go on\n");
    let pieces = lab.exec(command(&["sh", "-c", "while :; do echo x; done"])).await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(lab.sh("echo still").await.stdout, "still\n");
    drop((slow, pieces));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_commands_at_once_all_end_well() {
    let lab = std::sync::Arc::new(Lab::start().await);
    let running: Vec<_> = (0..100)
        .map(|n| {
            let lab = std::sync::Arc::clone(&lab);
            tokio::spawn(async move { (n, lab.sh(&format!("echo {n}; exit {n}")).await) })
        })
        .collect();
    for ran in running {
        let (n, ran) = ran.await.unwrap();
        assert_eq!((ran.stdout, ran.exit.status), (format!("{n}\n"), n));
    }
}
