//! Who is let in, what a restart of the daemon leaves, how a machine ends.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::Duration;

use tokio::net::UnixStream;
use warren_model::MachineId;
use warren_model::access::{ExecInput, ExecOutput, MachineAccess};
use warren_runtime::agent::{AgentError, AgentHub};

use crate::lab::{Lab, SOON, command, eventually, finish};

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_an_earlier_daemon_left_is_known_and_can_be_removed() {
    let directory = tempfile::tempdir().unwrap();
    let machine = MachineId::from_ulid(ulid::Ulid::generate());
    AgentHub::new(directory.path().to_owned()).unwrap().open(machine, 0).await.unwrap();
    let hub = AgentHub::new(directory.path().to_owned()).unwrap();
    assert_eq!(hub.directories().unwrap(), [machine].into());
    hub.close(machine).await;
    assert!(hub.directories().unwrap().is_empty());
    assert!(!directory.path().join(machine.bare()).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_let_in_but_the_first_process_of_the_machine() {
    let lab = Lab::start_unmet().await;
    let none = lab.hub.connected(lab.machine, Duration::from_millis(300)).await;
    assert!(matches!(none, Err(AgentError::NotConnected { .. })), "nobody said who PID 1 is");
    // This process is not it.
    let socket = lab.hub.directory().join(lab.machine.bare()).join("agent.sock");
    let _stranger = UnixStream::connect(&socket).await.unwrap();
    lab.hub.accept_from(lab.machine, lab.init + 1_000_000);
    eventually("both are counted", async || lab.hub.refused(lab.machine) >= 2).await;
    assert!(!lab.hub.is_connected(lab.machine));
    lab.hub.accept_from(lab.machine, lab.init);
    lab.hub.connected(lab.machine, SOON).await.unwrap();
    let before = lab.hub.refused(lab.machine);
    let _stranger = UnixStream::connect(&socket).await.unwrap();
    eventually("it is counted", async || lab.hub.refused(lab.machine) > before).await;
    assert!(lab.hub.is_connected(lab.machine));
    assert_eq!(lab.hub.version(lab.machine).as_deref(), Some(env!("CARGO_PKG_VERSION")));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_wrong_user_is_not_let_in_although_the_process_is_right() {
    let lab = Lab::start_unmet().await;
    // The agent runs as 0, and the machine's root is said to be another.
    lab.hub.open(lab.machine, 100_000).await.unwrap();
    lab.hub.accept_from(lab.machine, lab.init);
    eventually("it is counted", async || lab.hub.refused(lab.machine) > 0).await;
    assert!(!lab.hub.is_connected(lab.machine));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_directory_of_a_machine_is_as_the_driver_needs_it_and_goes_with_it() {
    let lab = Lab::start().await;
    let directory = lab.hub.open(lab.machine, 0).await.unwrap();
    assert!(lab.hub.is_connected(lab.machine), "opening again changes nothing");
    let mode = |name: &str| std::fs::metadata(directory.join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("init"), mode("agent.sock"), mode("."), mode("..")), (0o555, 0o600, 0o755, 0o711));
    assert!(std::fs::metadata(directory.join("init")).unwrap().nlink() >= 2, "a link, not a copy");
    let mut names: Vec<_> = std::fs::read_dir(&directory).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["agent.sock", "init"]);
    lab.hub.close(lab.machine).await;
    assert!(!directory.exists() && !lab.hub.is_connected(lab.machine));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_outlives_the_daemon_unless_it_waits_for_its_caller() {
    let mut lab = Lab::start().await;
    let whole = lab
        .exec(command(&[
            "sh",
            "-c",
            "echo begun; until [ -e /tmp/go ]; do sleep 0.1; done; echo on the console; touch /tmp/whole",
        ]))
        .await
        .unwrap();
    whole.input.send(ExecInput::StdinClosed).await.unwrap();
    let waiting =
        lab.exec(command(&["sh", "-c", "echo begun; cat > /tmp/half; touch /tmp/taken-for-whole"])).await.unwrap();
    waiting.input.send(ExecInput::Stdin(bytes::Bytes::from_static(b"half"))).await.unwrap();
    lab.sh("setsid -f sleep 444").await;
    eventually("the half arrives", async || lab.read("/tmp/half").await.is_ok_and(|half| half == b"half")).await;
    // As when the daemon is killed: the connection ends, and no stream is reset before.
    lab.hub.accept_from(lab.machine, 1);
    for mut session in [whole, waiting] {
        while let Some(item) = session.output.recv().await {
            assert!(!matches!(item, ExecOutput::Exit(_)));
        }
    }
    lab.restart_daemon().await;
    lab.write("/tmp/go", b"").await.unwrap();
    eventually("the whole command ends by itself", async || lab.read("/tmp/whole").await.is_ok()).await;
    eventually("the waiting one is ended", async || lab.sh("pgrep -x cat").await.exit.status == 1).await;
    assert_eq!(lab.read("/tmp/half").await.unwrap(), b"half");
    assert!(lab.read("/tmp/taken-for-whole").await.is_err());
    assert_eq!(lab.sh("pgrep -x -f 'sleep 444'").await.exit.status, 0);
    eventually("what it says is in the log", async || {
        let log = crate::lab::collect(lab.hub.logs(lab.machine, 4096, false).await.unwrap()).await;
        String::from_utf8_lossy(&log).contains("on the console")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agent_dials_again_within_a_moment_and_its_loss_is_told() {
    let mut lab = Lab::start().await;
    let mut lost = lab.hub.disconnects();
    for _ in 0..3 {
        lab.restart_daemon().await;
        assert_eq!(lab.sh("echo here").await.stdout, "here\n");
    }
    assert!(lost.try_recv().is_err(), "a hub that is gone tells nothing");
    let mut lost = lab.hub.disconnects();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(lab.init), nix::sys::signal::Signal::SIGKILL).unwrap();
    assert_eq!(tokio::time::timeout(SOON, lost.recv()).await.unwrap().unwrap(), lab.machine);
    assert!(!lab.hub.is_connected(lab.machine));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_is_gentle_first_and_final_after_the_grace() {
    let mut lab = Lab::start().await;
    let gentle = lab.exec(command(&["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.05; done"])).await.unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(lab.init), nix::sys::signal::Signal::SIGTERM).unwrap();
    let begun = std::time::Instant::now();
    assert!(lab.ended().await.success());
    // An end that waits for somebody takes the whole grace of 5 s.
    assert!(begun.elapsed() < Duration::from_millis(4500), "nobody is waited for who is gone: {:?}", begun.elapsed());
    drop(gentle);

    let mut lab = Lab::start().await;
    let mut stubborn =
        lab.exec(command(&["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done"])).await.unwrap();
    assert!(matches!(stubborn.output.recv().await, Some(ExecOutput::Stdout(ready)) if ready == "ready\n"));
    let begun = std::time::Instant::now();
    lab.hub.shutdown(lab.machine, Duration::from_millis(500)).await.unwrap();
    assert!(lab.ended().await.success());
    // The grace that was asked for, and not the 5 s of a machine that nobody asked.
    let took = begun.elapsed();
    assert!((Duration::from_millis(500)..Duration::from_millis(4500)).contains(&took), "{took:?}");
    drop(stubborn);
}

#[tokio::test(flavor = "multi_thread")]
async fn orphans_are_reaped() {
    let lab = Lab::start().await;
    lab.sh("for n in 1 2 3 4 5 6 7 8 9; do (sh -c 'sleep 0.1 &' &) ; done").await;
    eventually("no zombie", async || lab.sh("ps -eo stat= | grep -c Z || true").await.stdout == "0\n").await;
    let session = lab.exec(command(&["true"])).await.unwrap();
    assert_eq!(finish(session).await.exit.status, 0, "also without an end of stdin");
    assert!(lab.hub.stat(lab.machine, "/").await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_agent_is_noticed_and_met_again_and_a_quiet_command_goes_on() {
    let signal = |lab: &Lab, signal| nix::sys::signal::kill(nix::unistd::Pid::from_raw(lab.init), signal).unwrap();
    let (lab, healthy) = (Lab::start().await, Lab::start().await);
    let quiet = healthy.exec(command(&["sh", "-c", "sleep 21; echo there"])).await.unwrap();
    let mut held = lab.exec(command(&["sleep", "600"])).await.unwrap();
    signal(&lab, nix::sys::signal::Signal::SIGSTOP);
    let told = tokio::time::timeout(3 * SOON, held.output.recv()).await.expect("the caller is told");
    assert!(told.is_none(), "{told:?}");
    eventually("the loss is seen", async || !lab.hub.is_connected(lab.machine)).await;
    signal(&lab, nix::sys::signal::Signal::SIGCONT);
    lab.hub.connected(lab.machine, SOON).await.unwrap();
    assert_eq!(lab.sh("echo back").await.stdout, "back\n");
    assert_eq!(finish(quiet).await.stdout, "there\n");
}
