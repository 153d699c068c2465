//! `image`, and how a missing image is made before a machine needs it.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use futures::StreamExt;
use http::{HeaderMap, Method};
use serde_json::Value;
use warren_model::access::ImageInfo;
use warren_model::wire::{ImageEvent, PullImage};
use warren_model::{ImageName, ImageReference};

use super::failure::Failure;
use super::output::{note, read};
use super::progress::{StageBar, copy_bar};
use super::render::{bytes, sheet, table, time};
use super::{Context, Globals, block_on};
use crate::client::error::ClientError;
use crate::client::route::Route;
use crate::client::{Client, Payload, streamed};

#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum ImageCommand {
    /// Build an image that Warren knows how to make; works without a server too
    #[command(after_help = "\
The image `debian` has sh, bash, coreutils, python3, curl, git, ping, ip and ca-certificates.

Examples:
  warren image build debian
  warren image build debian --pool-dir /srv/pool   on this host, without asking a server")]
    Build(BuildArgs),
    /// Make an image out of a root file system archive: tar, plain or compressed with gzip, zstd or xz
    #[command(after_help = "\
Examples:
  warren image import alpine.tar.gz
  warren image import ./rootfs.tar.zst --name tools
  docker export box | warren image import - --name box")]
    Import(ImportArgs),
    /// Take an image from an OCI or Docker registry
    #[command(after_help = "\
Layers of public images come over https; a registry on the server's own host may do without. Environment, working
directory, user and command of the image are not taken over. `shell` and most of the examples need an image with sh.

Examples:
  warren image pull alpine:3.20                    from the Docker Hub, as the image alpine:3.20
  warren image pull ghcr.io/acme/tool --name tool
  warren image pull alpine@sha256:4bcff63911fcb4448bd4fdacec207030997caf25e9bea4045fa6c8c44de311d1
  warren image pull localhost:5000/mine:1
  warren machine create --image alpine:3.20")]
    Pull(PullArgs),
    /// List the images
    #[command(after_help = "Examples:\n  warren image ls")]
    Ls,
    /// Remove an image; refused while a machine uses it
    #[command(after_help = "Examples:\n  warren image rm tools")]
    Rm {
        /// Its name
        image: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct BuildArgs {
    /// Which image: debian
    pub image: ImageName,
    /// Build on this host into this directory, without a server
    #[arg(long, value_name = "DIR")]
    pub pool_dir: Option<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct ImportArgs {
    /// The archive, or - for stdin
    pub file: PathBuf,
    /// The image's name; made from the file's name when absent
    #[arg(long)]
    pub name: Option<ImageName>,
}

#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct PullArgs {
    /// [HOST[:PORT]/]PATH[:TAG][@DIGEST]
    #[arg(value_name = "REF")]
    pub reference: ImageReference,
    /// The image's name; the last part of the path and the tag when absent
    #[arg(long)]
    pub name: Option<ImageName>,
}

pub async fn run(context: &Context, command: ImageCommand) -> Result<(), Failure> {
    let Context { client, output } = context;
    match command {
        ImageCommand::Build(args) => {
            let answer = build_on_server(client, args.image.as_str(), output.json).await?;
            output.object(answer, render_image)
        }
        ImageCommand::Import(args) => {
            let answer = import(client, &args, output.json).await?;
            output.object(answer, render_image)
        }
        ImageCommand::Pull(args) => {
            let answer = pull(client, args, output.json).await?;
            output.object(answer, render_image)
        }
        ImageCommand::Ls => {
            let page = read(client.get(&Route::new(&["images"])).await?)?;
            output.list(page, "There are no images; `warren image build debian` makes one.", render_images)
        }
        ImageCommand::Rm { image } => {
            let answer = client.delete(&Route::new(&["images", &image])).await?;
            output.done(answer, &format!("removed {image}"))
        }
    }
}

/// Builds on the server; on this host where a pool is named, or where no server was named and none runs.
pub fn build(globals: &Globals, args: BuildArgs) -> Result<(), Failure> {
    if let Some(pool_dir) = args.pool_dir {
        return build_here(args.image, pool_dir, globals.json);
    }
    let context = globals.context()?;
    let wanted = globals.wanted();
    let image = args.image.clone();
    match block_on(run(&context, ImageCommand::Build(args))) {
        Err(Failure::Client(ClientError::NotReached { .. })) if wanted.url.is_none() && cfg!(feature = "server") => {
            let pool_dir = wanted.data_dir().join("pool");
            note(&format!("No server runs here; building into {}", pool_dir.display()));
            build_here(image, pool_dir, globals.json)
        }
        result => result,
    }
}

#[cfg(feature = "server")]
fn build_here(image: ImageName, pool_dir: PathBuf, json: bool) -> Result<(), Failure> {
    let pool_dir = std::path::absolute(&pool_dir)
        .map_err(|error| Failure::local(format!("cannot use {}", pool_dir.display()), error))?;
    crate::server::image_build(image, pool_dir, json).map_err(Failure::Host)
}

#[cfg(not(feature = "server"))]
fn build_here(_: ImageName, _: PathBuf, _: bool) -> Result<(), Failure> {
    Err(Failure::Usage(
        "images are built on a Linux host, and this warren has only the client commands: leave --pool-dir out and name a \
         server with --url"
            .to_owned(),
    ))
}

/// Makes the image if the server lacks it and knows how to make it.
///
/// Whatever else is wrong with it, the create that follows says better.
pub async fn ensure(client: &Client, image: &str, quiet: bool) -> Result<(), Failure> {
    match client.get(&Route::new(&["images", image])).await {
        Err(ClientError::Refused(refusal)) if refusal.code() == "image_not_found" => {
            // Only what the server knows how to make is announced; of all else the refusal says enough.
            if !quiet && image == ImageName::default_image().as_str() {
                note(&format!("The image {image} is not there yet; building it first."));
            }
            build_on_server(client, image, quiet).await.map(|_| ())
        }
        Err(error @ ClientError::NotReached { .. }) => Err(error.into()),
        _ => Ok(()),
    }
}

async fn build_on_server(client: &Client, image: &str, quiet: bool) -> Result<Value, Failure> {
    let route = Route::new(&["images", image, "build"]);
    let mut documents = client.documents(Method::POST, &route, Payload::Nothing, HeaderMap::new()).await?;
    let mut bar = StageBar::new(image, quiet);
    follow(&mut documents, |progress| bar.show(&progress.stage, progress.fraction)).await
}

async fn import(client: &Client, args: &ImportArgs, quiet: bool) -> Result<Value, Failure> {
    let name = match &args.name {
        Some(name) => name.clone(),
        None => name_of(&args.file)?,
    };
    let (chunks, size) = super::copy::local::read_stream(&args.file).await?;
    let bar = copy_bar(size, quiet);
    bar.set_message(format!("importing {name}"));
    let counted = bar.clone();
    let chunks = chunks.inspect(move |chunk| {
        if let Ok(chunk) = chunk {
            counted.inc(chunk.len() as u64);
        }
    });
    let route = Route::new(&["images", name.as_str()]);
    let payload = Payload::Bytes(streamed(chunks));
    let result = async {
        let mut documents = client.documents(Method::PUT, &route, payload, HeaderMap::new()).await?;
        follow(&mut documents, |progress| bar.set_message(super::render::printable(&progress.stage))).await
    }
    .await;
    bar.finish_and_clear();
    result
}

async fn pull(client: &Client, args: PullArgs, quiet: bool) -> Result<Value, Failure> {
    let name = match args.name {
        Some(name) => name,
        None => args
            .reference
            .image_name()
            .map_err(|error| Failure::Usage(format!("{error}; name the image with --name")))?,
    };
    let route = Route::new(&["images", name.as_str(), "pull"]);
    let wanted = PullImage { reference: args.reference.to_string() };
    let payload = Payload::Json(serde_json::to_value(wanted).map_err(ClientError::NotUnderstood)?);
    let mut bar = StageBar::new(name.as_str(), quiet);
    let mut documents = client.documents(Method::POST, &route, payload, HeaderMap::new()).await?;
    follow(&mut documents, |progress| bar.show(&progress.stage, progress.fraction)).await
}

/// Reads the events of an image's making up to the image itself.
async fn follow(
    documents: &mut (impl futures::Stream<Item = Result<Value, ClientError>> + Unpin),
    mut show: impl FnMut(&warren_model::access::ImageProgress),
) -> Result<Value, Failure> {
    while let Some(document) = documents.next().await {
        let mut document = document?;
        let image = document.get_mut("image").map(Value::take);
        match (image, document) {
            (Some(image), _) => return Ok(image),
            (None, document) => match read(document)? {
                ImageEvent::Progress { progress } => show(&progress),
                ImageEvent::Failed { problem } => return Err(ClientError::from(problem).into()),
                ImageEvent::Done { image } => {
                    return Ok(serde_json::to_value(image).map_err(ClientError::NotUnderstood)?);
                }
            },
        }
    }
    Err(ClientError::BrokenOff("the server ended it before the image was made".into()).into())
}

/// `alpine` for `/tmp/alpine.tar.gz`.
fn name_of(file: &Path) -> Result<ImageName, Failure> {
    let bad = |why: String| Failure::Usage(format!("{why}; name the image with --name"));
    if file == Path::new("-") {
        return Err(bad("stdin has no name".to_owned()));
    }
    let text = file.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_ascii_lowercase();
    let archive = [".tar.gz", ".tgz", ".tar.zst", ".tar.xz", ".txz", ".tar"];
    let stem = archive.iter().find_map(|ending| text.strip_suffix(ending)).unwrap_or(&text);
    stem.parse().map_err(|error: warren_model::name::InvalidName| bad(error.to_string()))
}

fn render_image(image: &ImageInfo) -> String {
    sheet(&[
        ("name", image.name.clone()),
        ("size", bytes(image.size)),
        ("source", image.source.clone()),
        ("created", time(image.created_at)),
        ("digest", image.digest.clone()),
    ])
}

fn render_images(images: &[ImageInfo]) -> String {
    let row = |image: &ImageInfo| {
        let digest = image.digest.chars().take(12).collect();
        vec![image.name.clone(), bytes(image.size), image.source.clone(), time(image.created_at), digest]
    };
    table(&["name", "size", "source", "created", "digest"], &[1], images.iter().map(row))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn image() -> ImageInfo {
        ImageInfo {
            name: "debian".into(),
            digest: "0123456789abcdef0123456789abcdef".into(),
            size: 287 << 20,
            source: "build".into(),
            created_at: "2026-11-20T09:30:00Z".parse().unwrap(),
        }
    }

    #[test]
    fn images_stand_in_columns() {
        insta::assert_snapshot!(render_images(&[image()]), @r"
        NAME         SIZE  SOURCE  CREATED               DIGEST
        debian  287.0 MiB  build   2026-11-20 09:30:00Z  0123456789ab
        ");
    }

    #[test]
    fn an_archive_gives_its_name_to_the_image() {
        for (file, name) in [("/tmp/Alpine.tar.gz", "alpine"), ("tools.tar", "tools"), ("x.y.tzst", "x.y.tzst")] {
            assert_eq!(name_of(Path::new(file)).unwrap().as_str(), name);
        }
        for bad in ["-", "/", ".tar", "a b.tar"] {
            assert!(name_of(Path::new(bad)).is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_build_is_followed_to_its_image_and_shown_on_the_way() {
        let events = [
            json!({"type": "progress", "progress": {"stage": "installing packages", "fraction": 0.5}}),
            json!({"type": "done", "image": image()}),
        ];
        let mut documents = futures::stream::iter(events.map(Ok));
        let mut stages = Vec::new();
        let made = follow(&mut documents, |progress| stages.push(progress.stage.clone())).await.unwrap();
        assert_eq!(made["name"], "debian");
        assert_eq!(stages, ["installing packages"]);
    }

    #[tokio::test]
    async fn a_build_that_breaks_off_is_a_failure() {
        let mut documents = futures::stream::iter([]);
        assert!(follow(&mut documents, |_| ()).await.is_err());
    }
}
