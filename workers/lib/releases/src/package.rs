//! Packs a model's folder into one file, in which a release is transferred, and unpacks it.
//!
//! A package is an uncompressed tar of regular files: the model's files by name, then extra ones such as the reference
//! outputs from where it was packed. The same folder always gives the same bytes. Nothing in a package is trusted:
//! names and sizes are checked before a byte is written, and the folder appears only if it makes exactly the expected
//! release (invariant 4). Extra files are not part of a release's digest; the hashes of the package's pieces cover
//! them.
//!
//! [`split`] and the functions beside it transfer a package in pieces. Functions that are not async block.

mod archive;
mod pieces;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use schemas::limits::MAX_WEIGHTS_BYTES;
use schemas::{BlobRef, FaultKind, ReleaseId, WireWord};
use streams::CarryError;
use vision::{Model, ModelError};

use archive::{TarContent, TarEntry};
pub use pieces::{assemble, fetch, keep, offer, piece, split};

/// Most files in a package. A model usually has three; very large ones are sometimes exported as one file per tensor.
pub const MAX_FILES: usize = 256;
/// Most bytes of a package's extra files together: enough for a few inputs and outputs of a model as text.
pub const MAX_EXTRA_BYTES: u64 = 16 * 1024 * 1024;
/// Most bytes of a package's files together.
const MAX_CONTENT_BYTES: u64 = MAX_WEIGHTS_BYTES + MAX_EXTRA_BYTES;

/// Why a package or its folder could not be written.
#[derive(Debug, thiserror::Error)]
pub enum PackageError {
    /// The folder is not a valid model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The release store or the blob bucket failed.
    #[error(transparent)]
    Carry(#[from] CarryError),
    /// A file cannot be read or written.
    #[error("could not read or write {path}", path = path.display())]
    File {
        /// Path of the file.
        path: PathBuf,
        /// Error of the operating system.
        #[source]
        source: io::Error,
    },
    /// The files are too large.
    #[error("the package's files have {size_bytes} bytes, at most {limit_bytes} are accepted; use a smaller model")]
    TooLarge {
        /// Size of the files in bytes, at least.
        size_bytes: u64,
        /// The limit in bytes.
        limit_bytes: u64,
    },
    /// There are too many files.
    #[error("the package has more than {MAX_FILES} files; export the model with its weights in one file")]
    TooMany,
    /// An entry is not allowed in a package.
    #[error(
        "entry {name:?} of the package {why}; only regular files with plain names relative to the folder are accepted"
    )]
    Entry {
        /// Name of the entry.
        name: String,
        /// What is wrong with it, in words that follow its name.
        why: &'static str,
    },
    /// The file is not a package, or was truncated or altered.
    #[error("{path} is not a complete package ({why}); fetch it again", path = path.display())]
    Damaged {
        /// Path of the file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A model's file was modified while it was read.
    #[error("{path} changed while it was packed; pack the folder again when nothing writes to it", path = path.display())]
    Changed {
        /// Path of the file.
        path: PathBuf,
    },
    /// The package has another release.
    #[error("the package contains release {found}, not {wanted}; fetch it again")]
    OtherRelease {
        /// The expected release.
        wanted: ReleaseId,
        /// The release in the package.
        found: ReleaseId,
    },
    /// The target folder is in use.
    #[error("{folder} is not empty; name a folder that does not exist or is empty", folder = folder.display())]
    Taken {
        /// Path of the folder.
        folder: PathBuf,
    },
    /// The list of pieces cannot belong to a package.
    #[error("the release's list of pieces is invalid ({why}); package the release again")]
    Pieces {
        /// What is wrong with them.
        why: String,
    },
    /// Pieces are missing. The others were fetched and are kept.
    #[error("{missing} of the package's {pieces} pieces are missing or damaged; offer the release again, then retry")]
    Missing {
        /// Number of missing pieces.
        missing: usize,
        /// Number of all pieces.
        pieces: usize,
        /// Error of the first of them.
        #[source]
        first: CarryError,
    },
    /// A blocking task stopped.
    #[error("packaging stopped unexpectedly: {0}")]
    Broke(String),
}

impl PackageError {
    /// What kind of fault it is, for reports and scripts.
    pub fn kind(&self) -> WireWord<FaultKind> {
        let told = match self {
            Self::Carry(_) => return FaultKind::PackageUnreachable.into(),
            Self::File { .. } | Self::Broke(_) => return FaultKind::PackageUnwritable.into(),
            Self::Missing { .. } => return FaultKind::PackageMissing.into(),
            Self::Model(error) => error.name(),
            Self::TooLarge { .. } => "package_too_large",
            Self::TooMany => "package_of_too_many_files",
            Self::Entry { .. } => "package_unsafe",
            Self::Damaged { .. } => "package_damaged",
            Self::Changed { .. } => "package_changed",
            Self::OtherRelease { .. } => "package_of_other_release",
            Self::Taken { .. } => "folder_taken",
            Self::Pieces { .. } => "package_pieces_wrong",
        };
        told.into()
    }

    /// Whether a retry can succeed without anybody acting: the link or the store may come back, and pieces may be
    /// offered again.
    pub fn passes(&self) -> bool {
        match self {
            Self::Carry(error) => error.is_transient(),
            Self::Missing { .. } | Self::File { .. } => true,
            _ => false,
        }
    }

    fn at(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        |source| Self::File { path, source }
    }
}

/// Writes a model's files, then the extra ones (name, content), to one file, and returns its digest and size. The same
/// folder and extra files give the same bytes. The file ends up complete, or is not created; an existing one is
/// replaced.
///
/// Refuses a model over [`MAX_WEIGHTS_BYTES`], extra files over [`MAX_EXTRA_BYTES`], more than [`MAX_FILES`] files, and
/// names that are not plain, appear twice, or are too long: a path component over 100 bytes, or 255 in all.
pub fn pack(model: &Model, extra: &[(&str, &[u8])], into: &Path) -> Result<BlobRef, PackageError> {
    let contents = contents(model, extra)?;
    make_folder(parent(into))?;
    let unfinished = temporary_path(into, "unfinished");
    let written = write(&contents, &unfinished).and_then(|packed| {
        rename_durably(&unfinished, into)?;
        Ok(packed)
    });
    if written.is_err() {
        let _the_next_one_writes_over_it = std::fs::remove_file(&unfinished);
    }
    written
}

/// Unpacks a release's folder from its package. The folder ends up complete, or is not created; if it already is that
/// release, it is left alone. A folder named by the release's digest that is not that release was interrupted and is
/// replaced; any other non-empty folder is refused.
///
/// Concurrent calls for the same folder wait for each other where the file system supports locks.
pub fn unpack(file: &Path, expected: &ReleaseId, into: &Path) -> Result<Model, PackageError> {
    let above = parent(into);
    make_folder(above)?;
    let turn = File::open(above).map_err(PackageError::at(above))?;
    let _without_locks_only_one_may_unpack = turn.lock();
    if let Ok(model) = Model::load(into)
        && model.release == *expected
    {
        return Ok(model);
    }
    let is_ours = into.file_name().is_some_and(|name| name == expected.as_str());
    if !is_ours {
        refuse_taken(into)?;
    }
    let unfinished = temporary_path(into, "unfinished");
    remove_folder(&unfinished)?;
    let made = lay_out(file, &unfinished).and_then(|()| match Model::load(&unfinished)?.release {
        found if found == *expected => Ok(()),
        found => Err(PackageError::OtherRelease { wanted: expected.clone(), found }),
    });
    if let Err(error) = made {
        remove_folder(&unfinished)?;
        return Err(error);
    }
    if is_ours {
        remove_folder(into)?;
    }
    rename_durably(&unfinished, into)?;
    // Loaded again, because a Hugging Face export may be named by its folder.
    Ok(Model::load(into)?)
}

/// The contents of a package in order, each with its plain name.
fn contents<'a>(model: &Model, extra: &[(&str, &'a [u8])]) -> Result<Vec<(String, TarContent<'a>)>, PackageError> {
    let extra_bytes = extra.iter().map(|(_, bytes)| bytes.len() as u64).sum();
    for (size_bytes, limit_bytes) in [(model.size_bytes()?, MAX_WEIGHTS_BYTES), (extra_bytes, MAX_EXTRA_BYTES)] {
        if size_bytes > limit_bytes {
            return Err(PackageError::TooLarge { size_bytes, limit_bytes });
        }
    }
    let plain = |name: &str| {
        let refused = || PackageError::Entry { name: name.to_owned(), why: "has a name that is not plain" };
        archive::plain_header(name).ok_or_else(refused)
    };
    // Keyed by name, so that two spellings of one path are one file.
    let mut files = BTreeMap::new();
    for name in &model.files {
        files.insert(plain(name)?, TarContent::File(model.folder.join(name)));
    }
    let mut contents: Vec<_> = files.into_iter().collect();
    for (name, bytes) in extra {
        let name = plain(name)?;
        if contents.iter().any(|(other, _)| *other == name) {
            return Err(PackageError::Entry { name, why: "appears twice" });
        }
        contents.push((name, TarContent::Bytes(bytes)));
    }
    match contents.len() > MAX_FILES {
        true => Err(PackageError::TooMany),
        false => Ok(contents),
    }
}

fn write(contents: &[(String, TarContent<'_>)], into: &Path) -> Result<BlobRef, PackageError> {
    let file = File::create(into).map_err(PackageError::at(into))?;
    let hashing = archive::HashingWriter::new(BufWriter::new(file));
    let (packed, mut file) = archive::write(contents, hashing, into)?.finish();
    file.flush().map_err(PackageError::at(into))?;
    Ok(packed)
}

/// Writes a package's files into a new folder and syncs them to disk.
fn lay_out(package: &Path, folder: &Path) -> Result<(), PackageError> {
    let entries = archive::read_entries(package)?;
    let mut from = File::open(package).map_err(PackageError::at(package))?;
    make_folder(folder)?;
    for TarEntry { name, at, size_bytes } in entries {
        let path = folder.join(name);
        make_folder(parent(&path))?;
        let mut to = File::create_new(&path).map_err(PackageError::at(&path))?;
        from.seek(SeekFrom::Start(at)).map_err(PackageError::at(package))?;
        let copied = io::copy(&mut (&mut from).take(size_bytes), &mut to).map_err(PackageError::at(&path))?;
        if copied != size_bytes {
            return Err(PackageError::Damaged {
                path: package.to_owned(),
                why: "it was truncated while it was read".into(),
            });
        }
        to.sync_all().map_err(PackageError::at(&path))?;
        path.ancestors().skip(1).take_while(|above| above.starts_with(folder)).try_for_each(sync)?;
    }
    Ok(())
}

/// Refuses a file, and a folder that is not empty.
pub(crate) fn refuse_taken(folder: &Path) -> Result<(), PackageError> {
    let is_taken = match std::fs::read_dir(folder) {
        Ok(mut found) => found.next().is_some(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => true,
        Err(error) => return Err(PackageError::at(folder)(error)),
    };
    match is_taken {
        true => Err(PackageError::Taken { folder: folder.to_owned() }),
        false => Ok(()),
    }
}

/// The temporary name of a file or folder until it is complete; a new attempt starts by removing it.
pub(crate) fn temporary_path(path: &Path, what: &str) -> PathBuf {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    path.with_file_name(format!(".{name}.{what}"))
}

pub(crate) fn make_folder(folder: &Path) -> Result<(), PackageError> {
    std::fs::create_dir_all(folder).map_err(PackageError::at(folder))
}

pub(crate) fn remove_folder(folder: &Path) -> Result<(), PackageError> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(PackageError::at(folder)(error)),
        _ => Ok(()),
    }
}

/// Renames a finished file or folder durably, so that it survives a power cut. A folder replaces an empty one.
pub(crate) fn rename_durably(finished: &Path, name: &Path) -> Result<(), PackageError> {
    sync(finished)?;
    std::fs::rename(finished, name).map_err(PackageError::at(name))?;
    sync(parent(name))
}

fn sync(path: &Path) -> Result<(), PackageError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(PackageError::at(path))
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use sha2::{Digest, Sha256};
    use std::path::Component;
    use tar::{EntryType, Header};

    pub(crate) fn light() -> Model {
        Model::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../fixtures/models/fashion-light")).unwrap()
    }

    /// A model whose graph keeps one tensor in a file in a subfolder.
    pub(crate) fn spread(folder: &Path) -> Model {
        let message = |number: u8, content: &[u8]| [&[number << 3 | 2, content.len() as u8], content].concat();
        let entry = [message(1, b"location"), message(2, b"./weights/all.bin")].concat();
        let graph = message(7, &message(5, &message(13, &entry)));
        std::fs::create_dir_all(folder.join("weights")).unwrap();
        for name in ["model.toml", "labels.txt"] {
            std::fs::copy(light().folder.join(name), folder.join(name)).unwrap();
        }
        std::fs::write(folder.join("graph.onnx"), graph).unwrap();
        std::fs::write(folder.join("weights/all.bin"), vec![7; 100_000]).unwrap();
        Model::load(folder).unwrap()
    }

    struct PackagePlace {
        root: tempfile::TempDir,
        file: PathBuf,
        into: PathBuf,
    }

    impl PackagePlace {
        fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            let (file, into) = (root.path().join("a.tar"), root.path().join("made"));
            Self { root, file, into }
        }

        fn packed() -> (Self, Model) {
            let (place, model) = (Self::new(), light());
            pack(&model, &[("probe.json", b"{}")], &place.file).unwrap();
            (place, model)
        }

        fn refusal(&self) -> PackageError {
            let error = unpack(&self.file, &light().release, &self.into).unwrap_err();
            assert_eq!(self.names(), ["a.tar"], "{error} left files behind");
            error
        }

        fn names(&self) -> Vec<String> {
            let found = std::fs::read_dir(self.root.path()).unwrap();
            let mut names: Vec<_> = found.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        }
    }

    /// Writes a tar as another program would: this entry, and the end marker.
    fn foreign(file: &Path, name: &str, kind: EntryType, declared_bytes: u64, content: &[u8]) {
        let mut header = Header::new_ustar();
        header.as_ustar_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(kind);
        header.set_size(declared_bytes);
        header.set_mode(0o777);
        header.as_ustar_mut().unwrap().linkname[..11].copy_from_slice(b"/etc/passwd");
        header.set_cksum();
        let padding = vec![0; content.len().next_multiple_of(512) - content.len()];
        std::fs::write(file, [header.as_bytes(), content, &padding, &[0; 1024]].concat()).unwrap();
    }

    #[test]
    fn packing_is_deterministic_and_unpacking_restores_the_folder() {
        let place = PackagePlace::new();
        let again = place.root.path().join("b.tar");
        for model in [light(), spread(&place.root.path().join("spread"))] {
            let extra: [(&str, &[u8]); 1] = [("probe.json", b"{}")];
            let packed = pack(&model, &extra, &place.file).unwrap();
            assert_eq!(packed, pack(&model, &extra, &again).unwrap());
            let bytes = std::fs::read(&place.file).unwrap();
            assert!(bytes == std::fs::read(&again).unwrap());
            assert_eq!(packed, BlobRef::new(Sha256::digest(&bytes).into(), bytes.len() as u64));

            let into = place.root.path().join("models").join(model.release.as_str());
            let made = unpack(&place.file, &model.release, &into).unwrap();
            assert_eq!((&made.release, &made.files, &made.folder), (&model.release, &model.files, &into));
            for name in &model.files {
                assert!(std::fs::read(into.join(name)).unwrap() == std::fs::read(model.folder.join(name)).unwrap());
            }
            assert_eq!(std::fs::read(into.join("probe.json")).unwrap(), b"{}");
        }
        assert_eq!(place.names(), ["a.tar", "b.tar", "models", "spread"]);
    }

    #[test]
    fn a_package_has_names_sizes_and_contents_but_no_origin() {
        let (place, model) = PackagePlace::packed();
        let mut archive = tar::Archive::new(File::open(&place.file).unwrap());
        let mut names = Vec::new();
        for entry in archive.entries().unwrap() {
            let entry = entry.unwrap();
            let header = entry.header();
            let numbers = (header.mtime().unwrap(), header.uid().unwrap(), header.gid().unwrap());
            assert_eq!((numbers, header.mode().unwrap()), ((0, 0, 0), 0o644));
            assert!(header.username_bytes().unwrap().is_empty() && header.entry_type().is_file());
            names.push(entry.path().unwrap().display().to_string());
        }
        assert_eq!(names[..3], model.files);
        assert_eq!(names[3..], ["probe.json"]);
    }

    #[test]
    fn an_existing_release_stays_and_an_interrupted_one_is_replaced() {
        let (place, model) = PackagePlace::packed();
        let into = place.root.path().join(model.release.as_str());
        let unfinished = temporary_path(&into, "unfinished");
        std::fs::create_dir_all(unfinished.join("graph.onnx")).unwrap();
        unpack(&place.file, &model.release, &into).unwrap();
        std::fs::write(into.join("mine"), "").unwrap();
        unpack(Path::new("/no/such/package"), &model.release, &into).unwrap();
        assert!(into.join("mine").exists() && !unfinished.exists());
        std::fs::write(into.join("graph.onnx"), "").unwrap();
        assert_eq!(unpack(&place.file, &model.release, &into).unwrap().release, model.release);
        assert!(!into.join("mine").exists());
    }

    #[test]
    fn concurrent_unpacks_give_one_folder() {
        let (place, model) = PackagePlace::packed();
        let into = place.root.path().join(model.release.as_str());
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| assert_eq!(unpack(&place.file, &model.release, &into).unwrap().folder, into));
            }
        });
        assert_eq!(place.names().len(), 2);
    }

    #[test]
    fn a_foreign_folder_is_not_touched() {
        let (place, model) = PackagePlace::packed();
        std::fs::create_dir(&place.into).unwrap();
        unpack(&place.file, &model.release, &place.into).unwrap();
        std::fs::write(place.into.join("labels.txt"), "mine\n").unwrap();
        let error = unpack(&place.file, &model.release, &place.into).unwrap_err();
        assert!(matches!(error, PackageError::Taken { .. }), "{error}");
        assert_eq!(std::fs::read(place.into.join("labels.txt")).unwrap(), b"mine\n");
        let error = unpack(&place.file, &model.release, &place.file).unwrap_err();
        assert!(matches!(error, PackageError::Taken { .. }), "{error}");
    }

    #[test]
    fn a_truncated_package_is_refused_wherever_it_ends() {
        let (place, _) = PackagePlace::packed();
        let whole = std::fs::read(&place.file).unwrap();
        for bytes in [0, 1, 512, 1000, whole.len() / 2, whole.len() - 1024, whole.len() - 1] {
            std::fs::write(&place.file, &whole[..bytes]).unwrap();
            let error = place.refusal();
            assert!(matches!(error, PackageError::Damaged { .. }), "{bytes} bytes: {error}");
        }
        std::fs::write(&place.file, [&whole[..], &[0; 512]].concat()).unwrap();
        assert!(matches!(place.refusal(), PackageError::Damaged { .. }));
    }

    #[test]
    fn an_altered_byte_makes_another_release_and_is_refused_with_its_digest() {
        let (place, model) = PackagePlace::packed();
        let whole = std::fs::read(&place.file).unwrap();
        let entries = archive::read_entries(&place.file).unwrap();
        let labels = entries.iter().find(|entry| entry.name == "labels.txt").unwrap();
        let alter = |at: u64| {
            let mut bytes = whole.clone();
            bytes[at as usize] ^= 1;
            std::fs::write(&place.file, bytes).unwrap();
            place.refusal()
        };
        match alter(labels.at) {
            PackageError::OtherRelease { wanted, found } => assert!(wanted == model.release && found != wanted),
            error => panic!("{error}"),
        }
        assert!(matches!(alter(labels.at - 512), PackageError::Damaged { .. }));
    }

    #[test]
    fn the_package_of_another_release_is_refused_with_both_digests() {
        let place = PackagePlace::new();
        let other = spread(&place.root.path().join("spread"));
        pack(&other, &[], &place.file).unwrap();
        std::fs::remove_dir_all(&other.folder).unwrap();
        let text = place.refusal().to_string();
        assert!(text.contains(other.release.as_str()) && text.contains(light().release.as_str()), "{text}");
    }

    #[test]
    fn entries_that_are_not_plain_files_are_refused_by_name() {
        let place = PackagePlace::new();
        for (name, kind) in [
            ("../graph.onnx", EntryType::Regular),
            ("a/../../b", EntryType::Regular),
            ("/etc/cron.d/a", EntryType::Regular),
            ("./graph.onnx", EntryType::Regular),
            ("a//b", EntryType::Regular),
            ("a/", EntryType::Regular),
            ("", EntryType::Regular),
            ("link", EntryType::Symlink),
            ("link", EntryType::Link),
            ("device", EntryType::Char),
            ("disk", EntryType::Block),
            ("pipe", EntryType::Fifo),
            ("folder", EntryType::Directory),
            ("long", EntryType::GNULongName),
            ("more", EntryType::XHeader),
            ("sparse", EntryType::GNUSparse),
        ] {
            foreign(&place.file, name, kind, 4, b"text");
            match place.refusal() {
                PackageError::Entry { name: found, .. } => assert_eq!(found, name),
                error => panic!("{name:?}, {kind:?}: {error}"),
            }
        }
    }

    #[test]
    fn sizes_and_counts_are_refused_before_anything_is_written() {
        let place = PackagePlace::new();
        foreign(&place.file, "graph.onnx", EntryType::Regular, MAX_CONTENT_BYTES + 1, b"");
        assert!(matches!(place.refusal(), PackageError::TooLarge { .. }));
        foreign(&place.file, "graph.onnx", EntryType::Regular, u64::MAX - 511, b"");
        assert!(matches!(place.refusal(), PackageError::TooLarge { .. } | PackageError::Damaged { .. }));
        foreign(&place.file, "graph.onnx", EntryType::Regular, MAX_CONTENT_BYTES, b"");
        assert!(matches!(place.refusal(), PackageError::Damaged { .. }));

        let many: Vec<String> = (0..=MAX_FILES).map(|number| number.to_string()).collect();
        let contents: Vec<_> = many.iter().map(|name| (name.clone(), TarContent::Bytes(b""))).collect();
        write(&contents, &place.file).unwrap();
        assert!(matches!(place.refusal(), PackageError::TooMany));
        let twice = [("a", "1"), ("a", "2")].map(|(name, text)| (name.to_owned(), TarContent::Bytes(text.as_bytes())));
        write(&twice, &place.file).unwrap();
        assert!(matches!(place.refusal(), PackageError::Entry { why: "appears twice", .. }));
    }

    #[test]
    fn a_package_that_could_not_be_unpacked_is_not_written() {
        let (place, mut model) = (PackagePlace::new(), light());
        let refusal = |model: &Model, extra: &[(&str, &[u8])]| {
            let error = pack(model, extra, &place.file).unwrap_err();
            assert!(place.names().is_empty(), "{error} left files behind");
            error
        };
        let long = "x".repeat(101);
        for name in ["../a", "/a", "", ".", "graph.onnx", "./labels.txt", &long] {
            let error = refusal(&model, &[(name, b"")]);
            assert!(matches!(error, PackageError::Entry { .. }), "{name:?}: {error}");
        }
        let many: Vec<String> = (0..MAX_FILES).map(|number| number.to_string()).collect();
        let extra: Vec<(&str, &[u8])> = many.iter().map(|name| (name.as_str(), &b""[..])).collect();
        assert!(matches!(refusal(&model, &extra), PackageError::TooMany));
        let large = vec![0; MAX_EXTRA_BYTES as usize + 1];
        assert!(matches!(refusal(&model, &[("probe.json", &large)]), PackageError::TooLarge { .. }));

        let huge = tempfile::tempdir().unwrap();
        File::create(huge.path().join("weights")).unwrap().set_len(MAX_WEIGHTS_BYTES + 1).unwrap();
        (model.folder, model.files) = (huge.path().to_owned(), vec!["weights".into()]);
        assert!(matches!(refusal(&model, &[]), PackageError::TooLarge { .. }));
    }

    /// Gives every header block a correct checksum, so that it is read.
    fn with_sums(mut bytes: Vec<u8>) -> Vec<u8> {
        for block in bytes.chunks_exact_mut(512) {
            if block[257..262] == *b"ustar" {
                block[148..156].copy_from_slice(b"        ");
                let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
                block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            }
        }
        bytes
    }

    #[test]
    fn packages_that_were_bent_are_unpacked_whole_or_refused() {
        let memory = Path::new("/dev/shm");
        let root = tempfile::tempdir_in(if memory.is_dir() { memory } else { Path::new("/tmp") }).unwrap();
        let (file, into) = (root.path().join("a.tar"), root.path().join("made"));
        // Small files, so that most changes hit headers.
        let contents = [
            ("labels.txt".to_owned(), TarContent::Bytes(b"cat\ndog\n")),
            ("weights/all.bin".to_owned(), TarContent::Bytes(&[7; 700])),
            ("probe.json".to_owned(), TarContent::Bytes(b"{}")),
        ];
        let small = archive::write(&contents, Vec::new(), &file).unwrap();
        bend::bend_some(
            "packages' headers",
            &[small],
            bend::turns() / 2,
            |bytes, _| with_sums(bytes),
            |bytes| {
                std::fs::write(&file, bytes).unwrap();
                if let Ok(entries) = archive::read_entries(&file) {
                    for TarEntry { name, at, size_bytes } in entries {
                        assert!(at + size_bytes <= bytes.len() as u64, "{name} lies outside of the package");
                        assert!(
                            Path::new(&name).components().all(|part| matches!(part, Component::Normal(_))),
                            "{name}"
                        );
                    }
                }
                1
            },
        );
        let model = light();
        pack(&model, &[("probe.json", b"{}")], &file).unwrap();
        let whole = std::fs::read(&file).unwrap();
        bend::bend_some(
            "packages, unpacked",
            &[whole],
            bend::turns() / 200,
            |bytes, _| with_sums(bytes),
            |bytes| {
                std::fs::write(&file, bytes).unwrap();
                match unpack(&file, &model.release, &into) {
                    Ok(made) => {
                        assert_eq!(made.release, model.release);
                        std::fs::remove_dir_all(&into).unwrap();
                    }
                    Err(_) => assert!(!into.exists(), "files were left behind"),
                }
                1
            },
        );
        let names: Vec<_> = std::fs::read_dir(root.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["a.tar"], "a file was written outside the folder");
    }
}
