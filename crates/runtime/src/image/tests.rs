//! On the real kernel, because trees are stored in a pool. Needs root.

use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::mpsc;
use warren_model::access::Images;
use warren_model::{Code, ImageName};

use super::ImageStore;
use crate::disk::testing::{Entry, TestPool, UID_BASE, archive, import, machine, small_archive, unfinished};
use crate::disk::{Pool, PoolPreference};

struct Lab {
    test: TestPool,
    pool: Arc<Pool>,
    store: ImageStore,
}

impl Lab {
    async fn new(preference: PoolPreference) -> Self {
        let test = TestPool::new();
        let (pool, _) = test.open(preference).await;
        let store = ImageStore::open(pool.clone()).unwrap();
        Self { test, pool, store }
    }

    fn root(&self, name: &str) -> PathBuf {
        self.pool.layout().image_root(&name.parse().unwrap())
    }

    /// Imports what must be refused, and checks that nothing of it stays.
    async fn refused(&self, archive: Vec<u8>) -> String {
        let error = import(&self.store, "bad", archive).await.unwrap_err();
        assert_eq!(error.code, Code::ImageInvalid, "{error}");
        assert!(self.store.list().await.unwrap().is_empty());
        assert!(unfinished(&self.test.path()).is_empty());
        error.detail
    }
}

#[tokio::test]
async fn an_archive_is_imported_plain_and_in_every_compression() {
    let plain = small_archive();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&plain).unwrap();
    let gzip = gzip.finish().unwrap();
    let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
    xz.write_all(&plain).unwrap();
    let xz = xz.finish().unwrap();
    let zstd = zstd::stream::encode_all(plain.as_slice(), 1).unwrap();
    for preference in [PoolPreference::Best, PoolPreference::Overlay] {
        let lab = Lab::new(preference).await;
        let archives = [plain.clone(), gzip.clone(), xz.clone(), zstd.clone()];
        for (number, archive) in archives.into_iter().enumerate() {
            let digest = blake3::hash(&archive).to_hex().to_string();
            let info = import(&lab.store, &format!("image{number}"), archive).await.unwrap();
            assert_eq!((info.source.as_str(), info.digest), ("import", digest));
            assert!(info.size > 0);
            let tool = lab.root(&info.name).join("bin/tool");
            assert_eq!(std::fs::read(&tool).unwrap(), b"#!/bin/nothing\n");
            assert_eq!(std::fs::metadata(&tool).unwrap().mtime(), 1_000_000_000);
            assert_eq!(lab.store.get(&info.name.parse().unwrap()).await.unwrap().unwrap().name, info.name);
        }
        assert_eq!(lab.store.list().await.unwrap().len(), 4);
        assert!(unfinished(&lab.test.path()).is_empty());
    }
}

#[tokio::test]
async fn what_is_no_root_file_system_is_refused_and_nothing_of_it_stays() {
    let lab = Lab::new(PoolPreference::Overlay).await;
    lab.refused(Vec::new()).await;
    lab.refused(b"hello, this is no archive at all".repeat(100)).await;
    let reason = lab.refused(archive(&[("rootfs/bin/", Entry::Directory)])).await;
    assert!(reason.contains("start at the root"), "{reason}");
    let mut cut = zstd::stream::encode_all(small_archive().as_slice(), 1).unwrap();
    cut.truncate(cut.len() - 5);
    lab.refused(cut).await;
    let mut cut = small_archive();
    cut.truncate(700);
    lab.refused(cut).await;
    lab.refused(archive(&[("bin/", Entry::Directory), ("dev", Entry::Symlink("/tmp"))])).await;
}

#[tokio::test]
async fn nothing_in_an_archive_reaches_outside_its_root() {
    let lab = Lab::new(PoolPreference::Overlay).await;
    let outside = lab.test.directory.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("kept"), "kept").unwrap();
    let away = outside.display().to_string();
    for hostile in ["../escape", "a/../../escape", "/../../escape"] {
        let reason = lab.refused(archive(&[("bin/", Entry::Directory), (hostile, Entry::File(b"x"))])).await;
        assert!(reason.contains("leads out"), "{reason}");
    }
    let reason =
        lab.refused(archive(&[("bin/", Entry::Directory), ("link", Entry::Hardlink(&format!("{away}/kept")))])).await;
    assert!(reason.contains("not in the archive"), "{reason}");
    // Links are made as they are but lead, while unpacking, to places in the new root only.
    let climbing = format!("{}{away}", "../".repeat(12));
    let entries = [
        ("bin/", Entry::Directory),
        ("absolute", Entry::Symlink(&away)),
        ("climbing", Entry::Symlink(&climbing)),
        (&away[1..], Entry::Directory),
        ("absolute/one", Entry::File(b"1")),
        ("climbing/two", Entry::File(b"2")),
        ("climbing", Entry::File(b"replaces the link")),
    ];
    import(&lab.store, "links", archive(&entries)).await.unwrap();
    let root = lab.root("links");
    assert_eq!(std::fs::read(root.join(&away[1..]).join("one")).unwrap(), b"1");
    assert_eq!(std::fs::read(root.join(&away[1..]).join("two")).unwrap(), b"2");
    assert_eq!(std::fs::read(root.join("climbing")).unwrap(), b"replaces the link");
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 1);
    assert_eq!(std::fs::read(outside.join("kept")).unwrap(), b"kept");
}

#[tokio::test]
async fn devices_are_left_out_and_hard_links_are_kept() {
    let lab = Lab::new(PoolPreference::Best).await;
    let entries = [
        ("bin/", Entry::Directory),
        ("bin/one", Entry::File(b"one")),
        ("bin/two", Entry::Hardlink("bin/one")),
        ("dev/", Entry::Directory),
        ("dev/sda", Entry::Device),
    ];
    import(&lab.store, "links", archive(&entries)).await.unwrap();
    let root = lab.root("links");
    assert!(!root.join("dev/sda").exists());
    assert_eq!(
        std::fs::metadata(root.join("bin/one")).unwrap().ino(),
        std::fs::metadata(root.join("bin/two")).unwrap().ino()
    );
    assert_eq!(std::fs::metadata(root.join("tmp")).unwrap().permissions().mode() & 0o7777, 0o1777);
}

#[tokio::test]
async fn owners_that_a_machine_cannot_have_are_refused() {
    let lab = Lab::new(PoolPreference::Overlay).await;
    let mut bytes = small_archive();
    // The owner's field of the first header, and the checksum that goes with it.
    bytes[108..116].copy_from_slice(b"0303240\0");
    bytes[148..156].copy_from_slice(b"        ");
    let sum: u32 = bytes[..512].iter().map(|byte| u32::from(*byte)).sum();
    bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let reason = lab.refused(bytes).await;
    assert!(reason.contains("100000"), "{reason}");
}

#[tokio::test]
async fn an_upload_that_breaks_off_leaves_nothing() {
    let lab = Lab::new(PoolPreference::Overlay).await;
    let (sender, _receiver) = mpsc::channel(1);
    let pieces = vec![Ok(Bytes::from(small_archive())), Err(std::io::ErrorKind::ConnectionReset.into())];
    let name: ImageName = "broken".parse().unwrap();
    let error = lab.store.import(&name, futures::stream::iter(pieces).boxed(), sender).await.unwrap_err();
    assert_eq!(error.code, Code::ImageInvalid);
    assert!(lab.store.get(&name).await.unwrap().is_none());
    assert!(unfinished(&lab.test.path()).is_empty());
}

#[tokio::test]
async fn a_full_disk_is_said_to_be_full_and_what_was_unpacked_goes() {
    let lab = TestPool::new();
    std::fs::create_dir(lab.path()).unwrap();
    let flags = nix::mount::MsFlags::empty();
    nix::mount::mount(Some("none"), &lab.path(), Some("tmpfs"), flags, Some("size=8m")).unwrap();
    let (pool, _) = lab.open(PoolPreference::Overlay).await;
    let store = ImageStore::open(pool.clone()).unwrap();
    let noise: Vec<u8> = (0..12_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let large = archive(&[("bin/", Entry::Directory), ("bin/large", Entry::File(&noise))]);
    let error = import(&store, "large", large).await.unwrap_err();
    assert_eq!(error.code, Code::HostDiskFull);
    assert!(store.list().await.unwrap().is_empty());
    assert!(unfinished(&lab.path()).is_empty());
    import(&store, "small", small_archive()).await.unwrap();
    nix::mount::umount2(&lab.path(), nix::mount::MntFlags::MNT_DETACH).unwrap();
}

#[tokio::test]
async fn an_image_is_replaced_and_removed_while_snapshots_of_it_live() {
    let lab = Lab::new(PoolPreference::Best).await;
    import(&lab.store, "base", small_archive()).await.unwrap();
    let (name, machine) = ("base".parse().unwrap(), machine());
    lab.pool.create_disk(machine, &name, UID_BASE, None).await.unwrap();
    let entries = [("bin/", Entry::Directory), ("bin/new", Entry::File(b"new"))];
    import(&lab.store, "base", archive(&entries)).await.unwrap();
    assert!(lab.root("base").join("bin/new").exists());
    lab.store.remove(&name).await.unwrap();
    assert_eq!(lab.store.remove(&name).await.unwrap_err().code, Code::ImageNotFound);
    let root = lab.pool.mount_root(machine, UID_BASE).await.unwrap();
    assert!(root.join("bin/tool").exists());
    assert!(unfinished(&lab.test.path()).is_empty());
}

#[tokio::test]
async fn an_image_that_overlays_lie_on_is_neither_replaced_nor_removed() {
    let lab = Lab::new(PoolPreference::Overlay).await;
    import(&lab.store, "base", small_archive()).await.unwrap();
    let (name, machine) = ("base".parse().unwrap(), machine());
    lab.pool.create_disk(machine, &name, UID_BASE, None).await.unwrap();
    assert_eq!(lab.store.remove(&name).await.unwrap_err().code, Code::ImageInUse);
    assert_eq!(import(&lab.store, "base", small_archive()).await.unwrap_err().code, Code::ImageInUse);
    lab.pool.remove_disk(machine).await.unwrap();
    lab.store.remove(&name).await.unwrap();
}

#[tokio::test]
async fn an_image_without_a_recipe_cannot_be_built() {
    let lab = Lab::new(PoolPreference::Overlay).await;
    let (sender, _receiver) = mpsc::channel(1);
    let error = lab.store.build(&"nothing".parse().unwrap(), sender).await.unwrap_err();
    assert_eq!(error.code, Code::ImageNotFound);
    assert!(error.detail.contains("debian"), "{error}");
}

/// Takes half a minute and needs the host's Debian mirror.
#[tokio::test(flavor = "multi_thread")]
async fn the_default_image_is_built_once_for_all_who_ask() {
    let lab = Lab::new(PoolPreference::Best).await;
    let name = ImageName::default_image();
    let (sender, mut receiver) = mpsc::channel(64);
    let (other_sender, _other) = mpsc::channel(1);
    let start = std::time::Instant::now();
    let (one, two) = tokio::join!(lab.store.build(&name, sender), lab.store.build(&name, other_sender));
    let (one, two) = (one.unwrap(), two.unwrap());
    println!("{} MiB in {:?}", one.size >> 20, start.elapsed());
    assert_eq!(one, two);
    let mut stages = Vec::new();
    while let Some(progress) = receiver.recv().await {
        stages.push(progress.stage);
    }
    assert!(stages.iter().any(|stage| stage == "installing packages"), "{stages:?}");
    let root = lab.root("debian");
    for program in ["bash", "python3", "curl", "git", "ping", "ip"] {
        let there =
            ["bin", "usr/bin", "sbin", "usr/sbin"].iter().any(|directory| root.join(directory).join(program).exists());
        assert!(there, "{program}");
    }
    assert!(!root.join("etc/apt/apt.conf.d/99mmdebstrap").exists());
    assert!(!root.join("etc/resolv.conf").exists());
    assert!(unfinished(&lab.test.path()).is_empty());
}
