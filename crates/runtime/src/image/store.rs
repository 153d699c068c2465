//! The images of a host, as the API and the command line use them.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use tokio::sync::{mpsc, watch};
use warren_model::access::{AccessError, ByteStream, HostCapacity, ImageInfo, ImageProgress, Images};
use warren_model::{ImageName, ImageReference};

use super::error::ImageError;
use super::recipe::{self, Recipe};
use super::{build, import, pull, record};
use crate::disk::{Pool, PoolKind};
use crate::files::blocking;

/// The images in a pool. Needs no server.
pub struct ImageStore {
    pool: Arc<Pool>,
    recipes: BTreeMap<ImageName, Recipe>,
    /// What is being built in this process; other processes are excluded by a lock on a file.
    builds: Arc<Mutex<HashMap<ImageName, Build>>>,
}

/// A build under way, to which any number of callers listen.
#[derive(Clone)]
struct Build {
    progress: watch::Receiver<ImageProgress>,
    outcome: watch::Receiver<Option<Result<ImageInfo, Arc<ImageError>>>>,
}

impl ImageStore {
    /// # Errors
    ///
    /// [`ImageError::Recipe`] when a recipe that was compiled in cannot be read.
    pub fn open(pool: Arc<Pool>) -> Result<Self, ImageError> {
        Ok(Self { pool, recipes: recipe::all()?, builds: Arc::default() })
    }

    /// The names of the images that can be built.
    pub fn recipes(&self) -> impl Iterator<Item = &ImageName> {
        self.recipes.keys()
    }

    fn find(&self, name: &ImageName) -> Result<Option<ImageInfo>, ImageError> {
        let layout = self.pool.layout();
        record::read_record(layout, name).map_err(ImageError::io("cannot read the record of", &layout.image(name)))
    }

    /// The build of an image, started if none is under way. It goes on when nobody listens any more.
    fn join(&self, name: &ImageName, recipe: &Recipe) -> Build {
        let mut builds = self.builds.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(build) = builds.get(name) {
            return build.clone();
        }
        let (progress_sender, progress) =
            watch::channel(ImageProgress { stage: "starting".to_owned(), fraction: Some(0.0) });
        let (outcome_sender, outcome) = watch::channel(None);
        let build = Build { progress, outcome };
        builds.insert(name.clone(), build.clone());
        let (pool, recipe, name, builds) = (self.pool.clone(), recipe.clone(), name.clone(), self.builds.clone());
        tokio::spawn(async move {
            tracing::info!(image = %name, "building the image");
            let outcome = build::build(&pool, &name, &recipe, &progress_sender).await;
            match &outcome {
                Ok(info) => tracing::info!(image = %name, bytes = info.size, "the image is ready"),
                Err(error) => {
                    tracing::error!(image = %name, error = warren_model::problem::chain(error), "the image was not built")
                }
            }
            builds.lock().unwrap_or_else(PoisonError::into_inner).remove(&name);
            outcome_sender.send_replace(Some(outcome.map_err(Arc::new)));
        });
        build
    }
}

#[async_trait]
impl Images for ImageStore {
    async fn list(&self) -> Result<Vec<ImageInfo>, AccessError> {
        let images = self.pool.layout().images();
        let found = blocking(move || {
            let mut found = Vec::new();
            for entry in std::fs::read_dir(&images)? {
                found.extend(record::read_record_at(&entry?.path())?);
            }
            found.sort_by(|a, b| a.name.cmp(&b.name));
            Ok(found)
        });
        Ok(found.await.map_err(ImageError::io("cannot list", &self.pool.layout().images()))?)
    }

    async fn get(&self, name: &ImageName) -> Result<Option<ImageInfo>, AccessError> {
        Ok(self.find(name)?)
    }

    fn can_build(&self, name: &ImageName) -> bool {
        self.recipes.contains_key(name)
    }

    async fn build(&self, name: &ImageName, progress: mpsc::Sender<ImageProgress>) -> Result<ImageInfo, AccessError> {
        if let Some(info) = self.find(name)? {
            return Ok(info);
        }
        let Some(recipe) = self.recipes.get(name) else {
            let known = self.recipes.keys().map(ImageName::to_string).collect::<Vec<_>>().join(", ");
            return Err(ImageError::NoRecipe { name: name.clone(), known }.into());
        };
        let mut build = self.join(name, recipe);
        loop {
            tokio::select! {
                biased;
                finished = build.outcome.wait_for(Option::is_some) => {
                    return match finished.ok().and_then(|outcome| outcome.clone()) {
                        Some(Ok(info)) => Ok(info),
                        Some(Err(error)) => Err(AccessError::from(&*error)),
                        None => Err(ImageError::Interrupted { name: name.clone() }.into()),
                    };
                }
                Ok(()) = build.progress.changed() => {
                    let stage = build.progress.borrow_and_update().clone();
                    // A caller that is slow to read misses stages, and one that has gone is no reason to stop.
                    let _ = progress.try_send(stage);
                }
            }
        }
    }

    async fn import(
        &self,
        name: &ImageName,
        archive: ByteStream,
        progress: mpsc::Sender<ImageProgress>,
    ) -> Result<ImageInfo, AccessError> {
        Ok(import::import(&self.pool, name, archive, progress).await?)
    }

    async fn pull(
        &self,
        name: &ImageName,
        reference: &ImageReference,
        progress: mpsc::Sender<ImageProgress>,
    ) -> Result<ImageInfo, AccessError> {
        Ok(pull::pull(&self.pool, name, reference, progress).await?)
    }

    async fn remove(&self, name: &ImageName) -> Result<(), AccessError> {
        let (layout, name) = (self.pool.layout().clone(), name.clone());
        let removed = blocking(move || {
            let image = layout.image(&name);
            let failed = |context| ImageError::io(context, &image);
            let _lock = layout.lock_image(&name, true).map_err(failed("cannot lock"))?;
            if record::read_record(&layout, &name).map_err(failed("cannot read the record of"))?.is_none() {
                return Err(ImageError::NotFound { name });
            }
            if layout.image_is_in_use(&name).map_err(failed("cannot tell who uses"))? {
                return Err(ImageError::InUse { name });
            }
            record::remove(&layout, &name).map_err(failed("cannot remove"))
        });
        Ok(removed.await?)
    }

    async fn capacity(&self) -> HostCapacity {
        let (cpus, memory_mib) = crate::driver::host_capacity();
        let disk_gib = match self.pool.kind() {
            PoolKind::Btrfs { limits: true } => self.pool.size().ok().map(|bytes| (bytes >> 30).max(1)),
            _ => None,
        };
        HostCapacity { cpus, memory_mib, disk_gib }
    }
}
