//! On the real kernel: loop devices, btrfs and mounts. Needs root.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::Instant;

use warren_model::Code;
use warren_model::access::Images;

use super::layout::{Layout, Workspace};
use super::testing::{TestPool, UID_BASE, import, machine, pool_with_image, small_archive, unfinished};
use super::{Pool, PoolKind, PoolPreference, btrfs, roots};
use crate::image::ImageStore;

const BOTH: [PoolPreference; 2] = [PoolPreference::Best, PoolPreference::Overlay];

#[tokio::test]
async fn a_disk_is_made_mounted_with_shifted_owners_written_to_and_removed() {
    for preference in BOTH {
        let test = TestPool::new();
        let (pool, _, image) = pool_with_image(&test, preference).await;
        let (one, two) = (machine(), machine());
        for machine in [one, two] {
            pool.create_disk(machine, &image, UID_BASE, None).await.unwrap();
            pool.create_disk(machine, &image, UID_BASE, None).await.unwrap();
        }
        let root = pool.mount_root(one, UID_BASE).await.unwrap();
        assert_eq!(pool.mount_root(one, UID_BASE).await.unwrap(), root);
        let issue = root.join("etc/issue");
        assert_eq!(std::fs::metadata(&issue).unwrap().uid(), UID_BASE);
        assert_eq!(std::fs::metadata(&root).unwrap().uid(), UID_BASE);
        assert_eq!(std::fs::metadata(root.join("tmp")).unwrap().mode() & 0o7777, 0o1777);
        std::fs::write(&issue, "changed").unwrap();
        assert_eq!(std::fs::metadata(&issue).unwrap().uid(), UID_BASE);
        let other = pool.mount_root(two, UID_BASE + (1 << 16)).await;
        if preference == PoolPreference::Overlay {
            assert!(other.is_err());
        } else {
            assert_eq!(std::fs::read_to_string(other.unwrap().join("etc/issue")).unwrap(), "a test\n");
            assert_eq!(pool.mounted().await.unwrap(), [one, two].into());
            pool.unmount_root(two).await.unwrap();
        }
        assert_eq!(pool.mounted().await.unwrap(), [one].into());
        assert_eq!(pool.disks().await.unwrap(), [one, two].into());
        pool.unmount_root(one).await.unwrap();
        let root = pool.mount_root(one, UID_BASE).await.unwrap();
        assert_eq!(std::fs::read_to_string(root.join("etc/issue")).unwrap(), "changed");
        for machine in [one, two, one] {
            pool.remove_disk(machine).await.unwrap();
        }
        assert!(pool.disks().await.unwrap().is_empty());
        assert!(pool.mounted().await.unwrap().is_empty());
        assert!(unfinished(&test.path()).is_empty());
    }
}

#[tokio::test]
async fn set_user_id_programs_work_in_a_mounted_root_and_not_in_the_pool() {
    let test = TestPool::new();
    let (pool, installation, image) = pool_with_image(&test, PoolPreference::Best).await;
    let machine = machine();
    pool.create_disk(machine, &image, UID_BASE, None).await.unwrap();
    let root = pool.mount_root(machine, UID_BASE).await.unwrap();
    let flags = |path: &std::path::Path| nix::sys::statvfs::statvfs(path).unwrap().flags();
    assert!(!flags(&root).contains(nix::sys::statvfs::FsFlags::ST_NOSUID));
    assert!(flags(&root).contains(nix::sys::statvfs::FsFlags::ST_NODEV));
    assert!(flags(&pool.layout().disk(&installation, machine)).contains(nix::sys::statvfs::FsFlags::ST_NOSUID));
}

#[tokio::test]
async fn a_limit_is_kept_for_the_machine_and_for_no_other() {
    let test = TestPool::new();
    let (pool, installation, image) = pool_with_image(&test, PoolPreference::Best).await;
    assert_eq!(pool.kind(), PoolKind::Btrfs { limits: true });
    let (limited, free) = (machine(), machine());
    pool.create_disk(limited, &image, UID_BASE, Some(1)).await.unwrap();
    pool.create_disk(free, &image, UID_BASE, None).await.unwrap();
    // Not through the mount: the host's root has no user there and may make nothing.
    let big = |machine| std::fs::File::create(pool.layout().disk(&installation, machine).join("big")).unwrap();
    let file = big(limited);
    let reserve =
        |file: &std::fs::File, bytes| nix::fcntl::fallocate(file, nix::fcntl::FallocateFlags::empty(), 0, bytes);
    reserve(&file, 900 << 20).unwrap();
    assert_eq!(reserve(&file, 1100 << 20).unwrap_err(), nix::errno::Errno::EDQUOT);
    reserve(&big(free), 1100 << 20).unwrap();
    // Asking again without a limit lifts it.
    pool.create_disk(limited, &image, UID_BASE, None).await.unwrap();
    reserve(&file, 1100 << 20).unwrap();
}

#[tokio::test]
async fn where_disks_cannot_be_limited_a_limit_is_refused_and_nothing_is_made() {
    let test = TestPool::new();
    let (pool, _, image) = pool_with_image(&test, PoolPreference::Overlay).await;
    let error = pool.create_disk(machine(), &image, UID_BASE, Some(1)).await.unwrap_err();
    assert_eq!(error.code(), Code::LimitUnavailable);
    assert!(pool.disks().await.unwrap().is_empty());
}

#[tokio::test]
async fn an_image_that_is_not_there_is_said_to_be_missing() {
    for preference in BOTH {
        let test = TestPool::new();
        let (pool, _) = test.open(preference).await;
        let absent = "absent".parse().unwrap();
        let error = pool.create_disk(machine(), &absent, UID_BASE, None).await.unwrap_err();
        assert_eq!(error.code(), Code::ImageNotFound);
        assert!(pool.disks().await.unwrap().is_empty());
        assert!(unfinished(&test.path()).is_empty());
    }
}

#[tokio::test]
async fn two_installations_share_a_pool_and_the_last_one_takes_it_away() {
    for preference in BOTH {
        let test = TestPool::new();
        let (first, first_id, image) = pool_with_image(&test, preference).await;
        let (second, _) = test.open(PoolPreference::Best).await;
        assert_eq!(first.kind(), second.kind());
        let (one, two) = (machine(), machine());
        first.create_disk(one, &image, UID_BASE, None).await.unwrap();
        second.create_disk(two, &image, UID_BASE, None).await.unwrap();
        assert_eq!(first.disks().await.unwrap(), [one].into());
        assert_eq!(second.disks().await.unwrap(), [two].into());
        first.mount_root(one, UID_BASE).await.unwrap();
        first.close_installation(true).await.unwrap();
        assert!(roots::mounted(&first_id).unwrap().is_empty());
        let root = second.mount_root(two, UID_BASE).await.unwrap();
        assert!(root.join("etc/issue").exists());
        second.close_installation(true).await.unwrap();
        assert!(!test.path().exists());
    }
}

#[tokio::test]
async fn a_pool_opens_again_after_it_was_unmounted() {
    let test = TestPool::new();
    let (pool, installation, image) = pool_with_image(&test, PoolPreference::Best).await;
    let machine = machine();
    pool.create_disk(machine, &image, UID_BASE, None).await.unwrap();
    drop(pool);
    roots::unmount_all_at(&Layout::data(&test.path())).unwrap();
    let pool = Pool::open(&test.path(), &installation).await.unwrap();
    assert_eq!(pool.kind(), PoolKind::Btrfs { limits: true });
    assert_eq!(pool.disks().await.unwrap(), [machine].into());
}

#[tokio::test]
async fn work_on_images_alone_leaves_nothing_mounted() {
    let test = TestPool::new();
    let pool = Pool::open_for_images(&test.path()).await.unwrap();
    import(&ImageStore::open(pool.clone()).unwrap(), "small", small_archive()).await.unwrap();
    pool.release().await.unwrap();
    assert!(!crate::files::is_mount_point(&Layout::data(&test.path())).unwrap());
    let pool = Pool::open_for_images(&test.path()).await.unwrap();
    assert_eq!(ImageStore::open(pool).unwrap().list().await.unwrap().len(), 1);
}

#[tokio::test]
async fn what_a_crash_left_half_made_is_gone_at_the_next_opening_and_work_under_way_is_not() {
    for preference in BOTH {
        let test = TestPool::new();
        let (pool, installation, _) = pool_with_image(&test, preference).await;
        let crashed = Workspace::new(pool.layout()).unwrap();
        let tree = crashed.path().join("image");
        std::fs::create_dir(&tree).unwrap();
        pool.layout().make_tree(&tree.join("root")).unwrap();
        std::fs::write(tree.join("root/file"), "x").unwrap();
        let path = crashed.crash();
        let busy = Workspace::new(pool.layout()).unwrap();
        drop(pool);
        let _again = Pool::open(&test.path(), &installation).await.unwrap();
        assert!(!path.exists());
        assert!(busy.path().exists());
        drop(busy);
        assert!(unfinished(&test.path()).is_empty());
    }
}

#[tokio::test]
async fn subvolumes_that_a_machine_made_go_with_its_disk() {
    let test = TestPool::new();
    let (pool, installation, image) = pool_with_image(&test, PoolPreference::Best).await;
    let machine = machine();
    pool.create_disk(machine, &image, UID_BASE, None).await.unwrap();
    let disk = pool.layout().disk(&installation, machine);
    std::fs::create_dir(disk.join("deep")).unwrap();
    btrfs::create_subvolume(&disk.join("deep/one")).unwrap();
    btrfs::create_subvolume(&disk.join("deep/one/two")).unwrap();
    std::os::unix::fs::symlink("/etc", disk.join("deep/link")).unwrap();
    pool.remove_disk(machine).await.unwrap();
    assert!(pool.disks().await.unwrap().is_empty());
}

#[tokio::test]
async fn the_pool_and_its_disks_are_closed_to_other_users() {
    let test = TestPool::new();
    let _pool = test.open(PoolPreference::Best).await;
    let mode = std::fs::metadata(test.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}

#[tokio::test]
async fn a_disk_is_made_and_mounted_in_milliseconds() {
    let test = TestPool::new();
    let (pool, _, image) = pool_with_image(&test, PoolPreference::Best).await;
    let (mut creates, mut mounts, mut removals) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..15 {
        let machine = machine();
        let start = Instant::now();
        pool.create_disk(machine, &image, UID_BASE, Some(1)).await.unwrap();
        creates.push(start.elapsed());
        let start = Instant::now();
        pool.mount_root(machine, UID_BASE).await.unwrap();
        mounts.push(start.elapsed());
        let start = Instant::now();
        pool.remove_disk(machine).await.unwrap();
        removals.push(start.elapsed());
    }
    for times in [&mut creates, &mut mounts, &mut removals] {
        times.sort();
    }
    println!("median create {:?}, mount {:?}, remove {:?}", creates[7], mounts[7], removals[7]);
    // Generous, because tests share the machine.
    assert!(creates[7].as_secs() < 5 && mounts[7].as_secs() < 5);
}
