//! The sandbox of a trial: it may read its model's files, the libraries it loads and what the kernel reports about
//! processors and memory. It may write nothing, open no TCP port and reach no other process. The kernel enforces this
//! (Landlock) for this process and its children, permanently. Where the kernel lacks Landlock or parts of it, only the
//! trial's other limits remain.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Most entries of a model's folder that are searched for links; a package has no more files than this.
const MOST_ENTRIES: usize = 1024;
/// Depth of nested folders that are searched.
const MOST_DEPTH: usize = 8;

/// How far the kernel confines a trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Confinement {
    /// It reads only what it needs, writes nothing, and opens no TCP connection.
    Full,
    /// Only partly, because the kernel is older.
    Partial,
    /// Not at all: the kernel lacks Landlock, or it is disabled.
    #[default]
    None,
}

/// What a trial reads besides its model and the ONNX Runtime: shared libraries, and what threads and the runtime query
/// about processors and memory.
#[cfg(target_os = "linux")]
const NEEDED: [&str; 11] = [
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/etc/ld.so.cache",
    "/proc/self",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/sys/devices/system",
    "/sys/fs/cgroup",
];

/// Confines this thread and its children to a model's folder and a library, permanently. `follow_links`: also allow the
/// targets of links in the folder.
#[cfg(target_os = "linux")]
pub fn confine(folder: &Path, library: &Path, follow_links: bool) -> Confinement {
    match restrict(folder, library, follow_links) {
        Ok(confinement) => confinement,
        Err(error) => {
            tracing::warn!(%error, "trial sandbox unavailable");
            Confinement::None
        }
    }
}

/// Landlock exists on Linux only.
#[cfg(not(target_os = "linux"))]
pub fn confine(_folder: &Path, _library: &Path, _follow_links: bool) -> Confinement {
    Confinement::None
}

#[cfg(target_os = "linux")]
fn restrict(folder: &Path, library: &Path, follow_links: bool) -> Result<Confinement, landlock::RulesetError> {
    use landlock::{
        ABI, Access, AccessFs, AccessNet, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetStatus, Scope,
        path_beneath_rules,
    };
    // Linux 6.12. Rights an older kernel does not know are left out; those of newer kernels are not requested, so that
    // `Full` means the same everywhere.
    const KNOWN: ABI = ABI::V6;
    let mut read: Vec<PathBuf> = NEEDED.map(PathBuf::from).to_vec();
    read.push(folder.to_owned());
    read.extend(libraries(library));
    if follow_links {
        linked(folder, MOST_DEPTH, &mut read);
    }
    let status = Ruleset::default()
        .handle_access(AccessFs::from_all(KNOWN))?
        .handle_access(AccessNet::from_all(KNOWN))?
        .scope(Scope::from_all(KNOWN))?
        .create()?
        .add_rules(path_beneath_rules(read, AccessFs::ReadFile | AccessFs::ReadDir))?
        .restrict_self()?;
    Ok(match status.ruleset {
        RulesetStatus::FullyEnforced => Confinement::Full,
        RulesetStatus::PartiallyEnforced => Confinement::Partial,
        RulesetStatus::NotEnforced => Confinement::None,
    })
}

/// The library, and those beside it that it loads for other execution providers.
#[cfg(target_os = "linux")]
fn libraries(library: &Path) -> Vec<PathBuf> {
    let beside = library.parent().and_then(|folder| std::fs::read_dir(folder).ok()).into_iter().flatten().flatten();
    let is_part =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"libonnxruntime"));
    let parts = beside.map(|entry| entry.path()).filter(is_part).take(MOST_ENTRIES);
    std::iter::once(library.to_owned()).chain(parts).collect()
}

/// Adds the files that links in a folder point to. Only files: a link to a folder would open all of it.
#[cfg(target_os = "linux")]
fn linked(folder: &Path, depth: usize, found: &mut Vec<PathBuf>) {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    for entry in entries.take(MOST_ENTRIES) {
        let (path, kind) = (entry.path(), entry.file_type());
        match kind {
            Ok(kind) if kind.is_symlink() && path.is_file() => found.push(path),
            Ok(kind) if kind.is_dir() && depth > 0 => linked(&path, depth - 1, found),
            _ => {}
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::fs;
    use std::io::ErrorKind;
    use std::net::TcpListener;

    use super::*;

    /// Set in the environment of the confined process.
    const FOLDER: &str = "CONFINED_TO";

    fn kernel_has_landlock() -> bool {
        use landlock::{AccessFs, CompatLevel, Compatible, Ruleset, RulesetAttr};
        let ruleset = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
        ruleset.handle_access(AccessFs::ReadFile).and_then(Ruleset::create).is_ok()
    }

    /// Run by the test below in a process of its own, because confinement is permanent.
    #[test]
    fn inside_a_confined_process() {
        let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else { return };
        let outside = folder.with_file_name("outside");
        let confinement = confine(&folder, Path::new("/nowhere/libonnxruntime.so"), true);
        println!("confinement: {confinement:?}");
        if confinement == Confinement::None {
            return;
        }
        let refused = |path: &Path| fs::read(path).map(drop).map_err(|error| error.kind());
        assert_eq!(fs::read(folder.join("inside")).unwrap(), b"model");
        assert_eq!(fs::read(folder.join("deep/link")).unwrap(), b"linked");
        assert_eq!(refused(&outside), Err(ErrorKind::PermissionDenied));
        assert_eq!(refused(&folder.join("../outside")), Err(ErrorKind::PermissionDenied));
        assert_eq!(refused(&PathBuf::from("/etc/passwd")), Err(ErrorKind::PermissionDenied));
        assert!(fs::read("/proc/self/status").is_ok() && fs::read("/proc/cpuinfo").is_ok());
        let written = fs::write(folder.join("new"), b"x").map_err(|error| error.kind());
        assert_eq!(written, Err(ErrorKind::PermissionDenied));
        let spawned = std::process::Command::new("/bin/true").status().map(drop).map_err(|error| error.kind());
        assert_eq!(spawned, Err(ErrorKind::PermissionDenied));
        if confinement == Confinement::Full {
            let bound = TcpListener::bind("127.0.0.1:0").map(drop).map_err(|error| error.kind());
            assert_eq!(bound, Err(ErrorKind::PermissionDenied));
            let server = std::env::var("CONFINED_FROM").unwrap();
            let reached = std::net::TcpStream::connect(&server).map(drop).map_err(|error| error.kind());
            assert_eq!(reached, Err(ErrorKind::PermissionDenied));
        }
        println!("it was refused what it may not have");
    }

    #[test]
    fn a_confined_process_reads_its_folder_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("model");
        fs::create_dir_all(folder.join("deep")).unwrap();
        fs::write(folder.join("inside"), b"model").unwrap();
        fs::write(root.path().join("outside"), b"secret").unwrap();
        fs::write(root.path().join("elsewhere"), b"linked").unwrap();
        std::os::unix::fs::symlink(root.path().join("elsewhere"), folder.join("deep/link")).unwrap();
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let run = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "confinement::tests::inside_a_confined_process", "--nocapture", "--test-threads=1"])
            .env(FOLDER, &folder)
            .env("CONFINED_FROM", server.local_addr().unwrap().to_string())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&run.stdout).into_owned();
        assert!(run.status.success(), "{said}\n{}", String::from_utf8_lossy(&run.stderr));
        let is_there = said.contains("it was refused what it may not have");
        match said.contains("confinement: None") {
            // Nothing is claimed where nothing was enforced.
            true => println!("NOT ENFORCED: this kernel has no Landlock, so nothing was tested"),
            false => assert!(is_there, "{said}"),
        }
        // An old kernel is not a failure; a kernel that has Landlock and does not enforce it is.
        assert!(is_there || !kernel_has_landlock(), "{said}");
    }
}
