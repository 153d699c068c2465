//! How long things take; printed, and held to generous bounds.

use std::time::{Duration, Instant};

use warren_model::access::{ExecInput, MachineAccess, WriteOptions};

use crate::lab::{Lab, bytes_of, collect, command};

#[tokio::test(flavor = "multi_thread")]
async fn an_exec_of_nothing_takes_a_few_milliseconds_at_most() {
    let lab = Lab::start().await;
    let mut asked = command(&["/usr/bin/true"]);
    asked.settle = true;
    let mut asking = Vec::new();
    for _ in 0..300 {
        let begun = Instant::now();
        lab.hub.stat(lab.machine, "/").await.unwrap();
        asking.push(begun.elapsed());
    }
    asking.sort();
    println!("stat: p50 {:?}", asking[asking.len() / 2]);
    let mut times = Vec::new();
    for _ in 0..300 {
        let begun = Instant::now();
        let mut session = lab.hub.exec(lab.machine, asked.clone()).await.unwrap();
        // It may have ended by now.
        let _ = session.input.send(ExecInput::StdinClosed).await;
        while session.output.recv().await.is_some() {}
        times.push(begun.elapsed());
    }
    times.sort();
    let (p50, p99) = (times[times.len() / 2], times[times.len() * 99 / 100]);
    println!("exec of true: p50 {p50:?}, p99 {p99:?}, least {:?}", times[0]);
    assert!(p50 < Duration::from_millis(20), "{p50:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_move_at_the_pace_of_memory() {
    const SIZE: usize = 64 << 20;
    let lab = Lab::start().await;
    let content = vec![5; SIZE];
    let begun = Instant::now();
    lab.hub.write_file(lab.machine, "/tmp/big", WriteOptions::default(), bytes_of(&content)).await.unwrap();
    let written = begun.elapsed();
    let begun = Instant::now();
    let (_, back) = lab.hub.read_file(lab.machine, "/tmp/big").await.unwrap();
    assert_eq!(collect(back).await.len(), SIZE);
    let read = begun.elapsed();
    let rate = |took: Duration| SIZE as f64 / took.as_secs_f64() / 1e6;
    println!("64 MiB: written at {:.0} MB/s, read at {:.0} MB/s", rate(written), rate(read));
    assert!(rate(written) > 20.0 && rate(read) > 20.0);
}
