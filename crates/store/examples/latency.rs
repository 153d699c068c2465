//! Prints how long the store takes for a get and for a transaction, on the disk of the directory that is named.
//!
//! `cargo run --release -p warren-store --example latency -- DIRECTORY`

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use warren_store::sqlite::KEPT_CHANGES;
use warren_store::{Op, Range, SqliteStore, Store, Txn};

const KEYS: usize = 10_000;
const GETS: usize = 20_000;
const TXNS: usize = 1_000;
const TOGETHER: usize = 32;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let directory = PathBuf::from(std::env::args().nth(1).ok_or("which directory?")?);
    let path = directory.join(format!("latency-{}.db", std::process::id()));
    let result = measure(&path).await;
    for suffix in ["", "-wal", "-shm", ".lock"] {
        let mut file = path.as_os_str().to_owned();
        file.push(suffix);
        let _ = std::fs::remove_file(file);
    }
    result
}

async fn measure(path: &std::path::Path) -> Result<(), Box<dyn Error>> {
    let store = Arc::new(SqliteStore::open(path)?);
    let keys: Vec<_> = (0..KEYS).map(|index| format!("key/{index:064x}")).collect();
    for chunk in keys.chunks(500) {
        let ops = chunk.iter().map(|key| put(key, 300)).collect();
        store.txn(Txn { ops, ..Txn::default() }).await?;
    }

    let mut times = Vec::new();
    for index in 0..GETS {
        let key = &keys[index * 7919 % KEYS];
        let start = Instant::now();
        store.get(key).await?.ok_or("a key is missing")?;
        times.push(start.elapsed());
    }
    report("get", times);

    let mut times = Vec::new();
    for _ in 0..200 {
        let start = Instant::now();
        store.list(Range { prefix: "key/".into(), after: None, limit: 100 }).await?;
        times.push(start.elapsed());
    }
    report("list of 100", times);

    let mut times = Vec::new();
    for (index, key) in keys.iter().enumerate().take(TXNS) {
        let ops = vec![put(key, 300), put(&format!("audit/{index}"), 200)];
        let start = Instant::now();
        store.txn(Txn { ops, ..Txn::default() }).await?;
        times.push(start.elapsed());
    }
    report("txn of 2 puts, one at a time", times);

    let start = Instant::now();
    let mut tasks = Vec::new();
    for task in 0..TOGETHER {
        let store = Arc::clone(&store);
        tasks.push(tokio::spawn(async move {
            let mut times = Vec::new();
            for index in 0..TXNS / 4 {
                let ops = vec![put(&format!("many/{task}/{index}"), 300)];
                let start = Instant::now();
                store.txn(Txn { ops, ..Txn::default() }).await?;
                times.push(start.elapsed());
            }
            Ok::<_, warren_store::StoreError>(times)
        }));
    }
    let mut times = Vec::new();
    for task in tasks {
        times.extend(task.await??);
    }
    let per_second = times.len() as f64 / start.elapsed().as_secs_f64();
    report(&format!("txn of 1 put, {TOGETHER} at a time ({per_second:.0}/s)"), times);

    let writer = Arc::clone(&store);
    let writing = tokio::spawn(async move {
        for index in 0.. {
            if writer.txn(Txn { ops: vec![put(&format!("busy/{index}"), 300)], ..Txn::default() }).await.is_err() {
                return;
            }
        }
    });
    let mut times = Vec::new();
    for index in 0..GETS {
        let key = &keys[index * 7919 % KEYS];
        let start = Instant::now();
        store.get(key).await?;
        times.push(start.elapsed());
    }
    writing.abort();
    report("get beside a writer", times);

    for _ in 0..KEPT_CHANGES / 500 {
        let ops = keys.iter().take(500).map(|key| put(key, 300)).collect();
        store.txn(Txn { ops, ..Txn::default() }).await?;
    }
    let mut times = Vec::new();
    for key in keys.iter().cycle().take(TXNS * 4) {
        let start = Instant::now();
        store.txn(Txn { ops: vec![put(key, 300)], ..Txn::default() }).await?;
        times.push(start.elapsed());
    }
    report("txn of 1 put while the history is shortened", times);
    let middle = store.revision().await? - 50;
    let start = Instant::now();
    store.compact(middle).await?;
    println!("{:50}     {:>10.1?}", "compact", start.elapsed());
    let mut times = Vec::new();
    for key in keys.iter().cycle().take(TXNS) {
        let start = Instant::now();
        store.txn(Txn { ops: vec![put(key, 300)], ..Txn::default() }).await?;
        times.push(start.elapsed());
    }
    report("txn of 1 put after compact", times);
    Ok(())
}

fn put(key: &str, size: usize) -> Op {
    Op::Put { key: key.into(), value: vec![b'x'; size], lease: None }
}

fn report(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    println!("{what:50} p50 {:>10.1?}  p99 {:>10.1?}  max {:>10.1?}", at(0.5), at(0.99), at(1.0));
}
