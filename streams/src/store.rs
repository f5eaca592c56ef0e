//! The release store: objects that are put once and never changed, in a folder or in the object store
//! of a cloud. What enters is bytes under a path; what leaves is the same bytes, bounded in size, and
//! large ones only with the hash of their reference (invariant 4). A store that is dead or slow is an
//! error after [`PATIENCE`] a request, never a hang.
//!
//! All that is sealed here rests on one guarantee: of many who put one path, exactly one wins.
//! - A folder links a finished, synced file to its name, and a link never replaces; file and folder are
//!   on the disk before a put returns. The file system must know hard links: FAT does not.
//! - S3 puts with `If-None-Match: *`. The server must heed it atomically: Amazon says it does, SeaweedFS
//!   was seen to; s3s-fs was seen to let several writers win, and a server like it is not fit.
//! - Google Cloud Storage puts with generation match 0, Azure with `If-None-Match: *`.
//!
//! The folder and S3 (SeaweedFS) were tried; Google and Azure were not, they rest on `object_store`.
//!
//! An upload that is cut off leaves parts that are no object and are never listed: in a folder files
//! named `<name>#1`, in a bucket an unfinished multipart upload, which a lifecycle rule should clear.

mod client;
mod failure;

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::path::Path as Key;
use object_store::{MultipartUpload, ObjectStore, ObjectStoreExt, PutMode};
use schemas::BlobRef;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::error::CarryError;
use failure::is_absent;

/// How long one request may take, the retries under it included.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Large objects come and go in parts of this size: the smallest that S3 takes, so that one part passes
/// a slow link within its patience.
const PART_BYTES: u64 = 5 * 1024 * 1024;
const LONGEST_PATH_BYTES: usize = 512;

/// Who stored an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutOutcome {
    /// This call.
    New,
    /// Another, before or at the same time. It stays.
    Already,
}

/// A release store; cheap to clone.
#[derive(Clone)]
pub struct ReleaseStore {
    objects: Arc<dyn ObjectStore>,
    /// Its address, for messages; holds no credentials.
    name: Arc<str>,
    folder: Option<Arc<Path>>,
}

impl ReleaseStore {
    /// Opens the store at a path, `file://`, `s3://bucket/prefix`, `gs://bucket/prefix` or
    /// `az://container/prefix`. A folder is made if missing; a bucket must be there. Keys, region and
    /// endpoint come from the environment, by the names the providers' own tools use: AWS_ACCESS_KEY_ID,
    /// AWS_ENDPOINT, AWS_ALLOW_HTTP (for an endpoint without TLS), GOOGLE_SERVICE_ACCOUNT,
    /// AZURE_STORAGE_ACCOUNT_NAME and so on. Sends nothing yet.
    pub fn open(url: &str) -> Result<Self, CarryError> {
        Self::open_with(url, client::store_environment())
    }

    /// Opens a store with these options in place of the environment's, under the same names.
    pub fn open_with(url: &str, options: impl IntoIterator<Item = (String, String)>) -> Result<Self, CarryError> {
        let opened = client::open_store(url, options.into_iter().collect())?;
        Ok(Self { objects: opened.objects, name: url.into(), folder: opened.folder.map(Into::into) })
    }

    /// Stores a small object, unless its path is taken: of many callers one is told [`Put::New`].
    ///
    /// A put whose answer was lost, or came after [`PATIENCE`], may have been done. After an error, or a retry inside this call,
    /// [`Put::Already`] can mean our own bytes: whoever must know compares with [`Store::get`].
    pub async fn put_new(&self, path: &str, bytes: Bytes) -> Result<PutOutcome, CarryError> {
        let key = key(path)?;
        let what = || format!("storing {path}");
        match self.bounded(self.objects.put_opts(&key, bytes.into(), PutMode::Create.into())).await {
            Ok(_) => Ok(PutOutcome::New),
            Err(object_store::Error::AlreadyExists { .. }) => {
                // S3 says the same of a put that clashed with one that then came to nothing.
                self.bounded(self.objects.head(&key)).await.map_err(self.failed(what()))?;
                self.settle(&key).await.map_err(self.failed(what()))?;
                Ok(PutOutcome::Already)
            }
            Err(error) => Err(self.failed(what())(error)),
        }
    }

    /// Stores a file of any size under a path that its content alone decides, unless an object of its
    /// size is there. In parts, one in memory at a time; hashed on the way, and not stored if it is not
    /// what its reference says. Two callers at once both store, the same bytes.
    pub async fn put_file(&self, path: &str, blob: &BlobRef, file: &Path) -> Result<PutOutcome, CarryError> {
        let key = key(path)?;
        let failed = || self.failed(format!("storing {path}"));
        match self.bounded(self.objects.head(&key)).await {
            Ok(found) if found.size == blob.size_bytes => {
                self.settle(&key).await.map_err(failed())?;
                return Ok(PutOutcome::Already);
            }
            Ok(found) => tracing::warn!(path, size_bytes = found.size, "an object of another size is replaced"),
            Err(error) if is_absent(&error) => {}
            Err(error) => return Err(failed()(error)),
        }
        let mut parts = FileParts::open(file).await?;
        if blob.size_bytes <= PART_BYTES {
            let whole = parts.next().await?;
            parts.next().await?;
            self.check(path, blob, parts.seen)?;
            self.bounded(self.objects.put(&key, whole.into())).await.map_err(failed())?;
            return Ok(PutOutcome::New);
        }
        let mut upload = self.bounded(self.objects.put_multipart(&key)).await.map_err(failed())?;
        let stored = self.upload(path, blob, parts, &mut *upload).await;
        if stored.is_err() {
            let _left_for_the_lifecycle_rule = self.bounded(upload.abort()).await;
        }
        stored.map(|()| PutOutcome::New)
    }

    /// The bytes of a small object, or nothing if there is none. Its size is checked before it is read.
    pub async fn get(&self, path: &str, limit_bytes: u64) -> Result<Option<Bytes>, CarryError> {
        let key = key(path)?;
        let failed = || self.failed(format!("reading {path}"));
        let found = match self.bounded(self.objects.get(&key)).await {
            Ok(found) => found,
            Err(error) if is_absent(&error) => return Ok(None),
            Err(error) => return Err(failed()(error)),
        };
        if found.meta.size > limit_bytes {
            let what = format!("has {} bytes, at most {limit_bytes} are accepted", found.meta.size);
            return Err(self.bad(path, what));
        }
        self.bounded(found.bytes()).await.map(Some).map_err(failed())
    }

    /// Writes an object of any size to a file: whole, of exactly the size and hash of its reference, and
    /// on the disk; or not at all.
    pub async fn fetch(&self, path: &str, blob: &BlobRef, limit_bytes: u64, into: &Path) -> Result<(), CarryError> {
        let key = key(path)?;
        if blob.size_bytes > limit_bytes {
            return Err(self.bad(path, format!("has {} bytes, at most {limit_bytes} are accepted", blob.size_bytes)));
        }
        let failed = |error| match is_absent(&error) {
            true => self.bad(path, "is not there".into()),
            false => self.failed(format!("fetching {path}"))(error),
        };
        let found_bytes = self.bounded(self.objects.head(&key)).await.map_err(failed)?.size;
        if found_bytes != blob.size_bytes {
            let what = format!("has {found_bytes} bytes, its reference says {}", blob.size_bytes);
            return Err(self.bad(path, what));
        }
        let written = at(into);
        let folder = into.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // Removed when dropped, unless it was given its name.
        let readable = PermissionsExt::from_mode(0o644);
        let beside = tempfile::Builder::new().prefix(".fetch-").permissions(readable).tempfile_in(folder);
        let beside = beside.map_err(&written)?;
        let mut file = tokio::fs::File::from_std(beside.as_file().try_clone().map_err(&written)?);
        let mut seen = ContentDigest::default();
        while seen.size_bytes < blob.size_bytes {
            let end = blob.size_bytes.min(seen.size_bytes + PART_BYTES);
            let part = self.bounded(self.objects.get_range(&key, seen.size_bytes..end)).await.map_err(failed)?;
            if part.is_empty() {
                break;
            }
            seen.add(&part);
            file.write_all(&part).await.map_err(&written)?;
        }
        self.check(path, blob, seen)?;
        file.flush().await.map_err(&written)?;
        file.sync_all().await.map_err(&written)?;
        beside.persist(into).map_err(|error| written(error.error))?;
        Ok(())
    }

    /// The paths of all objects below a prefix, which ends where a part of a path ends; all objects for
    /// an empty one. Sorted.
    pub async fn list(&self, prefix: &str) -> Result<Vec<String>, CarryError> {
        let prefix = match prefix.trim_end_matches('/') {
            "" => None,
            prefix => Some(key(prefix)?),
        };
        let mut found = self.objects.list(prefix.as_ref());
        let mut paths = Vec::new();
        while let Some(object) =
            self.bounded(found.try_next()).await.map_err(self.failed("listing objects".to_owned()))?
        {
            paths.push(object.location.to_string());
        }
        paths.sort_unstable();
        Ok(paths)
    }

    async fn upload(
        &self,
        path: &str,
        blob: &BlobRef,
        mut parts: FileParts<'_>,
        upload: &mut dyn MultipartUpload,
    ) -> Result<(), CarryError> {
        let failed = || self.failed(format!("storing {path}"));
        loop {
            let part = parts.next().await?;
            if part.is_empty() || parts.seen.size_bytes > blob.size_bytes {
                break;
            }
            self.bounded(upload.put_part(part.into())).await.map_err(failed())?;
        }
        self.check(path, blob, parts.seen)?;
        self.bounded(upload.complete()).await.map(|_| ()).map_err(failed())
    }

    /// Somebody else's object is on the disk before we build on it: he may have been cut off between
    /// giving it its name and syncing the folder.
    async fn settle(&self, key: &Key) -> object_store::Result<()> {
        let Some(folder) = self.folder.clone() else { return Ok(()) };
        let file = folder.join(key.as_ref());
        let sync = move || {
            let mut parents = file.ancestors().skip(1).take_while(|parent| parent.starts_with(&folder));
            parents.try_for_each(|parent| File::open(parent)?.sync_all())
        };
        let synced = tokio::task::spawn_blocking(sync).await?;
        synced.map_err(|error| object_store::Error::Generic { store: "folder", source: error.into() })
    }

    async fn bounded<T>(&self, request: impl Future<Output = object_store::Result<T>>) -> object_store::Result<T> {
        tokio::time::timeout(PATIENCE, request).await.unwrap_or_else(|_| {
            let source = format!("no answer within {}s", PATIENCE.as_secs()).into();
            Err(object_store::Error::Generic { store: "store", source })
        })
    }

    fn check(&self, path: &str, blob: &BlobRef, seen: ContentDigest) -> Result<(), CarryError> {
        let found = BlobRef::new(seen.hash.finalize().into(), seen.size_bytes);
        if found.size_bytes != blob.size_bytes {
            let what = format!("has {} bytes or more, its reference says {}", found.size_bytes, blob.size_bytes);
            return Err(self.bad(path, what));
        }
        match found.sha256 == blob.sha256 {
            true => Ok(()),
            false => Err(self.bad(path, "does not have the SHA-256 of its reference".into())),
        }
    }

    fn bad(&self, path: &str, what: String) -> CarryError {
        CarryError::BadObject { store: self.name.to_string(), path: path.into(), what }
    }

    fn failed(&self, what: String) -> impl FnOnce(object_store::Error) -> CarryError {
        let (store, is_folder) = (self.name.to_string(), self.folder.is_some());
        move |error| failure::classify_error(store, is_folder, what, error)
    }
}

impl fmt::Debug for ReleaseStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The client within shows keys.
        f.debug_tuple("Store").field(&self.name).finish()
    }
}

/// Size and hash of what has passed.
#[derive(Default)]
struct ContentDigest {
    hash: Sha256,
    size_bytes: u64,
}

impl ContentDigest {
    fn add(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        self.size_bytes += bytes.len() as u64;
    }
}

/// A file, part by part.
struct FileParts<'a> {
    path: &'a Path,
    file: tokio::fs::File,
    seen: ContentDigest,
}

impl<'a> FileParts<'a> {
    async fn open(path: &'a Path) -> Result<Self, CarryError> {
        let file = tokio::fs::File::open(path).await.map_err(at(path))?;
        Ok(Self { path, file, seen: ContentDigest::default() })
    }

    /// The next part; empty at the end.
    async fn next(&mut self) -> Result<Vec<u8>, CarryError> {
        let mut part = Vec::new();
        (&mut self.file).take(PART_BYTES).read_to_end(&mut part).await.map_err(at(self.path))?;
        self.seen.add(&part);
        Ok(part)
    }
}

fn at(path: &Path) -> impl Fn(io::Error) -> CarryError {
    move |source| CarryError::File { path: path.to_owned(), source }
}

/// A path that every kind of store holds unchanged, and that does not lead out of it.
fn key(path: &str) -> Result<Key, CarryError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let good = |part: &str| !matches!(part, "" | "." | "..") && part.chars().all(plain);
    let refused = || CarryError::StorePath { path: path.chars().take(100).collect() };
    match path.len() <= LONGEST_PATH_BYTES && path.split('/').all(good) {
        true => Key::parse(path).map_err(|_| refused()),
        false => Err(refused()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> (tempfile::TempDir, ReleaseStore) {
        let folder = tempfile::tempdir().unwrap();
        let store = ReleaseStore::open(&folder.path().join("a/store").display().to_string()).unwrap();
        (folder, store)
    }

    fn blob_of(bytes: &[u8]) -> BlobRef {
        BlobRef::new(Sha256::digest(bytes).into(), bytes.len() as u64)
    }

    #[tokio::test]
    async fn what_was_put_first_stays() {
        let (_folder, store) = folder();
        assert_eq!(store.get("releases/1.json", 100).await.unwrap(), None);
        assert_eq!(store.put_new("releases/1.json", "first".into()).await.unwrap(), PutOutcome::New);
        assert_eq!(store.put_new("releases/1.json", "second".into()).await.unwrap(), PutOutcome::Already);
        assert_eq!(store.get("releases/1.json", 100).await.unwrap().unwrap(), "first");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn of_sixteen_who_put_at_once_one_wins() {
        let (_folder, store) = folder();
        for round in 0..20 {
            let path = format!("rounds/{round}");
            let puts = (0..16).map(|writer| {
                let (store, path) = (store.clone(), path.clone());
                tokio::spawn(async move { (writer, store.put_new(&path, format!("writer {writer}").into()).await) })
            });
            let mut won = Vec::new();
            for put in puts.collect::<Vec<_>>() {
                let (writer, put) = put.await.unwrap();
                if put.unwrap() == PutOutcome::New {
                    won.push(writer);
                }
            }
            let kept = store.get(&path, 100).await.unwrap().unwrap();
            assert!(
                won.len() == 1 && kept == format!("writer {}", won[0]),
                "round {round}: {won:?} won, {kept:?} stays"
            );
        }
        assert_eq!(store.list("rounds").await.unwrap().len(), 20);
    }

    #[tokio::test]
    async fn an_object_over_the_limit_is_not_read() {
        let (_folder, store) = folder();
        store.put_new("large", vec![7; 101].into()).await.unwrap();
        assert_eq!(store.get("large", 101).await.unwrap().unwrap().len(), 101);
        let error = store.get("large", 100).await.unwrap_err();
        assert!(matches!(&error, CarryError::BadObject { what, .. } if what.contains("101 bytes")), "{error}");
    }

    #[tokio::test]
    async fn a_file_comes_back_as_it_went() {
        let (folder, store) = folder();
        for size in [0, 1, PART_BYTES, PART_BYTES + 1, 2 * PART_BYTES] {
            let bytes: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
            let (blob, from, into) = (blob_of(&bytes), folder.path().join("from"), folder.path().join("into"));
            std::fs::write(&from, &bytes).unwrap();
            let path = format!("weights/{}", blob.sha256);
            assert_eq!(store.put_file(&path, &blob, &from).await.unwrap(), PutOutcome::New, "{size} bytes");
            assert_eq!(store.put_file(&path, &blob, &from).await.unwrap(), PutOutcome::Already, "{size} bytes");
            store.fetch(&path, &blob, size, &into).await.unwrap();
            assert!(std::fs::read(&into).unwrap() == bytes, "{size} bytes came back otherwise");
        }
    }

    #[tokio::test]
    async fn a_file_that_is_not_its_reference_is_not_stored_and_a_cut_object_is_healed() {
        let (folder, store) = folder();
        let from = folder.path().join("from");
        for size in [100, PART_BYTES as usize + 100] {
            let (bytes, other) = (vec![1; size], vec![2; size]);
            let (blob, path) = (blob_of(&bytes), format!("weights/{size}"));
            for wrong in [&other[..], &bytes[..size - 1], &[&bytes[..], &[1]].concat()[..]] {
                std::fs::write(&from, wrong).unwrap();
                let error = store.put_file(&path, &blob, &from).await.unwrap_err();
                assert!(matches!(error, CarryError::BadObject { .. }), "{error}");
                assert_eq!(store.list("weights").await.unwrap(), Vec::<String>::new());
            }
            store.put_new(&path, Bytes::copy_from_slice(&bytes[1..])).await.unwrap();
            std::fs::write(&from, &bytes).unwrap();
            assert_eq!(store.put_file(&path, &blob, &from).await.unwrap(), PutOutcome::New);
            store.fetch(&path, &blob, size as u64, &folder.path().join("into")).await.unwrap();
            std::fs::remove_dir_all(folder.path().join("a/store/weights")).unwrap();
        }
    }

    #[tokio::test]
    async fn a_fetch_that_fails_leaves_nothing_behind() {
        let (folder, store) = folder();
        store.put_new("weights", "altered".into()).await.unwrap();
        let into = tempfile::tempdir_in(folder.path()).unwrap();
        let file = into.path().join("weights");
        let cases = [
            ("weights", blob_of(b"correct"), 7, "SHA-256"),
            ("weights", blob_of(b"longer than that"), 100, "its reference says 16"),
            ("weights", blob_of(b"altered"), 6, "at most 6"),
            ("absent", blob_of(b"altered"), 7, "is not there"),
        ];
        for (path, blob, limit_bytes, why) in cases {
            let error = store.fetch(path, &blob, limit_bytes, &file).await.unwrap_err();
            assert!(matches!(&error, CarryError::BadObject { what, .. } if what.contains(why)), "{error}");
            assert_eq!(std::fs::read_dir(into.path()).unwrap().count(), 0, "{why}");
        }
    }

    #[tokio::test]
    async fn paths_are_listed_sorted_and_below_their_prefix() {
        let (folder, store) = folder();
        for path in ["b/2", "b/10/x", "a", "b/1", "bc/1"] {
            store.put_new(path, "x".into()).await.unwrap();
        }
        // What a put that was cut off leaves.
        std::fs::write(folder.path().join("a/store/b/3#1"), "half").unwrap();
        assert_eq!(store.list("").await.unwrap(), ["a", "b/1", "b/10/x", "b/2", "bc/1"]);
        assert_eq!(store.list("b").await.unwrap(), ["b/1", "b/10/x", "b/2"]);
        assert_eq!(store.list("b/").await.unwrap(), ["b/1", "b/10/x", "b/2"]);
        assert_eq!(store.list("absent").await.unwrap(), Vec::<String>::new());
    }

    #[tokio::test]
    async fn a_path_that_leads_out_of_the_store_is_refused() {
        let (folder, store) = folder();
        let long = "a".repeat(LONGEST_PATH_BYTES + 1);
        for path in
            ["", "..", "../out", "a/../../out", "/a", "a/", "a//b", ".", "a/./b", "a#1", "a b", "ä", "a\\b", &long]
        {
            let put = store.put_new(path, "x".into()).await.unwrap_err();
            let got = store.get(path, 1).await.unwrap_err();
            for error in [put, got] {
                assert!(matches!(error, CarryError::StorePath { .. }), "{path:?}: {error}");
            }
        }
        assert!(matches!(store.list("..").await, Err(CarryError::StorePath { .. })));
        assert!(!folder.path().join("out").exists() && !folder.path().join("a/out").exists());
    }

    #[tokio::test]
    async fn a_folder_that_cannot_be_written_says_what_to_do() {
        // Not even the administrator makes a file there.
        let made = ReleaseStore::open("/sys/tributary").unwrap_err();
        let put = ReleaseStore::open("/sys").unwrap().put_new("release", "x".into()).await.unwrap_err();
        for error in [made, put] {
            assert!(matches!(error, CarryError::StoreDenied { .. }) && !error.is_transient(), "{error:?}");
            assert!(error.to_string().contains("make the folder writable"), "{error}");
        }
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("file"), "x").unwrap();
        let error = ReleaseStore::open(&folder.path().join("file/store").display().to_string()).unwrap_err();
        assert!(matches!(error, CarryError::StoreUrl { .. }), "{error}");
    }

    #[test]
    fn an_address_that_leads_nowhere_is_refused_without_its_secrets() {
        let addresses = [
            ("", "name a folder"),
            ("a/../b", "without .."),
            ("ftp://host/releases", "s3://bucket/prefix"),
            ("memory://x/y", "s3://bucket/prefix"),
            ("s3:/bucket", "./"),
            ("s3://", "scheme://bucket/prefix"),
            ("file://host/x", "plain path"),
            ("s3://key:hunter2@bucket/x", "environment"),
            ("az://container/x?sig=hunter2", "environment"),
            ("az://container/x", "ccount"),
        ];
        for (url, why) in addresses {
            let error = ReleaseStore::open_with(url, []).unwrap_err();
            let text = error.to_string();
            assert!(matches!(error, CarryError::StoreUrl { .. }) && !error.is_transient(), "{url}: {text}");
            assert!(text.contains(why) && !text.contains("hunter2"), "{url}: {text}");
        }
        let keys = [("AWS_SECRET_ACCESS_KEY", "hunter2"), ("AWS_ACCESS_KEY_ID", "me")];
        let keys = keys.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let store = ReleaseStore::open_with("s3://bucket/releases", keys).unwrap();
        assert_eq!(format!("{store:?}"), r#"Store("s3://bucket/releases")"#);
    }
}
