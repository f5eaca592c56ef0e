//! From a store's address to a client of it, with bounds on every request.

use std::fs::{self, File};
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, S3ConditionalPut};
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::prefix::PrefixStore;
use object_store::{BackoffConfig, ObjectStore, RetryConfig};

use crate::error::CarryError;

/// One request, its body included. A part of [`super::PART_BYTES`] passes in this time where a link
/// carries 3 Mbit/s.
const REQUEST_PATIENCE: &str = "15 seconds";
const CONNECT_PATIENCE: &str = "5 seconds";
/// No request begins anew after this long.
const RETRY_PATIENCE: Duration = Duration::from_secs(15);
const RETRIES: usize = 3;
const LONGEST_BACKOFF: Duration = Duration::from_secs(2);

/// Variables outside their provider's prefix that object_store's own builders read too.
const ALIASES: [(&str, &str); 2] =
    [("SERVICE_ACCOUNT", "google_service_account"), ("IDENTITY_ENDPOINT", "azure_msi_endpoint")];

/// What to write in place of an address that holds more than it should.
const WRITE: &str =
    "write scheme://bucket/prefix and nothing more; keys belong in the environment (AWS_*, GOOGLE_* or AZURE_*)";

/// A client, and the folder it keeps its objects in, where it is one.
pub(super) struct StoreClient {
    pub objects: Arc<dyn ObjectStore>,
    pub folder: Option<PathBuf>,
}

/// What the environment says of object stores.
pub(super) fn store_environment() -> Vec<(String, String)> {
    let pairs =
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let known = |name: &str| ["AWS_", "GOOGLE_", "AZURE_"].iter().any(|prefix| name.starts_with(prefix));
    pairs
        .filter_map(|(name, value)| match ALIASES.iter().find(|(alias, _)| *alias == name) {
            Some((_, key)) => Some(((*key).to_owned(), value)),
            None => known(&name).then_some((name, value)),
        })
        .collect()
}

pub(super) fn open_store(url: &str, options: Vec<(String, String)>) -> Result<StoreClient, CarryError> {
    let (scheme, place) = match url.split_once("://") {
        Some((scheme, place)) => (scheme, place),
        None if url.split('/').next().is_some_and(|first| first.is_empty() || !first.contains(':')) => {
            return folder(Path::new(url));
        }
        None => return Err(refused(url, "a folder with a colon in its name is written with ./ before it")),
    };
    if scheme == "file" {
        return match place.starts_with('/') && !place.contains('%') {
            true => folder(Path::new(place)),
            false => Err(refused(url, "write the folder as a plain path")),
        };
    }
    let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '@');
    if bucket.is_empty() || !bucket.chars().all(plain) {
        // Whatever else stands there may be a secret: it is not repeated.
        return Err(refused(&format!("{scheme}://…"), WRITE));
    }
    let prefix = match prefix.trim_end_matches('/') {
        "" => None,
        prefix => Some(super::key(prefix).map_err(|_| refused(&format!("{scheme}://{bucket}/…"), WRITE))?),
    };
    let objects = client(scheme, url, &format!("{scheme}://{bucket}"), options)?;
    Ok(StoreClient {
        objects: match prefix {
            Some(prefix) => Arc::new(PrefixStore::new(objects, prefix)),
            None => objects,
        },
        folder: None,
    })
}

/// Fills a builder: our bounds, then the options it knows, then what is not to be chosen.
macro_rules! built {
    ($builder:ty, $bucket:expr, $options:expr, $last:expr) => {{
        let bounds = [("timeout", REQUEST_PATIENCE), ("connect_timeout", CONNECT_PATIENCE)];
        let bounds = bounds.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let mut builder = <$builder>::new().with_url($bucket);
        for (key, value) in bounds.into_iter().chain($options) {
            if let Ok(key) = key.to_ascii_lowercase().parse() {
                builder = builder.with_config(key, value);
            }
        }
        $last(builder.with_retry(retry())).build().map(|store| Arc::new(store) as Arc<dyn ObjectStore>)
    }};
}

fn client(
    scheme: &str,
    url: &str,
    bucket: &str,
    options: Vec<(String, String)>,
) -> Result<Arc<dyn ObjectStore>, CarryError> {
    // The HTTP client takes the process's provider and panics without one; whoever set one keeps it.
    let _already_set = rustls::crypto::ring::default_provider().install_default();
    let atomic = |builder: AmazonS3Builder| builder.with_conditional_put(S3ConditionalPut::ETagMatch);
    let built = match scheme {
        "s3" | "s3a" => built!(AmazonS3Builder, bucket, options, atomic),
        "gs" => built!(GoogleCloudStorageBuilder, bucket, options, |builder| builder),
        "az" | "abfs" | "abfss" => built!(MicrosoftAzureBuilder, bucket, options, |builder| builder),
        _ => {
            let why = "name a folder, or s3://bucket/prefix, gs://bucket/prefix or az://container/prefix";
            return Err(refused(url, why));
        }
    };
    built.map_err(|error| refused(url, &error.to_string()))
}

fn retry() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig { max_backoff: LONGEST_BACKOFF, ..BackoffConfig::default() },
        max_retries: RETRIES,
        retry_timeout: RETRY_PATIENCE,
    }
}

fn folder(path: &Path) -> Result<StoreClient, CarryError> {
    let name = path.display().to_string();
    if name.is_empty() || path.components().any(|part| part == Component::ParentDir) {
        return Err(refused(&name, "name a folder without .. in its path"));
    }
    let made = make(path).and_then(|()| path.canonicalize());
    let folder = made.map_err(|error| match super::failure::is_denied(&error) {
        true => {
            CarryError::StoreDenied { store: name.clone(), what: "making its folder".into(), why: error.to_string() }
        }
        false => refused(&name, &format!("its folder cannot be made: {error}")),
    })?;
    let objects = LocalFileSystem::new_with_prefix(&folder).map_err(|error| refused(&name, &error.to_string()))?;
    // Without it a sealed release can be gone after a power cut.
    Ok(StoreClient { objects: Arc::new(objects.with_fsync(true)), folder: Some(folder) })
}

/// Makes a folder that is still there after a power cut.
fn make(path: &Path) -> io::Result<()> {
    let path = std::path::absolute(path)?;
    let missing: Vec<&Path> = path.ancestors().take_while(|ancestor| !ancestor.exists()).collect();
    fs::create_dir_all(&path)?;
    for parent in missing.iter().filter_map(|made| made.parent()) {
        File::open(parent)?.sync_all()?;
    }
    Ok(())
}

fn refused(url: &str, why: &str) -> CarryError {
    CarryError::StoreUrl { url: url.into(), why: why.into() }
}
