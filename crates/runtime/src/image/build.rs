//! Building an image from a recipe with mmdebstrap.

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::sync::watch;
use warren_model::ImageName;
use warren_model::access::{ImageInfo, ImageProgress};

use super::error::ImageError;
use super::recipe::Recipe;
use super::record::{self, Draft};
use super::sources;
use crate::disk::Pool;
use crate::disk::layout::Layout;
use crate::files::{self, blocking};
use crate::helper::{Helper, HelperError};

/// A build on a slow line takes minutes; one that takes this long hangs.
const LIMIT: Duration = Duration::from_secs(45 * 60);

/// What mmdebstrap says when a stage begins, what that is for a person, and how far along it is. The shares are those
/// of a build that takes half a minute on a fast line.
const STAGES: &[(&str, &str, f32)] = &[
    ("running apt-get update", "reading the package lists", 0.05),
    ("downloading packages with apt", "downloading the base system", 0.15),
    ("extracting archives", "unpacking the base system", 0.25),
    ("installing essential packages", "installing the base system", 0.35),
    ("installing remaining packages", "installing packages", 0.55),
    ("cleaning package lists", "cleaning up", 0.92),
];

/// Left out of every package, as in Debian's own container images; the licences stay.
const DPKG_OPTIONS: &[&str] = &[
    "force-unsafe-io",
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
];

/// Builds an image, unless it is there once nobody else is building it.
pub(super) async fn build(
    pool: &Pool,
    name: &ImageName,
    recipe: &Recipe,
    progress: &watch::Sender<ImageProgress>,
) -> Result<ImageInfo, ImageError> {
    let layout = pool.layout().clone();
    let say = |stage: &str, fraction| {
        progress.send_replace(ImageProgress { stage: stage.to_owned(), fraction: Some(fraction) });
    };
    say("waiting for other work on the image", 0.0);
    let image = layout.image(name);
    let failed = |context| ImageError::io(context, &image);
    let (locking, locked_name) = (layout.clone(), name.clone());
    let lock = blocking(move || locking.lock_image(&locked_name, true)).await.map_err(failed("cannot lock"))?;
    if let Some(info) = record::read_record(&layout, name).map_err(failed("cannot read the record of"))? {
        return Ok(info);
    }
    if !pool.has_room().map_err(failed("cannot measure the room for"))? {
        return Err(ImageError::HostDiskFull);
    }
    say("preparing", 0.01);
    let drafting = layout.clone();
    let draft = blocking(move || Draft::new(&drafting)).await.map_err(failed("cannot start"))?;
    let outcome = run_mmdebstrap(&draft, recipe, name, &say).await;
    if let Err(error) = outcome {
        // Dropping the draft removes what was made.
        let full = room_is_gone(&layout, &error);
        blocking(move || drop(draft)).await;
        return Err(if full { ImageError::HostDiskFull } else { error });
    }
    say("storing", 0.95);
    let (digest, name) = (recipe.digest.clone(), name.clone());
    blocking(move || {
        let _lock = lock;
        let root = draft.root();
        let path = root.clone();
        let failed = |context| ImageError::io(context, &path);
        forget_the_host(&root).map_err(failed("cannot clean"))?;
        let size = files::tree_size(&root).map_err(failed("cannot measure"))?;
        let info = ImageInfo {
            name: name.to_string(),
            digest,
            size,
            source: "build".to_owned(),
            created_at: jiff::Timestamp::now(),
        };
        draft.publish(&info, &name).map_err(failed("cannot store"))?;
        Ok(info)
    })
    .await
}

async fn run_mmdebstrap(
    draft: &Draft,
    recipe: &Recipe,
    name: &ImageName,
    say: &impl Fn(&str, f32),
) -> Result<(), ImageError> {
    let failed = |source| ImageError::Build { name: name.clone(), source };
    if crate::helper::find_program("mmdebstrap").is_none() {
        return Err(failed(HelperError::Missing { program: "mmdebstrap".to_owned() }));
    }
    let dump = Helper::new("apt-config", Duration::from_secs(20)).arg("dump").run().await.map_err(failed)?;
    let dump = String::from_utf8_lossy(&dump);
    let apt = sources::collect(Path::new("/etc/apt"), &recipe.suite, &dump, draft.scratch())
        .map_err(ImageError::io("cannot collect the sources for", draft.scratch()))?;
    // In namespaces of its own, so that its mounts and all of its processes end with it.
    let mut helper = Helper::new("unshare", LIMIT)
        .args(["--mount", "--propagation=private", "--pid", "--fork", "--kill-child=KILL", "--mount-proc", "--"])
        .args(["mmdebstrap", "--mode=root", "--format=directory"])
        .arg(format!("--variant={}", recipe.variant))
        .arg(format!("--components={}", recipe.components.join(",")))
        .arg(format!("--include={}", recipe.packages.join(",")))
        .arg(format!("--aptopt={}", apt.options.display()))
        .args(DPKG_OPTIONS.iter().map(|option| format!("--dpkgopt={option}")))
        // It holds how this host reaches its mirror.
        .arg("--customize-hook=rm -f \"$1/etc/apt/apt.conf.d/99mmdebstrap\"")
        .arg(&recipe.suite)
        .arg(draft.root())
        .args(&apt.sources)
        .env("TMPDIR", draft.scratch())
        .env("DEBIAN_FRONTEND", "noninteractive");
    for proxy in ["http_proxy", "https_proxy", "no_proxy", "ftp_proxy"] {
        if let Some(value) = std::env::var_os(proxy) {
            helper = helper.env(proxy, value);
        }
    }
    helper
        .run_with(|line| {
            if let Some((_, stage, fraction)) = STAGES.iter().find(|(begins, _, _)| line.contains(begins)) {
                say(stage, *fraction);
            }
        })
        .await
        .map(drop)
        .map_err(failed)
}

/// Programs say in words only that a disk is full.
fn room_is_gone(layout: &Layout, error: &ImageError) -> bool {
    let said = matches!(error, ImageError::Build { source: HelperError::Failed { stderr, .. }, .. }
        if stderr.contains("No space left on device") || stderr.contains("enough free space"));
    said || files::free_and_total(&layout.images()).is_ok_and(|(free, _)| free < 1 << 20)
}

/// Removes what a build copies from the host into the tree, and the identity that every machine needs of its own.
fn forget_the_host(root: &Path) -> io::Result<()> {
    for file in ["etc/resolv.conf", "etc/hostname"] {
        files::absent_is_fine(std::fs::remove_file(root.join(file)))?;
    }
    let machine_id = root.join("etc/machine-id");
    files::absent_is_fine(std::fs::remove_file(&machine_id))?;
    std::fs::write(machine_id, "")
}
