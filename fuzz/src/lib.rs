//! Fuzz targets for the parsers of bytes from outside: one test each in `tests/`, run by [`run`] on a stable compiler.
//!
//! A target starts from valid inputs and changes them at random. An input that leads somewhere new is kept and changed
//! further, so that a target needs no instrumented build to get deep. A panic, a loop that does not end, and an input
//! that takes more memory or time than its size explains are failures.
//!
//! ```text
//! cargo test -p warren-fuzz                                        every target, 3 s each
//! WARREN_FUZZ_SECONDS=60 cargo test -p warren-fuzz tls             longer, and only the targets of TLS
//! WARREN_FUZZ_SEED=7 cargo test -p warren-fuzz                     other inputs
//! WARREN_FUZZ_INPUT=FILE cargo test -p warren-fuzz --test edge -- --exact dns_questions     one input again
//! ```
//!
//! A failing input stays in `target/fuzz/`. Once it is mended, it goes into `corpus/TARGET/`, from where every run begins.

mod mutate;

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

use crate::mutate::Random;

/// What an input led to: `Ok` where it was accepted. The numbers tell the ways apart.
pub type Seen = Result<u64, u64>;

/// How long a target runs when nothing is said.
const SECONDS: u64 = 3;
/// What one input may take of the processor: a thousand times what the slowest target needs for a usual one.
const MOST_TIME: Duration = Duration::from_secs(2);
/// After this time by the clock, an input hangs.
const HANGS: Duration = Duration::from_secs(30);
/// The stack of a thread of the server.
const STACK: usize = 2 << 20;
/// How many inputs that led somewhere new are kept.
const KEPT: usize = 2000;

/// A parser, and what it is fed with.
pub struct Target<'a> {
    /// That of its test.
    pub name: &'static str,
    /// Inputs that the parser accepts.
    pub seeds: Vec<Vec<u8>>,
    /// Pieces that inputs are made of.
    pub words: &'a [&'a [u8]],
    /// The longest input, in bytes.
    pub longest: usize,
    /// What may be allocated at one time, in bytes.
    pub memory: u64,
    pub parse: &'a (dyn Fn(&[u8]) -> Seen + Sync),
}

/// A number for what was seen.
pub fn kind(seen: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    seen.hash(&mut hasher);
    hasher.finish()
}

/// Runs a target for its time, or for the one input that was asked for.
///
/// # Panics
/// When an input fails, or the parser does not accept a seed.
pub fn run(target: &Target<'_>) {
    let given: Option<PathBuf> = std::env::var_os("WARREN_FUZZ_INPUT").map(PathBuf::from);
    let work = match &given {
        Some(file) => Work::One(fs::read(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))),
        None => Work::Search { time: Duration::from_secs(setting("WARREN_FUZZ_SECONDS", SECONDS)) },
    };
    let place = place();
    fs::create_dir_all(&place).unwrap_or_else(|error| panic!("{}: {error}", place.display()));
    // Each input is written down before it is tried: it may end the process.
    let path = place.join(format!("{}.tried", target.name));
    let tried = File::create(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let began = AtomicU64::new(0);
    let start = Instant::now();
    let attempt = |input: &[u8]| {
        let written = tried.write_all_at(input, 0).and_then(|()| tried.set_len(input.len() as u64));
        written.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        began.store(start.elapsed().as_millis() as u64 + 1, Relaxed);
        let outcome = attempt(target, input);
        began.store(0, Relaxed);
        outcome.map_err(|why| format!("{why}\n{}", keep(target, &place, input)))
    };
    let result = thread::scope(|scope| {
        let worker = thread::Builder::new()
            .name(target.name.to_owned())
            .stack_size(STACK)
            .spawn_scoped(scope, || match work {
                Work::One(input) => attempt(&input).map(|seen| format!("that input is {}", shown(seen))),
                Work::Search { time } => search(target, time, attempt),
            })
            .unwrap_or_else(|error| panic!("no thread for {}: {error}", target.name));
        while !worker.is_finished() {
            thread::sleep(Duration::from_millis(20));
            let since = began.load(Relaxed);
            if since > 0 && start.elapsed() > HANGS + Duration::from_millis(since) {
                // A thread cannot be ended, and the test must not wait for it.
                say(&format!("{}: an input hangs; it is in {}", target.name, path.display()));
                std::process::abort();
            }
        }
        worker.join().unwrap_or_else(|_| Err("the runner failed".to_owned()))
    });
    match result {
        Ok(line) => say(&format!("{}: {line}", target.name)),
        Err(why) => panic!("{}: {why}", target.name),
    }
    // Nothing failed, so nobody needs it.
    let _ = fs::remove_file(&path);
}

enum Work {
    One(Vec<u8>),
    Search { time: Duration },
}

fn search(
    target: &Target<'_>,
    time: Duration,
    mut attempt: impl FnMut(&[u8]) -> Result<Seen, String>,
) -> Result<String, String> {
    let seed = setting("WARREN_FUZZ_SEED", 0);
    let mut random = Random::new(target.name, seed);
    let mut ways = std::collections::HashSet::new();
    let mut inputs = Vec::new();
    for input in &target.seeds {
        match attempt(input)? {
            Ok(way) => ways.insert(Ok(way)),
            Err(_) => return Err(format!("a seed is refused: {:?}", String::from_utf8_lossy(input))),
        };
        inputs.push(input.clone());
    }
    for input in corpus(target.name) {
        ways.insert(attempt(&input)?);
        inputs.push(input);
    }
    let (mut count, mut accepted) = (0u64, 0u64);
    let end = Instant::now() + time;
    while Instant::now() < end {
        let input = mutate::next(&inputs, target.words, target.longest, &mut random);
        let seen = attempt(&input)?;
        count += 1;
        accepted += u64::from(seen.is_ok());
        if ways.insert(seen) && inputs.len() < KEPT {
            inputs.push(input);
        }
    }
    let rate = count as f64 / time.as_secs_f64().max(1.0);
    Ok(format!("{count} inputs ({rate:.0}/s), {accepted} accepted, {} ways seen, seed {seed}", ways.len()))
}

/// One input, within its bounds.
fn attempt(target: &Target<'_>, input: &[u8]) -> Result<Seen, String> {
    let before = processor_time();
    let mut outcome = None;
    let used = allocation_counter::measure(|| {
        outcome = Some(catch_unwind(AssertUnwindSafe(|| (target.parse)(input))));
    });
    let time = processor_time().saturating_sub(before);
    match outcome {
        Some(Ok(_)) if time > MOST_TIME => Err(format!("{} bytes took {time:?}", input.len())),
        Some(Ok(_)) if used.bytes_max > target.memory => {
            Err(format!("{} bytes took {} bytes of memory", input.len(), used.bytes_max))
        }
        Some(Ok(seen)) => Ok(seen),
        Some(Err(panic)) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            Err(text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked").to_owned())
        }
        None => Err("it was not tried".to_owned()),
    }
}

/// Of this thread.
fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// Keeps a failing input, and says how to try it again.
fn keep(target: &Target<'_>, place: &Path, input: &[u8]) -> String {
    let file = place.join(format!("{}-{:016x}", target.name, kind(input)));
    match fs::write(&file, input) {
        Ok(()) => format!("try it again with WARREN_FUZZ_INPUT={} and this test alone", file.display()),
        Err(error) => format!("the input cannot be kept in {}: {error}", file.display()),
    }
}

/// `target/fuzz`: a test runs from `target/PROFILE/deps`.
fn place() -> PathBuf {
    let program = std::env::current_exe().unwrap_or_default();
    program.ancestors().nth(3).unwrap_or(Path::new("target")).join("fuzz")
}

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let Ok(entries) = fs::read_dir(&directory) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.filter_map(Result::ok).map(|entry| entry.path()).collect();
    // The same run on every machine.
    paths.sort();
    let read = |path: &PathBuf| fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    paths.iter().map(read).collect()
}

fn setting(name: &str, usual: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text:?}")),
        Err(_) => usual,
    }
}

fn shown(seen: Seen) -> &'static str {
    if seen.is_ok() { "accepted" } else { "refused" }
}

/// To stderr itself: what a test prints is shown only when it fails.
fn say(line: &str) {
    let _ = writeln!(io::stderr(), "fuzz {line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(parse: &(dyn Fn(&[u8]) -> Seen + Sync)) -> Target<'_> {
        Target { name: "own", seeds: vec![b"a".to_vec()], words: &[b"\xff\xff"], longest: 100, memory: 1 << 20, parse }
    }

    fn tried(parse: &(dyn Fn(&[u8]) -> Seen + Sync)) -> Result<String, String> {
        let target = target(parse);
        // A failure ends it long before, also on a busy machine.
        search(&target, Duration::from_secs(60), |input| attempt(&target, input))
    }

    #[test]
    fn a_panic_behind_several_conditions_is_found() {
        let why = tried(&|input| match input {
            [b'a', b'a', 0xff, 0xff, ..] => panic!("found"),
            [b'a', b'a', 0xff, ..] => Ok(2),
            [b'a', b'a', ..] => Ok(1),
            [_, ..] => Ok(0),
            [] => Err(0),
        });
        assert_eq!(why.unwrap_err(), "found");
    }

    #[test]
    fn more_memory_or_time_than_allowed_is_a_failure() {
        let why = tried(&|input| Ok(Vec::<u8>::with_capacity(input.len() << 20).capacity() as u64));
        assert!(why.unwrap_err().contains("bytes of memory"));
        let busy = target(&|_| {
            let before = processor_time();
            while processor_time() - before <= MOST_TIME {}
            Ok(0)
        });
        assert!(attempt(&busy, b"a").unwrap_err().contains("took"));
    }

    #[test]
    fn a_seed_that_is_refused_is_a_failure() {
        assert!(tried(&|_| Err(0)).unwrap_err().contains("a seed is refused"));
    }

    #[test]
    fn the_same_seed_makes_the_same_inputs() {
        let inputs = |seed| {
            let mut random = Random::new("own", seed);
            let from = [b"GET / HTTP/1.1\r\n".to_vec(), vec![0; 40]];
            (0..1000).map(|_| mutate::next(&from, &[b"word"], 64, &mut random)).collect::<Vec<_>>()
        };
        assert_eq!(inputs(1), inputs(1));
        assert_ne!(inputs(1), inputs(2));
        assert!(inputs(1).iter().all(|input| input.len() <= 64));
    }
}
