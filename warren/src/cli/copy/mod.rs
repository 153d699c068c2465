//! `cp`: files and directories into, out of and between machines.
//!
//! | module | holds |
//! | --- | --- |
//! | [`end`] | what a side of the command line names |
//! | [`place`] | one file or directory, here or in a machine, and what can be done with it |
//! | [`local`], [`remote`] | how that is done here and there |
//!
//! A directory is walked, one file at a time. What a machine says about names is not trusted: a name that is more than
//! one step below its directory is refused.

pub mod end;
pub mod local;
pub mod place;
pub mod remote;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use clap::Args;
use futures::StreamExt;
use indicatif::ProgressBar;
use serde_json::json;

use self::end::End;
use self::place::{Kind, Place};
use super::Context;
use super::failure::Failure;
use super::output::note;
use super::progress::copy_bar;
use super::render::{bytes, printable};

#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(after_help = "\
One side is MACHINE:/path; the other is a path here, another MACHINE:/path, or - for stdin or stdout. A directory is copied \
with everything below it. As with cp, a destination that is a directory gets the copy inside. Symbolic links are followed \
to files; those to directories are left out, and so are names that are not UTF-8 (the exit status is 1
then); `exec` tar takes everything.

Examples:
  warren cp notes.txt worker:/srv/notes.txt
  warren cp worker:/var/log/app.log .
  warren cp ./site worker:/srv
  warren cp worker:/srv/data backup:/srv
  tar c src | warren cp - worker:/tmp/src.tar
  warren cp worker:/etc/os-release - | head -1")]
pub struct CopyArgs {
    /// What to copy
    #[arg(value_name = "SRC")]
    pub source: String,
    /// Where to
    #[arg(value_name = "DST")]
    pub destination: String,
}

/// What has been copied so far.
#[derive(Debug, Default)]
struct Tally {
    files: u64,
    directories: u64,
    skipped: u64,
    bytes: Arc<AtomicU64>,
}

pub async fn run(context: &Context, args: CopyArgs) -> Result<(), Failure> {
    let source = End::parse(&args.source).map_err(Failure::Usage)?;
    let destination = End::parse(&args.destination).map_err(Failure::Usage)?;
    let to_stdout = destination == End::Stream;
    let tally = between(context, source, destination).await?;
    let total = tally.bytes.load(Ordering::Relaxed);
    if to_stdout {
        return Ok(());
    }
    if context.output.json {
        context.output.json(&json!({
            "files": tally.files,
            "directories": tally.directories,
            "skipped": tally.skipped,
            "bytes": total,
        }))?;
    } else {
        let files = if tally.files == 1 { "1 file".to_owned() } else { format!("{} files", tally.files) };
        note(&format!("copied {files}, {}", bytes(total)));
    }
    // Each was named; a script must not take the copy for a whole one.
    if tally.skipped > 0 { Err(Failure::Silent(1)) } else { Ok(()) }
}

async fn between(context: &Context, source: End, destination: End) -> Result<Tally, Failure> {
    if !matches!(source, End::Remote { .. }) && !matches!(destination, End::Remote { .. }) {
        return Err(Failure::Usage("neither side is in a machine; write MACHINE:/path on one of them".to_owned()));
    }
    if source.holds(&destination) {
        return Err(Failure::Usage("a directory cannot be copied into itself".to_owned()));
    }
    let name = source.name();
    let from = Place::new(source, &context.client);
    let mut to = Place::new(destination, &context.client);
    let kind = from.kind().await?.ok_or_else(|| Failure::Said(format!("{from} is not there")))?;
    if to.is_directory().await? {
        match name {
            Some(name) => to = to.join(&name),
            None if kind == Kind::Directory => {}
            None => return Err(Failure::Usage(format!("{to} is a directory; name a file in it"))),
        }
    }
    let bar = copy_bar(from.size().await?, context.output.json);
    let result = match kind {
        Kind::File => one(from, to, &bar).await,
        Kind::Directory if matches!(to, Place::Stream) => {
            Err(Failure::Usage("a directory cannot be written to a stream; copy a file, or `exec` tar".to_owned()))
        }
        Kind::Directory => tree(from, to, &bar).await,
        Kind::Link | Kind::Other => Err(Failure::Said(format!("{from} is neither a file nor a directory"))),
    };
    bar.finish_and_clear();
    result
}

async fn one(from: Place, to: Place, bar: &ProgressBar) -> Result<Tally, Failure> {
    let mut tally = Tally::default();
    file(&from, &to, &mut tally, bar).await?;
    Ok(tally)
}

async fn tree(from: Place, to: Place, bar: &ProgressBar) -> Result<Tally, Failure> {
    let mut tally = Tally::default();
    let mut waiting = vec![(from, to)];
    while let Some((from, to)) = waiting.pop() {
        to.make_directory().await?;
        tally.directories += 1;
        for entry in from.entries().await? {
            let in_machine = matches!(from, Place::Remote { .. });
            let (from, to) = (from.join(&entry.name), to.join(&entry.name));
            // The replacement character is what JSON has in place of bytes that are not UTF-8: nothing opens by it.
            if in_machine && entry.name.contains(char::REPLACEMENT_CHARACTER) {
                skip(&from, "its name is not UTF-8", &mut tally, bar);
                continue;
            }
            match entry.kind {
                Kind::Directory => waiting.push((from, to)),
                Kind::File => file(&from, &to, &mut tally, bar).await?,
                Kind::Link if from.leads_to_file().await? => file(&from, &to, &mut tally, bar).await?,
                Kind::Link => skip(&from, "the link leads to no file", &mut tally, bar),
                Kind::Other => skip(&from, "it is neither a file nor a directory", &mut tally, bar),
            }
        }
    }
    Ok(tally)
}

async fn file(from: &Place, to: &Place, tally: &mut Tally, bar: &ProgressBar) -> Result<(), Failure> {
    bar.set_message(printable(&from.to_string()));
    let (mode, chunks) = from.read().await?;
    let (count, shown) = (tally.bytes.clone(), bar.clone());
    let counted = chunks.inspect(move |chunk| {
        if let Ok(chunk) = chunk {
            count.fetch_add(chunk.len() as u64, Ordering::Relaxed);
            shown.inc(chunk.len() as u64);
        }
    });
    to.write(mode, counted.boxed()).await?;
    tally.files += 1;
    Ok(())
}

fn skip(from: &Place, why: &str, tally: &mut Tally, bar: &ProgressBar) {
    tally.skipped += 1;
    bar.suspend(|| note(&format!("left out {}: {why}", printable(&from.to_string()))));
}
