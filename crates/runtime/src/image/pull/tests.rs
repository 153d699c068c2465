//! Against a registry on the loopback, into pools on the real kernel. Needs root.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::json;
use tokio::sync::mpsc;
use warren_model::access::{AccessError, ImageInfo, Images};
use warren_model::{Code, ImageReference};

use super::testing::{FakeRegistry, INDEX, MANIFEST, gzip, zstd};
use crate::disk::testing::{Entry, TestPool, UID_BASE, archive, machine, unfinished};
use crate::disk::{Pool, PoolPreference};
use crate::image::ImageStore;

struct Lab {
    test: TestPool,
    pool: Arc<Pool>,
    store: Arc<ImageStore>,
    registry: FakeRegistry,
}

impl Lab {
    async fn new(preference: PoolPreference) -> Self {
        let test = TestPool::new();
        let (pool, _) = test.open(preference).await;
        let store = Arc::new(ImageStore::open(pool.clone()).unwrap());
        Self { test, pool, store, registry: FakeRegistry::start().await }
    }

    async fn pull(&self, reference: &ImageReference) -> Result<ImageInfo, AccessError> {
        let (sender, _receiver) = mpsc::channel(1);
        self.store.pull(&"box:1".parse().unwrap(), reference, sender).await
    }

    async fn pulled(&self) -> ImageInfo {
        self.pull(&self.registry.reference(":1")).await.unwrap()
    }

    /// Pulls what must not come, and checks that nothing of it stays.
    async fn refused(&self, version: &str, code: Code) -> String {
        let error = self.pull(&self.registry.reference(version)).await.unwrap_err();
        assert_eq!(error.code, code, "{error}");
        assert!(self.store.list().await.unwrap().is_empty());
        assert!(unfinished(&self.test.path()).is_empty());
        error.detail
    }

    /// An image of these layers alone is refused for this.
    async fn refused_layers(&self, layers: &[Vec<u8>]) -> String {
        self.registry.add("1", this(), layers);
        self.refused(":1", Code::ImageInvalid).await
    }

    fn root(&self) -> PathBuf {
        self.pool.layout().image_root(&"box:1".parse().unwrap())
    }

    fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.root().join(path)).unwrap()
    }
}

fn this() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }
}

fn base() -> Vec<u8> {
    archive(&[
        ("bin/", Entry::Directory),
        ("bin/sh", Entry::File(b"shell")),
        ("etc/", Entry::Directory),
        ("etc/gone", Entry::File(b"gone")),
        ("etc/kept", Entry::File(b"kept")),
        ("opt/app/", Entry::Directory),
        ("opt/app/old", Entry::File(b"old")),
        ("opt/app/lib/", Entry::Directory),
        ("opt/app/lib/old", Entry::File(b"old")),
        ("srv/tree/", Entry::Directory),
        ("srv/tree/leaf", Entry::File(b"leaf")),
        ("usr/tree/leaf", Entry::File(b"leaf")),
        ("conf", Entry::Symlink("/etc")),
    ])
}

fn change() -> Vec<u8> {
    archive(&[
        ("etc/.wh.gone", Entry::File(b"")),
        ("etc/.wh.never", Entry::File(b"")),
        ("never/.wh.file", Entry::File(b"")),
        // A directory is emptied of what is below, not of what this layer has, on either side of the whiteout.
        ("opt/app/lib/new", Entry::File(b"new")),
        ("opt/app/.wh..wh..opq", Entry::File(b"")),
        ("opt/app/new", Entry::File(b"new")),
        ("srv/tree", Entry::File(b"now a file")),
        ("usr/.wh.tree", Entry::File(b"")),
        ("bin/bash", Entry::Hardlink("bin/sh")),
        ("conf/through", Entry::File(b"a link")),
        (".wh..wh.plnk", Entry::File(b"")),
        ("dev/", Entry::Directory),
        ("dev/null", Entry::Device),
    ])
}

#[tokio::test]
async fn layers_are_laid_over_each_other_with_their_whiteouts() {
    for preference in [PoolPreference::Best, PoolPreference::Overlay] {
        let lab = Lab::new(preference).await;
        // The last one is what Docker writes for a step that changed no file.
        let described = lab.registry.add("1", this(), &[gzip(&base()), zstd(&change()), vec![0; 1024]]);
        let info = lab.pulled().await;
        assert_eq!(info.digest, described["digest"].as_str().unwrap());
        assert_eq!(info.source, format!("{}/team/image:1", lab.registry.address));
        assert_eq!(lab.store.list().await.unwrap(), [info]);
        let root = lab.root();
        for gone in ["etc/gone", "opt/app/old", "opt/app/lib/old", "usr/tree", "never", "dev/null", ".wh..wh.plnk"] {
            assert!(!root.join(gone).exists(), "{gone}");
        }
        for (path, content) in [
            ("etc/kept", "kept"),
            ("opt/app/new", "new"),
            ("opt/app/lib/new", "new"),
            ("srv/tree", "now a file"),
            ("etc/through", "a link"),
        ] {
            assert_eq!(lab.read(path), content, "{path}");
        }
        let inode = |path: &str| std::fs::metadata(root.join(path)).unwrap().ino();
        assert_eq!(inode("bin/sh"), inode("bin/bash"));
        for made in ["proc", "sys", "run", "tmp"] {
            assert!(root.join(made).is_dir(), "{made}");
        }
        assert!(unfinished(&lab.test.path()).is_empty());
        let (id, name) = (machine(), "box:1".parse().unwrap());
        lab.pool.create_disk(id, &name, UID_BASE, None).await.unwrap();
        let mounted = lab.pool.mount_root(id, UID_BASE).await.unwrap();
        assert_eq!(std::fs::read(mounted.join("bin/bash")).unwrap(), b"shell");
    }
}

#[tokio::test]
async fn a_list_leads_to_the_image_of_this_platform_with_a_token_and_over_a_redirect() {
    let lab = Lab::new(PoolPreference::Overlay).await;
    let of = |architecture: &str, tag: &str, layer: &[u8]| {
        let mut each = lab.registry.add(tag, architecture, &[gzip(layer)]);
        each["platform"] = json!({ "os": "linux", "architecture": architecture });
        each
    };
    let other = of("s390x", "other", &archive(&[("bin/", Entry::Directory), ("bin/s390x", Entry::File(b"x"))]));
    let mine = of(this(), "mine", &base());
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [other, mine] });
    let described = lab.registry.add_manifest("1", INDEX, &index);
    {
        let mut content = lab.registry.content.lock().unwrap();
        content.locked = true;
        content.redirect = Some("/elsewhere".to_owned());
    }
    let info = lab.pulled().await;
    assert_eq!(info.digest, described["digest"].as_str().unwrap());
    assert_eq!(lab.read("bin/sh"), "shell");
    lab.store.remove(&"box:1".parse().unwrap()).await.unwrap();

    let by_digest = format!("@{}", info.digest);
    lab.pull(&lab.registry.reference(&by_digest)).await.unwrap();
    lab.store.remove(&"box:1".parse().unwrap()).await.unwrap();

    let reason = lab.refused(":other", Code::ImageInvalid).await;
    assert!(reason.contains("linux/s390x"), "{reason}");
    lab.registry.content.lock().unwrap().stingy = true;
    let reason = lab.refused(":1", Code::RegistryUnavailable).await;
    assert!(reason.contains("public images only"), "{reason}");
}

#[tokio::test]
async fn what_is_there_is_not_fetched_again_and_what_has_changed_replaces_it() {
    let lab = Lab::new(PoolPreference::Best).await;
    lab.registry.add("1", this(), &[base()]);
    let first = lab.pulled().await;
    let asked = || lab.registry.content.lock().unwrap().asked;
    let before = asked();
    assert_eq!(lab.pulled().await, first);
    // The configuration only.
    assert_eq!(asked(), before + 1);
    lab.registry.add("1", this(), &[base(), change()]);
    assert_ne!(lab.pulled().await.digest, first.digest);
    assert_eq!(lab.read("etc/through"), "a link");
    assert!(unfinished(&lab.test.path()).is_empty());
}

#[tokio::test]
async fn no_layer_reaches_outside_the_root() {
    let lab = Lab::new(PoolPreference::Overlay).await;
    let outside = lab.test.directory.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("kept"), "kept").unwrap();
    let away = outside.display().to_string();
    for hostile in ["../x", "a/../../x", "../.wh.x", ".wh...", "etc/.wh.."] {
        let reason = lab.refused_layers(&[base(), archive(&[(hostile, Entry::File(b"x"))])]).await;
        assert!(reason.contains("leads out"), "{hostile}: {reason}");
    }
    let linked = archive(&[("link", Entry::Hardlink(&format!("{away}/kept")))]);
    let reason = lab.refused_layers(&[base(), linked]).await;
    assert!(reason.contains("not in the archive"), "{reason}");
    let climbing = format!("{}{away}", "../".repeat(12));
    let links = archive(&[("absolute", Entry::Symlink(&away)), ("climbing", Entry::Symlink(&climbing))]);
    let whiteouts = archive(&[
        ("absolute/.wh.kept", Entry::File(b"")),
        ("absolute/.wh..wh..opq", Entry::File(b"")),
        ("climbing/.wh.kept", Entry::File(b"")),
        ("climbing/.wh..wh..opq", Entry::File(b"")),
        (".wh.absolute", Entry::File(b"")),
    ]);
    lab.registry.add("1", this(), &[base(), links, whiteouts]);
    lab.pulled().await;
    assert!(!lab.root().join("absolute").is_symlink());
    assert_eq!(std::fs::read_to_string(outside.join("kept")).unwrap(), "kept");
}

#[tokio::test]
async fn what_is_not_what_its_digest_says_is_refused() {
    let lab = Lab::new(PoolPreference::Overlay).await;
    let layer = gzip(&base());
    let manifest = lab.registry.add("1", this(), std::slice::from_ref(&layer));
    let wrong = |kind: &str, bytes: &[u8], change: fn(&mut Vec<u8>)| {
        let described = lab.registry.add_blob(kind, bytes);
        let name = described["digest"].as_str().unwrap().to_owned();
        change(lab.registry.content.lock().unwrap().blobs.get_mut(&name).unwrap());
    };
    // Another archive of the same length, a longer one, a shorter one.
    wrong("", &layer, |bytes| bytes[4] ^= 1);
    let reason = lab.refused(":1", Code::ImageInvalid).await;
    assert!(reason.contains("digest"), "{reason}");
    wrong("", &layer, |bytes| bytes.push(0));
    lab.refused(":1", Code::ImageInvalid).await;
    wrong("", &layer, |bytes| bytes.truncate(bytes.len() - 1));
    lab.refused(":1", Code::ImageInvalid).await;
    wrong("", &layer, |_| ());

    let digest = manifest["digest"].as_str().unwrap().to_owned();
    let by_digest = format!("@{digest}");
    lab.registry.content.lock().unwrap().manifests.get_mut(&digest).unwrap().1.push(b' ');
    let reason = lab.refused(&by_digest, Code::ImageInvalid).await;
    assert!(reason.contains("the manifest has the digest"), "{reason}");

    let config = json!({ "os": "linux", "architecture": this(), "rootfs": { "diff_ids": [] } }).to_string();
    let config = lab.registry.add_blob("application/vnd.oci.image.config.v1+json", config.as_bytes());
    let layers = [lab.registry.add_blob("application/vnd.oci.image.layer.v1.tar+gzip", &layer)];
    let manifest = json!({ "schemaVersion": 2, "config": config, "layers": layers });
    lab.registry.add_manifest("1", MANIFEST, &manifest);
    let reason = lab.refused(":1", Code::ImageInvalid).await;
    assert!(reason.contains("0 layers"), "{reason}");
    lab.registry.content.lock().unwrap().manifests.insert("1".into(), (MANIFEST, vec![b'x'; (4 << 20) + 1]));
    let reason = lab.refused(":1", Code::ImageInvalid).await;
    assert!(reason.contains("larger than"), "{reason}");
    lab.refused_layers(&[gzip(b"this is no archive, however long it gets")]).await;
}

#[tokio::test]
async fn a_registry_that_cannot_be_used_is_told_from_an_image_that_is_not_there() {
    let lab = Lab::new(PoolPreference::Overlay).await;
    let reason = lab.refused(":none", Code::ImageNotFound).await;
    assert!(reason.contains("manifest unknown"), "{reason}");
    lab.registry.add("1", this(), &[gzip(&base())]);
    lab.registry.content.lock().unwrap().breaks_after = Some(300);
    lab.refused(":1", Code::RegistryUnavailable).await;
    lab.registry.content.lock().unwrap().redirect = Some("http://192.0.2.1/blobs".to_owned());
    let reason = lab.refused(":1", Code::RegistryUnavailable).await;
    assert!(reason.contains("https"), "{reason}");
    lab.registry.content.lock().unwrap().redirect =
        Some(format!("http://{}/v2/team/image/blobs", lab.registry.address));
    let reason = lab.refused(":1", Code::RegistryUnavailable).await;
    assert!(reason.contains("redirects more"), "{reason}");
    // Nobody listens there.
    let error = lab.pull(&"127.0.0.1:1/team/image:1".parse().unwrap()).await.unwrap_err();
    assert_eq!(error.code, Code::RegistryUnavailable, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_is_given_up_leaves_nothing() {
    let lab = Lab::new(PoolPreference::Overlay).await;
    lab.registry.add("1", this(), &[base()]);
    lab.registry.content.lock().unwrap().stalls_after = Some(2000);
    let (store, reference) = (lab.store.clone(), lab.registry.reference(":1"));
    let pulling = tokio::spawn(async move {
        let (sender, _receiver) = mpsc::channel(1);
        store.pull(&"box:1".parse().unwrap(), &reference, sender).await
    });
    let until = async |empty: bool| {
        for _ in 0..3000 {
            if unfinished(&lab.test.path()).is_empty() == empty {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        panic!("the work directory did not change");
    };
    until(false).await;
    pulling.abort();
    until(true).await;
    assert!(lab.store.list().await.unwrap().is_empty());
}
