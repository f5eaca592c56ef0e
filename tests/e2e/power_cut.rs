//! The plug is pulled: a file system is taken down without its journal being written, as its own
//! testers do it, while images flow. What was acknowledged `power-safe` must be there afterwards.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use harness::{Oracle, TestWorld, WorldPlan, seed, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use streams::server::Durability;
use streams::topology::StreamSettings;
use streams::{reader, topology};
use tempfile::TempDir;

use crate::common::PATIENCE;

const DISK_BYTES: u64 = 512 * 1024 * 1024;
const IMAGES_PER_S: u32 = 60;
/// Images acknowledged before the cut.
const BEFORE: usize = 400;

/// A file system of our own on a file.
struct PowerCutDisk {
    folder: TempDir,
}

impl PowerCutDisk {
    fn make() -> Self {
        let root = nix::unistd::Uid::effective().is_root();
        let control = Path::new("/dev/loop-control").exists();
        assert!(
            root && control,
            "a power cut needs root and loop devices: run `make soak` as root where mounting is allowed"
        );
        let disk = Self { folder: tempfile::tempdir().unwrap() };
        File::create(disk.image()).unwrap().set_len(DISK_BYTES).unwrap();
        command("mkfs.ext4", &["-q".as_ref(), "-F".as_ref(), &disk.image()]);
        std::fs::create_dir(disk.mounted()).unwrap();
        disk.mount();
        disk
    }

    fn image(&self) -> PathBuf {
        self.folder.path().join("disk.img")
    }

    fn mounted(&self) -> PathBuf {
        self.folder.path().join("disk")
    }

    fn mount(&self) {
        command("mount", &["-o".as_ref(), "loop".as_ref(), &self.image(), &self.mounted()]);
    }

    /// From now on nothing reaches the disk, not even the journal.
    #[allow(unsafe_code)]
    fn cut(&self) {
        // FS_IOC_GOINGDOWN, 0x8004587d; the number 2 stands for "without writing the log".
        nix::ioctl_read!(going_down, b'X', 125, u32);
        let mounted = File::open(self.mounted()).unwrap();
        let mut without_log = 2;
        // SAFETY: the kernel reads one u32 from the address, which lives until the call returns.
        unsafe { going_down(std::os::fd::AsRawFd::as_raw_fd(&mounted), &raw mut without_log) }.unwrap();
    }

    /// The machine starts again: what the disk holds is what there is.
    async fn mount_again(&self) {
        let gone = until("the disk is let go", PATIENCE, async || {
            Ok(Command::new("umount").arg(self.mounted()).output()?.status.success().then_some(()))
        });
        gone.await.unwrap();
        self.mount();
    }
}

impl Drop for PowerCutDisk {
    fn drop(&mut self) {
        let _best_effort = Command::new("umount").arg("--lazy").arg(self.mounted()).output();
    }
}

fn command(program: &str, arguments: &[&Path]) {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
}

/// One row: what was acknowledged, what of it was still there, and what the oracle says in the end.
struct PowerCutRow {
    acknowledged: usize,
    left: u64,
    judgement: harness::Judgement,
}

async fn power_cut(durability: Durability, seed: u64) -> PowerCutRow {
    let disk = PowerCutDisk::make();
    // All limits together must fit on the disk, or the server refuses to create the streams.
    let streams = StreamSettings {
        images_max_mib: 64,
        outbox_max_mib: 32,
        verify_max_mib: 32,
        blobs_max_mib: 32,
        dead_max_mib: 32,
        hardcases_max_mib: 16,
        ..WorldPlan::default().streams
    };
    let mut plan = WorldPlan { durability, streams, stores: Some(disk.mounted()), ..WorldPlan::default() };
    let mut world = TestWorld::start_with_workers(plan.clone()).await.unwrap();
    let url = world.site(0).server.url();
    plan.port = url.rsplit(':').next().unwrap().parse().unwrap();
    let oracle = Oracle::new(seed, &world.site(0).name, world.bus(0)).unwrap();
    let publishing = oracle.start_publishing(IMAGES_PER_S);
    let enough = until("enough is acknowledged", Duration::from_secs(120), async || {
        Ok((oracle.acknowledged().len() >= BEFORE).then_some(()))
    });
    enough.await.unwrap();

    // All of the machine stops at once: first nothing is acknowledged any more, then nothing written.
    let server = Pid::from_raw(world.site(0).server.process().unwrap().cast_signed());
    kill(server, Signal::SIGSTOP).unwrap();
    disk.cut();
    kill(server, Signal::SIGKILL).unwrap();
    for worker in world.workers.values_mut() {
        worker.kill().unwrap();
    }
    let acknowledged = oracle.acknowledged().len();
    oracle.stop_publishing();
    drop(world);
    disk.mount_again().await;

    let mut world = TestWorld::start(plan).await.unwrap();
    let left = reader::stream_level(world.bus(0), topology::IMAGES).await.unwrap().messages;
    world.start_workers().await.unwrap();
    // What was not acknowledged yet is published again by its camera, as ever.
    publishing.await.unwrap().unwrap();
    let patience = Duration::from_secs(if durability == Durability::PowerSafe { 60 } else { 20 });
    let judgement = oracle.judge(&world.cloud, patience).await.unwrap();
    PowerCutRow { acknowledged, left, judgement }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root and loop devices: make soak"]
async fn a_power_cut_takes_nothing_that_was_acknowledged_power_safe() {
    let seed = seed(20265);
    let mut table = vec![
        "| durability | images acknowledged before the cut | in the store after it | without an outcome in the end |"
            .to_owned(),
        "| --- | ---: | ---: | ---: |".to_owned(),
    ];
    let mut rows = Vec::new();
    for (name, durability) in [("power-safe", Durability::PowerSafe), ("fast", Durability::Fast)] {
        let row = power_cut(durability, seed).await;
        let lost = row.judgement.violations.iter().filter(|violation| violation.starts_with("1, 10")).count();
        table.push(format!("| `{name}` | {} | {} | {lost} |", row.acknowledged, row.left));
        rows.push(row);
    }
    println!("{}", table.join("\n"));
    rows[0].judgement.verdict().unwrap();
    assert!(rows[0].left >= rows[0].acknowledged as u64, "{} of {} are left", rows[0].left, rows[0].acknowledged);
}
