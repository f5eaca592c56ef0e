//! The release store: objects that are put once and never changed, in a folder or in a cloud's object store. Objects
//! are bytes under a path; reads return the same bytes, limited in size, and
//! large ones only with a matching digest (invariant 4). A store that is down or slow is an
//! error after [`REQUEST_TIMEOUT`] per request, never a hang.
//!
//! Everything relies on one guarantee: of several puts to one path, exactly one wins.
//! - A folder links a finished, synced file to its name, and a link never replaces; file and folder are
//!   on the disk before a put returns. The file system must support hard links: FAT does not.
//! - S3 puts with `If-None-Match: *`. The server must honour it atomically: Amazon documents it, SeaweedFS
//!   was observed to; s3s-fs was observed to let several writers win, and such a server is unsuitable.
//! - Google Cloud Storage puts with generation match 0, Azure with `If-None-Match: *`.
//!
//! The folder and S3 (SeaweedFS) were tested; Google and Azure were not, they rely on `object_store`.
//!
//! An interrupted upload leaves parts that are not objects and are never listed: in a folder files
//! named `<name>#1`, in a bucket an unfinished multipart upload, which a lifecycle rule should remove.

mod client;
mod failure;

use std::fmt;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::path::Path as Key;
use object_store::{MultipartUpload, ObjectStore, ObjectStoreExt, PutMode};
use schemas::BlobRef;
use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt;

use crate::error::CarryError;
use crate::partial_file::{PartialFile, file_error};
use failure::is_absent;

/// Timeout of one request, including its retries.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Size of the parts of large objects: the smallest that S3 accepts, so that one part passes
/// a slow link within the timeout.
const PART_BYTES: u64 = 5 * 1024 * 1024;
const MAX_PATH_BYTES: usize = 512;

/// Who stored an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutOutcome {
    /// This call.
    New,
    /// Another call, before or at the same time. Its object stays.
    Already,
}

/// A release store; cheap to clone.
#[derive(Clone)]
pub struct ReleaseStore {
    objects: Arc<dyn ObjectStore>,
    /// Its address, for messages; contains no credentials.
    name: Arc<str>,
    folder: Option<Arc<Path>>,
    has_keys: bool,
}

impl ReleaseStore {
    /// Opens the store at a path, `file://`, `s3://bucket/prefix`, `gs://bucket/prefix` or
    /// `az://container/prefix`. A missing folder is created; a bucket must exist. Keys, region and
    /// endpoint come from the environment, under the names that the providers' own tools use: AWS_ACCESS_KEY_ID,
    /// AWS_ENDPOINT, AWS_ALLOW_HTTP (for an endpoint without TLS), GOOGLE_SERVICE_ACCOUNT,
    /// AZURE_STORAGE_ACCOUNT_NAME and so on. Sends no request yet.
    pub fn open(url: &str) -> Result<Self, CarryError> {
        Self::open_with(url, client::store_environment())
    }

    /// Opens a store with these options in place of the environment's, under the same names.
    pub fn open_with(url: &str, options: impl IntoIterator<Item = (String, String)>) -> Result<Self, CarryError> {
        let opened = client::open_store(url, options.into_iter().collect())?;
        let folder = opened.folder.map(Into::into);
        Ok(Self { objects: opened.objects, name: url.into(), folder, has_keys: opened.has_keys })
    }

    /// Checks that the store can be listed, so that wrong or missing keys are found before anything relies on it.
    ///
    /// # Errors
    /// Access is denied, or the store does not answer. A bucket without any keys counts as denied whatever the reason: a
    /// cloud's own machines need none, but they get an answer.
    pub async fn check_access(&self) -> Result<(), CarryError> {
        let mut listing = self.objects.list(None);
        let Err(error) = self.bounded(listing.try_next()).await else { return Ok(()) };
        let what = "listing what is".to_owned();
        match self.has_keys {
            true => Err(self.failed(what)(error)),
            false => {
                let why = "the environment holds no keys".to_owned();
                Err(CarryError::StoreDenied { store: self.name.to_string(), what, why })
            }
        }
    }

    /// Stores a small object unless its path is taken: of several callers, one receives [`PutOutcome::New`].
    ///
    /// A put whose reply was lost, or came after [`REQUEST_TIMEOUT`], may have succeeded. After an error, or a retry
    /// inside this call, [`PutOutcome::Already`] can mean our own bytes: compare with [`ReleaseStore::get`] where it
    /// matters.
    pub async fn put_new(&self, path: &str, bytes: Bytes) -> Result<PutOutcome, CarryError> {
        let key = key(path)?;
        let what = || format!("storing {path}");
        match self.bounded(self.objects.put_opts(&key, bytes.into(), PutMode::Create.into())).await {
            Ok(_) => Ok(PutOutcome::New),
            Err(object_store::Error::AlreadyExists { .. }) => {
                // S3 returns the same for a put that conflicted with one that then failed.
                self.bounded(self.objects.head(&key)).await.map_err(self.failed(what()))?;
                self.sync_existing(&key).await.map_err(self.failed(what()))?;
                Ok(PutOutcome::Already)
            }
            Err(error) => Err(self.failed(what())(error)),
        }
    }

    /// Stores a file of any size under a path that is derived from its content, unless an object of its
    /// size exists. Reads one part at a time, hashes on the way, and stores nothing if the digest
    /// differs from the reference. Two simultaneous callers both store the same bytes.
    pub async fn put_file(&self, path: &str, blob: &BlobRef, file: &Path) -> Result<PutOutcome, CarryError> {
        let key = key(path)?;
        let failed = || self.failed(format!("storing {path}"));
        match self.bounded(self.objects.head(&key)).await {
            Ok(existing) if existing.size == blob.size_bytes => {
                self.sync_existing(&key).await.map_err(failed())?;
                return Ok(PutOutcome::Already);
            }
            Ok(existing) => tracing::warn!(path, size_bytes = existing.size, "object of another size replaced"),
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

    /// The bytes of a small object, or `None` if there is none. Its size is checked before it is read.
    pub async fn get(&self, path: &str, limit_bytes: u64) -> Result<Option<Bytes>, CarryError> {
        let key = key(path)?;
        let failed = || self.failed(format!("reading {path}"));
        let object = match self.bounded(self.objects.get(&key)).await {
            Ok(object) => object,
            Err(error) if is_absent(&error) => return Ok(None),
            Err(error) => return Err(failed()(error)),
        };
        if object.meta.size > limit_bytes {
            let what = format!("has {} bytes; at most {limit_bytes} are accepted", object.meta.size);
            return Err(self.bad(path, what));
        }
        self.bounded(object.bytes()).await.map(Some).map_err(failed())
    }

    /// Writes an object of any size to a file: complete, with exactly the size and digest of its reference, and
    /// synced to the disk; or not at all.
    pub async fn fetch(&self, path: &str, blob: &BlobRef, limit_bytes: u64, into: &Path) -> Result<(), CarryError> {
        let key = key(path)?;
        if blob.size_bytes > limit_bytes {
            return Err(self.bad(path, format!("has {} bytes; at most {limit_bytes} are accepted", blob.size_bytes)));
        }
        let failed = |error| match is_absent(&error) {
            true => self.bad(path, "does not exist".into()),
            false => self.failed(format!("fetching {path}"))(error),
        };
        let stored_bytes = self.bounded(self.objects.head(&key)).await.map_err(failed)?.size;
        if stored_bytes != blob.size_bytes {
            let what = format!("has {stored_bytes} bytes, but its reference says {}", blob.size_bytes);
            return Err(self.bad(path, what));
        }
        let mut file = PartialFile::create(into)?;
        let mut seen = ContentDigest::default();
        while seen.size_bytes < blob.size_bytes {
            let end = blob.size_bytes.min(seen.size_bytes + PART_BYTES);
            let part = self.bounded(self.objects.get_range(&key, seen.size_bytes..end)).await.map_err(failed)?;
            if part.is_empty() {
                break;
            }
            seen.add(&part);
            file = file.append(vec![part]).await?;
        }
        self.check(path, blob, seen)?;
        file.finish().await
    }

    /// The paths of all objects below a prefix, which must end at a part of a path; an empty prefix lists
    /// everything. Sorted.
    pub async fn list(&self, prefix: &str) -> Result<Vec<String>, CarryError> {
        let prefix = match prefix.trim_end_matches('/') {
            "" => None,
            prefix => Some(key(prefix)?),
        };
        let mut objects = self.objects.list(prefix.as_ref());
        let mut paths = Vec::new();
        while let Some(object) =
            self.bounded(objects.try_next()).await.map_err(self.failed("listing objects".to_owned()))?
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

    /// Syncs an existing object to the disk before we build on it: its writer may have been interrupted between
    /// renaming it and syncing the folder.
    async fn sync_existing(&self, key: &Key) -> object_store::Result<()> {
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
        tokio::time::timeout(REQUEST_TIMEOUT, request).await.unwrap_or_else(|_| {
            let source = format!("no reply within {} s", REQUEST_TIMEOUT.as_secs()).into();
            Err(object_store::Error::Generic { store: "store", source })
        })
    }

    fn check(&self, path: &str, blob: &BlobRef, seen: ContentDigest) -> Result<(), CarryError> {
        let actual = BlobRef::new(seen.hash.finalize().into(), seen.size_bytes);
        if actual.size_bytes != blob.size_bytes {
            let what = format!("has {} bytes or more, but its reference says {}", actual.size_bytes, blob.size_bytes);
            return Err(self.bad(path, what));
        }
        match actual.sha256 == blob.sha256 {
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
        // The client's own Debug output contains keys.
        f.debug_tuple("Store").field(&self.name).finish()
    }
}

/// Size and digest of the bytes seen so far.
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

/// A file, read part by part.
struct FileParts<'a> {
    path: &'a Path,
    file: tokio::fs::File,
    seen: ContentDigest,
}

impl<'a> FileParts<'a> {
    async fn open(path: &'a Path) -> Result<Self, CarryError> {
        let file = tokio::fs::File::open(path).await.map_err(file_error(path))?;
        Ok(Self { path, file, seen: ContentDigest::default() })
    }

    /// The next part; empty at the end.
    async fn next(&mut self) -> Result<Vec<u8>, CarryError> {
        let mut part = Vec::new();
        (&mut self.file).take(PART_BYTES).read_to_end(&mut part).await.map_err(file_error(self.path))?;
        self.seen.add(&part);
        Ok(part)
    }
}

/// Parses a path that every kind of store accepts unchanged and that stays inside the store.
fn key(path: &str) -> Result<Key, CarryError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let good = |part: &str| !matches!(part, "" | "." | "..") && part.chars().all(plain);
    let invalid = || CarryError::StorePath { path: path.chars().take(100).collect() };
    match path.len() <= MAX_PATH_BYTES && path.split('/').all(good) {
        true => Key::parse(path).map_err(|_| invalid()),
        false => Err(invalid()),
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
    async fn the_first_put_wins() {
        let (_folder, store) = folder();
        assert_eq!(store.get("releases/1.json", 100).await.unwrap(), None);
        assert_eq!(store.put_new("releases/1.json", "first".into()).await.unwrap(), PutOutcome::New);
        assert_eq!(store.put_new("releases/1.json", "second".into()).await.unwrap(), PutOutcome::Already);
        assert_eq!(store.get("releases/1.json", 100).await.unwrap().unwrap(), "first");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn of_sixteen_simultaneous_puts_one_wins() {
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
    async fn a_file_round_trips() {
        let (folder, store) = folder();
        for size in [0, 1, PART_BYTES, PART_BYTES + 1, 2 * PART_BYTES] {
            let bytes: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
            let (blob, from, into) = (blob_of(&bytes), folder.path().join("from"), folder.path().join("into"));
            std::fs::write(&from, &bytes).unwrap();
            let path = format!("weights/{}", blob.sha256);
            assert_eq!(store.put_file(&path, &blob, &from).await.unwrap(), PutOutcome::New, "{size} bytes");
            assert_eq!(store.put_file(&path, &blob, &from).await.unwrap(), PutOutcome::Already, "{size} bytes");
            store.fetch(&path, &blob, size, &into).await.unwrap();
            assert!(std::fs::read(&into).unwrap() == bytes, "{size} bytes came back changed");
        }
    }

    #[tokio::test]
    async fn a_file_unlike_its_reference_is_not_stored_and_a_truncated_object_is_replaced() {
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
    async fn a_failed_fetch_leaves_nothing_behind() {
        let (folder, store) = folder();
        store.put_new("weights", "altered".into()).await.unwrap();
        let into = tempfile::tempdir_in(folder.path()).unwrap();
        let file = into.path().join("weights");
        let cases = [
            ("weights", blob_of(b"correct"), 7, "SHA-256"),
            ("weights", blob_of(b"longer than that"), 100, "but its reference says 16"),
            ("weights", blob_of(b"altered"), 6, "at most 6"),
            ("absent", blob_of(b"altered"), 7, "does not exist"),
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
        // As left by an interrupted put.
        std::fs::write(folder.path().join("a/store/b/3#1"), "half").unwrap();
        assert_eq!(store.list("").await.unwrap(), ["a", "b/1", "b/10/x", "b/2", "bc/1"]);
        assert_eq!(store.list("b").await.unwrap(), ["b/1", "b/10/x", "b/2"]);
        assert_eq!(store.list("b/").await.unwrap(), ["b/1", "b/10/x", "b/2"]);
        assert_eq!(store.list("absent").await.unwrap(), Vec::<String>::new());
    }

    #[tokio::test]
    async fn a_path_that_leads_out_of_the_store_is_refused() {
        let (folder, store) = folder();
        let long = "a".repeat(MAX_PATH_BYTES + 1);
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
    async fn a_read_only_folder_is_reported_with_a_remedy() {
        // Not even the administrator can create a file there.
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
    fn an_invalid_address_is_refused_without_showing_secrets() {
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
