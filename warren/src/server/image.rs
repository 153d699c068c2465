//! Building an image without a server.

use std::path::PathBuf;

use anyhow::Context as _;
use tokio::sync::mpsc;
use warren_model::ImageName;
use warren_model::access::{ImageProgress, Images as _};
use warren_runtime::disk::Pool;
use warren_runtime::image::ImageStore;

use super::mounts;
use crate::cli::progress::StageBar;

pub fn image_build(name: ImageName, pool_dir: PathBuf, json: bool) -> anyhow::Result<()> {
    std::fs::create_dir_all(&pool_dir).with_context(|| format!("cannot make {}", pool_dir.display()))?;
    let pool_dir = pool_dir.canonicalize()?;
    mounts::enter_lasting_namespace(&[&pool_dir])?;
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(build(name, pool_dir, json))
}

async fn build(name: ImageName, pool_dir: PathBuf, json: bool) -> anyhow::Result<()> {
    let pool = Pool::open_for_images(&pool_dir).await?;
    let images = ImageStore::open(pool.clone())?;
    let (sender, mut receiver) = mpsc::channel::<ImageProgress>(16);
    let shown_name = name.to_string();
    let shown = tokio::spawn(async move {
        let mut bar = StageBar::new(&shown_name, json);
        while let Some(step) = receiver.recv().await {
            bar.show(&step.stage, step.fraction);
        }
    });
    let outcome = images.build(&name, sender).await;
    shown.await?;
    pool.release().await?;
    let image = outcome?;
    if json {
        println!("{}", serde_json::to_string(&image)?);
    } else {
        println!("{} {} {}", image.name, image.digest, image.size);
    }
    Ok(())
}
