use std::collections::{HashMap, HashSet};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use tempfile::TempDir;

use super::*;
use crate::Compare;
use crate::sqlite::fail;

/// Where a child of these tests has its store.
const DIRECTORY: &str = "WARREN_STORE_CRASH";
const ROUNDS: usize = 30;
const WRITERS: usize = 4;
/// How far back the log of each writer goes.
const LOG: u64 = 20;
const DEATH_BY_ABORT: i32 = 6;
const DEATH_BY_KILL: i32 = 9;

fn limits() -> Limits {
    Limits { history: HistoryLimit { kept: 500, slack: 50, step: 40 }, ..Limits::default() }
}

/// The files of a store that one process after the other dies on.
struct Scene {
    directory: TempDir,
}

impl Scene {
    fn new() -> Self {
        Self { directory: TempDir::new().unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("store.db")
    }

    /// Runs the test again as a child, which finds itself in its environment.
    fn spawn(&self, test: &str, end_at: Option<String>) -> Child {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", test, "--nocapture"]).env(DIRECTORY, self.directory.path());
        if let Some(end_at) = end_at {
            command.env(fail::VARIABLE, end_at);
        }
        let complaints = fs::File::create(self.directory.path().join("complaints")).unwrap();
        command.stdout(Stdio::null()).stderr(complaints).spawn().unwrap()
    }

    fn complaints(&self) -> String {
        fs::read_to_string(self.directory.path().join("complaints")).unwrap_or_default()
    }

    /// What the children were answered: a line each. A line without an end was not written whole.
    fn answers(&self) -> Vec<String> {
        let text = fs::read_to_string(self.directory.path().join("answers")).unwrap_or_default();
        text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')).map(str::to_owned).collect()
    }
}

/// Writes down an answer; a write to a file outlives the process that made it.
fn answered(directory: &Path, line: &str) {
    let mut file = OpenOptions::new().create(true).append(true).open(directory.join("answers")).unwrap();
    file.write_all(format!("{line}\n").as_bytes()).unwrap();
}

fn child_directory() -> Option<PathBuf> {
    std::env::var_os(DIRECTORY).map(PathBuf::from)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

#[test]
fn killed_at_random_instants_it_keeps_every_answered_write_and_no_half_one() {
    const THIS: &str = "sqlite::tests::crash::killed_at_random_instants_it_keeps_every_answered_write_and_no_half_one";
    if let Some(directory) = child_directory() {
        return runtime().block_on(write_until_killed(&directory));
    }
    let scene = Scene::new();
    let mut random = u64::from(std::process::id()) | 1;
    for round in 0..ROUNDS {
        let answers_before = scene.answers().len();
        let mut child = scene.spawn(THIS, None);
        let started = Instant::now();
        // Most rounds wait for an answer, so that there is something to lose; the others may hit the opening.
        while round % 5 != 0 && scene.answers().len() == answers_before {
            let ended = child.try_wait().unwrap();
            assert!(ended.is_none(), "the child ended by itself: {}", scene.complaints());
            assert!(started.elapsed() < Duration::from_secs(60), "the child answers nothing: {}", scene.complaints());
            std::thread::sleep(Duration::from_millis(1));
        }
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        std::thread::sleep(Duration::from_micros(random % 60_000));
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(DEATH_BY_KILL));
        runtime().block_on(verify_writers(&scene));
        if scene.path().exists() {
            check_tables(&scene.path());
        }
    }
    assert!(scene.answers().len() > ROUNDS, "hardly anything was written: {}", scene.answers().len());
}

/// Each writer counts up: four keys that always agree, a log entry for each count, and the oldest log entry deleted.
async fn write_until_killed(directory: &Path) {
    let store = Arc::new(SqliteStore::open_with(&directory.join("store.db"), limits()).unwrap());
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        tasks.spawn(count_up(Arc::clone(&store), directory.to_owned(), writer));
    }
    tasks.join_all().await;
}

async fn count_up(store: Arc<SqliteStore>, directory: PathBuf, writer: usize) {
    if let Some(found) = store.get(&format!("w/{writer}/0")).await.unwrap() {
        // What was read is as certain as what was answered.
        answered(&directory, &format!("{writer} {} {}", number(&found.value), found.modified));
    }
    loop {
        let key = format!("w/{writer}/0");
        let last = store.get(&key).await.unwrap();
        let count = last.as_ref().map_or(0, |entry| number(&entry.value)) + 1;
        let compare = match last {
            Some(last) => Compare::Unchanged { key, modified: last.modified },
            None => Compare::Absent { key },
        };
        let text = count.to_string();
        let mut ops: Vec<_> = (0..4).map(|copy| put(&format!("w/{writer}/{copy}"), &text)).collect();
        ops.push(put(&format!("log/{writer}/{count:08}"), &text));
        ops.push(Op::Delete { key: format!("log/{writer}/{:08}", count.saturating_sub(LOG)) });
        match store.txn(Txn { compares: vec![compare], ops }).await.unwrap() {
            TxnOutcome::Committed(revision) => answered(&directory, &format!("{writer} {count} {revision}")),
            TxnOutcome::Conflict(_) => panic!("nobody else writes these keys"),
        }
    }
}

async fn verify_writers(scene: &Scene) {
    let store = SqliteStore::open_with(&scene.path(), limits()).unwrap();
    let mut answers: HashMap<usize, (u64, Revision)> = HashMap::new();
    for line in scene.answers() {
        let numbers: Vec<u64> = line.split(' ').map(|number| number.parse().unwrap()).collect();
        answers.insert(numbers[0] as usize, (numbers[1], numbers[2]));
    }
    for writer in 0..WRITERS {
        let (count, revision) = answers.get(&writer).copied().unwrap_or_default();
        let copies: Vec<_> = list(&store, &format!("w/{writer}/")).await;
        let Some(first) = copies.first() else {
            assert_eq!(count, 0, "an answered write is lost");
            continue;
        };
        assert!(copies.len() == 4 && copies.iter().all(|copy| copy.value == first.value), "half a write: {copies:?}");
        assert!(copies.iter().all(|copy| copy.modified == first.modified));
        let found = number(&first.value);
        assert!(found == count || found == count + 1, "{count} was answered at {revision}, {found} is there");
        assert!(first.modified >= revision);
        let log: Vec<_> =
            list(&store, &format!("log/{writer}/")).await.iter().map(|entry| number(&entry.value)).collect();
        assert_eq!(log, (found.saturating_sub(LOG) + 1..=found).collect::<Vec<_>>());
        if found == count {
            assert_eq!(first.modified, revision);
        }
    }
    let head = *store.head.borrow();
    if head.revision > 0 {
        verify_history(&store, head.oldest, head.revision).await;
    }
}

/// The store goes on shortening its history while it is read: what goes is its beginning.
async fn verify_history(store: &SqliteStore, mut oldest: Revision, newest: Revision) {
    let mut watch = store.watch("w/", oldest).await.unwrap();
    let mut revision = oldest;
    while revision <= newest {
        let changes = match watch.next().await {
            Err(StoreError::Compacted { oldest: kept, .. }) => {
                assert!(kept > oldest && kept <= newest + 1, "{oldest} to {newest}, and {kept} is the oldest");
                (oldest, revision) = (kept, kept);
                if kept <= newest {
                    watch = store.watch("w/", kept).await.unwrap();
                }
                continue;
            }
            other => other.unwrap(),
        };
        assert_eq!((changes[0].revision, changes.len()), (revision, 4), "the history lost something");
        revision += 1;
    }
}

#[test]
fn ended_between_any_two_steps_it_keeps_every_answered_write_and_no_half_one() {
    const THIS: &str =
        "sqlite::tests::crash::ended_between_any_two_steps_it_keeps_every_answered_write_and_no_half_one";
    if let Some(directory) = child_directory() {
        return runtime().block_on(tour(&directory));
    }
    for point in fail::POINTS {
        let passes: &[u32] = if point.starts_with("migration") { &[0] } else { &[0, 1, 4, 9] };
        // One store for all deaths at this point, so that what one leaves behind meets the next.
        let scene = Scene::new();
        for pass in passes {
            let status = scene.spawn(THIS, Some(format!("{point}:{pass}"))).wait().unwrap();
            let complaints = scene.complaints();
            assert_eq!(status.signal(), Some(DEATH_BY_ABORT), "{point}:{pass} is not reached: {status} {complaints}");
            runtime().block_on(verify_tour(&scene, point));
            check_tables(&scene.path());
        }
    }
}

/// Everything that the writer can do, again and again.
async fn tour(directory: &Path) {
    let limits = Limits { history: HistoryLimit { kept: 10, slack: 2, step: 3 }, ..Limits::default() };
    let store = SqliteStore::open_with(&directory.join("store.db"), limits).unwrap();
    let start = store.get("x/0").await.unwrap().map_or(0, |entry| number(&entry.value));
    // What was read is as certain as what was answered.
    answered(directory, &format!("x {start}"));
    for count in start + 1..start + 40 {
        let text = count.to_string();
        let compares = vec![Compare::EmptyPrefix { prefix: "never/".into() }];
        let ops = (0..3).map(|copy| put(&format!("x/{copy}"), &text)).collect();
        let outcome = store.txn(Txn { compares, ops }).await.unwrap();
        assert!(matches!(outcome, TxnOutcome::Committed(_)));
        answered(directory, &format!("x {count}"));

        let lease = store.grant(Duration::from_millis(5)).await.unwrap();
        let long = store.grant(Duration::from_secs(3600)).await.unwrap();
        let leased =
            |copy: &str, lease| Op::Put { key: format!("l/{count:04}/{copy}"), value: vec![1], lease: Some(lease) };
        let short = Txn { compares: vec![], ops: vec![leased("a", lease), leased("b", lease)] };
        // Its short time may be over before it is used.
        if let Err(error) = store.txn(short).await {
            assert!(matches!(error, StoreError::NoSuchLease(_)), "{error}");
        }
        commit(&store, vec![leased("c", long), leased("d", long)]).await;
        answered(directory, &format!("leased {count}"));
        store.keep_alive(long).await.unwrap();
        store.revoke(long).await.unwrap();
        answered(directory, &format!("revoked {count}"));
        let before = store.revision().await.unwrap() - 3;
        store.compact(before).await.unwrap();
        answered(directory, &format!("forgotten {before}"));
        tokio::time::sleep(Duration::from_millis(8)).await;
    }
}

async fn verify_tour(scene: &Scene, point: &str) {
    let store = SqliteStore::open(&scene.path()).unwrap();
    let mut last: HashMap<String, u64> = HashMap::new();
    let mut revoked = HashSet::new();
    for line in scene.answers() {
        let (what, count) = line.split_once(' ').unwrap();
        let count = count.parse().unwrap();
        last.insert(what.to_owned(), count);
        if what == "revoked" {
            revoked.insert(count);
        }
    }
    let last = |what: &str| last.get(what).copied().unwrap_or(0);
    let copies: Vec<_> = list(&store, "x/").await.iter().map(|entry| number(&entry.value)).collect();
    let found = copies.first().copied().unwrap_or(0);
    assert!(copies.is_empty() || copies == [found; 3], "{point}: half a write: {copies:?}");
    assert!(found == last("x") || found == last("x") + 1, "{point}: {} was answered, {found} is there", last("x"));
    // One list is one instant, in which a lease has both of its keys or none.
    let leased: Vec<_> = list(&store, "l/").await.into_iter().map(|entry| entry.key).collect();
    for count in 1..=found {
        let there = |copy: &str| leased.contains(&format!("l/{count:04}/{copy}"));
        assert_eq!(there("a"), there("b"), "{point}: half a lease");
        assert_eq!(there("c"), there("d"), "{point}: half a lease");
        assert!(!there("c") || !revoked.contains(&count), "{point}: a revoked lease is back");
    }
    assert!(store.head.borrow().oldest >= last("forgotten"), "{point}: a forgotten history is back");
    let started = Instant::now();
    while list(&store, "l/").await.iter().any(|entry| entry.key.ends_with('a') || entry.key.ends_with('b')) {
        assert!(started.elapsed() < Duration::from_secs(30), "{point}: a lease never ends");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn number(value: &[u8]) -> u64 {
    std::str::from_utf8(value).unwrap().parse().unwrap()
}
