//! Creates the client for a store's address, with limits on every request.

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

/// Timeout of one request with its body. A part of [`super::PART_BYTES`] passes in this time over a link
/// of 3 Mbit/s.
const REQUEST_TIMEOUT: &str = "15 seconds";
const CONNECT_TIMEOUT: &str = "5 seconds";
/// No retry starts after this time.
const RETRY_TIMEOUT: Duration = Duration::from_secs(15);
const RETRIES: usize = 3;
const MAX_BACKOFF: Duration = Duration::from_secs(2);

/// Variables without their provider's prefix that object_store's own builders read too.
const ALIASES: [(&str, &str); 2] =
    [("SERVICE_ACCOUNT", "google_service_account"), ("IDENTITY_ENDPOINT", "azure_msi_endpoint")];

/// The remedy for an address that contains more than it should.
const ADDRESS_REMEDY: &str =
    "write scheme://bucket/prefix only; keys belong in the environment (AWS_*, GOOGLE_* or AZURE_*)";

/// A client, and its folder if the store is one.
pub(super) struct StoreClient {
    pub objects: Arc<dyn ObjectStore>,
    pub folder: Option<PathBuf>,
    /// Whether the options name keys; without them, only a cloud's own machines are let in.
    pub has_keys: bool,
}

/// Whether options name keys of any kind, or say that none are needed.
fn names_keys(options: &[(String, String)]) -> bool {
    const KEYS: [&str; 7] =
        ["access_key", "credentials", "token", "service_account", "account_key", "client_", "skip_signature"];
    options.iter().any(|(name, value)| {
        let name = name.to_ascii_lowercase();
        !value.is_empty() && KEYS.iter().any(|key| name.contains(key))
    })
}

/// Options of object stores in the environment.
pub(super) fn store_environment() -> Vec<(String, String)> {
    let pairs =
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let known = |name: &str| ["AWS_", "GOOGLE_", "AZURE_"].iter().any(|prefix| name.starts_with(prefix));
    // An empty variable is one that is not set: an empty key would be sent, and refused.
    pairs
        .filter(|(_, value)| !value.is_empty())
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
        None => return Err(refused(url, "write ./ before the name of a folder that contains a colon")),
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
        // Anything else in the address may be a secret, so it is not repeated.
        return Err(refused(&format!("{scheme}://…"), ADDRESS_REMEDY));
    }
    let prefix = match prefix.trim_end_matches('/') {
        "" => None,
        prefix => Some(super::key(prefix).map_err(|_| refused(&format!("{scheme}://{bucket}/…"), ADDRESS_REMEDY))?),
    };
    let has_keys = names_keys(&options);
    let objects = client(scheme, url, &format!("{scheme}://{bucket}"), options)?;
    Ok(StoreClient {
        has_keys,
        objects: match prefix {
            Some(prefix) => Arc::new(PrefixStore::new(objects, prefix)),
            None => objects,
        },
        folder: None,
    })
}

/// Configures a builder: our timeouts first, then the options it knows, then what cannot be overridden.
macro_rules! built {
    ($builder:ty, $bucket:expr, $options:expr, $last:expr) => {{
        let bounds = [("timeout", REQUEST_TIMEOUT), ("connect_timeout", CONNECT_TIMEOUT)];
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
    // The HTTP client uses the process's TLS provider and panics without one; an existing one is kept.
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
        backoff: BackoffConfig { max_backoff: MAX_BACKOFF, ..BackoffConfig::default() },
        max_retries: RETRIES,
        retry_timeout: RETRY_TIMEOUT,
    }
}

fn folder(path: &Path) -> Result<StoreClient, CarryError> {
    let name = path.display().to_string();
    if name.is_empty() || path.components().any(|part| part == Component::ParentDir) {
        return Err(refused(&name, "name a folder without .. in its path"));
    }
    let created = create_synced(path).and_then(|()| path.canonicalize());
    let folder = created.map_err(|error| match super::failure::is_denied(&error) {
        true => {
            CarryError::StoreDenied { store: name.clone(), what: "creating its folder".into(), why: error.to_string() }
        }
        false => refused(&name, &format!("its folder cannot be created: {error}")),
    })?;
    let objects = LocalFileSystem::new_with_prefix(&folder).map_err(|error| refused(&name, &error.to_string()))?;
    // Without fsync a release could be lost in a power cut.
    Ok(StoreClient { objects: Arc::new(objects.with_fsync(true)), folder: Some(folder), has_keys: true })
}

/// Creates a folder that survives a power cut.
fn create_synced(path: &Path) -> io::Result<()> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_told_from_other_options() {
        let names = |options: &[(&str, &str)]| {
            let options: Vec<_> = options.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
            names_keys(&options)
        };
        assert!(!names(&[]) && !names(&[("AWS_ENDPOINT", "http://x"), ("AWS_CA_BUNDLE", "/x"), ("AWS_REGION", "x")]));
        assert!(!names(&[("AWS_ACCESS_KEY_ID", "")]), "an empty key is none");
        for name in [
            "AWS_ACCESS_KEY_ID",
            "AWS_WEB_IDENTITY_TOKEN_FILE",
            "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
            "google_service_account",
            "AZURE_STORAGE_ACCOUNT_KEY",
            "AWS_SKIP_SIGNATURE",
        ] {
            assert!(names(&[(name, "x")]), "{name}");
        }
    }
}
