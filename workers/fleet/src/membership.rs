//! The one file that makes a machine a site of a fleet.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use schemas::{Root, SiteName};
use serde::{Deserialize, Serialize};
use streams::server::write_private;

use crate::error::FleetError;
use crate::sealed_text::SealedText;

/// Largest file of this kind that is read, bytes.
const MOST_BYTES: u64 = 256 * 1024;
/// Names of files in a site's store.
const MEMBER: &str = "member.json";
const AUTHORITY: &str = "fleet-ca.pem";
const UPDATE_KEY: &str = "update.key";
const ROOT: &str = "fleet-root.json";

/// What a site needs to join. Everything in it but the names is secret.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Membership {
    /// Version of this file.
    pub version: u16,
    /// The site.
    pub site: SiteName,
    /// Where the hub takes leaf servers, `tls://HOST:PORT`.
    pub hub: String,
    /// JetStream domain of the cloud.
    pub domain: String,
    /// The authority by which the hub is known, PEM.
    pub authority: String,
    /// When that ends, milliseconds since the epoch.
    pub authority_ends_at_ms: u64,
    /// Seed of the site's NKey at the hub.
    pub leaf_seed: String,
    /// Whom the site obeys.
    pub root: Root,
    /// Secret half of the key that its updates are signed with, 64 hexadecimal digits.
    pub update_key: String,
}

impl std::fmt::Debug for Membership {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Membership of {} at {}", self.site, self.hub)
    }
}

impl Membership {
    /// The version of the file that this program writes and reads.
    pub const VERSION: u16 = 1;

    /// Reads a site's file.
    ///
    /// # Errors
    /// A file that is not there, that others may read, or that is something else.
    pub fn read(path: &Path) -> Result<Self, FleetError> {
        Self::read_with_code(path, None)
    }

    /// Reads a site's file, which may be sealed with a code.
    ///
    /// # Errors
    /// As [`Membership::read`]; and a code that is missing or another.
    pub fn read_with_code(path: &Path, code: Option<&str>) -> Result<Self, FleetError> {
        let metadata = std::fs::metadata(path).map_err(FleetError::read(path))?;
        let wrong = |why: String| FleetError::Unreadable { path: path.into(), why };
        if !metadata.is_file() || metadata.len() > MOST_BYTES {
            return Err(wrong("it is no file that `tributary site add` wrote".into()));
        }
        let mode = metadata.permissions().mode();
        if mode & 0o027 != 0 {
            return Err(FleetError::Open { path: path.into(), mode: mode & 0o777 });
        }
        let mut text = std::fs::read_to_string(path).map_err(FleetError::read(path))?;
        if let Ok(sealed) = serde_json::from_str::<SealedText>(&text) {
            let refused = |why| FleetError::Sealed { path: path.into(), why };
            let code = code.ok_or_else(|| refused("is sealed: give the code that you were told with --code"))?;
            text = sealed.decrypt(code).ok_or_else(|| {
                refused("does not open with this code: ask for the code again, and for the file if that is of no use")
            })?;
        }
        // The decoder's words would quote what stands there, and that is secret.
        let read: Self = serde_json::from_str(&text)
            .map_err(|error| wrong(format!("line {} is not as `tributary site add` writes it", error.line())))?;
        if read.version != Self::VERSION {
            return Err(wrong(format!("it has version {}, this program reads {}", read.version, Self::VERSION)));
        }
        if streams::nkey::UserKey::from_seed(&read.leaf_seed).is_err() {
            return Err(wrong("its leaf_seed is no seed".into()));
        }
        if runtime::trust::check_first_root(&read.root).is_err() {
            return Err(wrong("its root is not signed by its own key: it was changed".into()));
        }
        let plain = |text: &str| text.chars().all(|c| c.is_ascii_graphic()) && !text.contains(['"', '\\']);
        if !read.hub.starts_with("tls://") || !plain(&read.hub) || !plain(&read.domain) {
            return Err(wrong("its hub must be tls://HOST:PORT".into()));
        }
        Ok(read)
    }

    /// Writes it where only its owner can read it, sealed if there is a code; refuses a file that is there.
    pub fn write_new(&self, path: &Path, code: Option<&str>) -> Result<(), FleetError> {
        if path.exists() {
            return Err(FleetError::Site(format!("{} is there already: name another file with --out", path.display())));
        }
        let Some(code) = code else { return self.write(path) };
        let failed = |why: String| FleetError::NotMade { what: "the sealed file", why };
        let text = serde_json::to_string(self).map_err(|error| failed(error.to_string()))?;
        let sealed = SealedText::encrypt(Self::VERSION, &text, code).map_err(|error| failed(error.to_string()))?;
        let text = serde_json::to_string_pretty(&sealed).map_err(|error| failed(error.to_string()))?;
        write_private(path, &(text + "\n")).map_err(FleetError::written(path))
    }

    fn write(&self, path: &Path) -> Result<(), FleetError> {
        let text = serde_json::to_string_pretty(self)
            .map_err(|error| FleetError::Unreadable { path: path.into(), why: error.to_string() })?;
        write_private(path, &(text + "\n")).map_err(FleetError::written(path))
    }

    /// Lays out in a store what servers and workers read: afterwards `tributary up` with that store is this site.
    pub fn install(&self, store: &Path) -> Result<(), FleetError> {
        std::fs::create_dir_all(store).map_err(FleetError::written(store))?;
        if let Some(found) = Self::find(store)?
            && found.site != self.site
        {
            let (there, wanted) = (found.site, &self.site);
            return Err(FleetError::Site(format!(
                "{} is the store of site {there}: use another folder for {wanted} with --store",
                store.display()
            )));
        }
        let key = store.join(UPDATE_KEY);
        write_private(&store.join(AUTHORITY), &self.authority).map_err(FleetError::written(store))?;
        write_private(&key, &(self.update_key.clone() + "\n")).map_err(FleetError::written(&key))?;
        let root = Self::root_file(store);
        let text = serde_json::to_string_pretty(&self.root)
            .map_err(|error| FleetError::Unreadable { path: root.clone(), why: error.to_string() })?;
        write_private(&root, &(text + "\n")).map_err(FleetError::written(&root))?;
        // Last: with it the store is a site's.
        self.write(&store.join(MEMBER))
    }

    /// The membership that was laid out in a store, if there is one.
    pub fn find(store: &Path) -> Result<Option<Self>, FleetError> {
        let path = store.join(MEMBER);
        if path.exists() { Self::read(&path).map(Some) } else { Ok(None) }
    }

    /// The authority's certificate in a store.
    pub fn authority_file(store: &Path) -> PathBuf {
        store.join(AUTHORITY)
    }

    /// The root in a store: whom the site obeys.
    pub fn root_file(store: &Path) -> PathBuf {
        store.join(ROOT)
    }

    /// The file of the key that updates are signed with, in a store.
    pub fn update_key_file(store: &Path) -> PathBuf {
        store.join(UPDATE_KEY)
    }
}
