//! The file that makes a machine a site of a fleet.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use schemas::{Root, SiteName};
use serde::{Deserialize, Serialize};
use streams::server::write_private;

use crate::error::FleetError;
use crate::sealed_text::SealedText;

/// Largest file that is read, bytes.
const MAX_BYTES: u64 = 256 * 1024;
/// Names of files in a site's store.
const MEMBER: &str = "member.json";
const AUTHORITY: &str = "fleet-ca.pem";
const UPDATE_KEY: &str = "update.key";
const ROOT: &str = "fleet-root.json";

/// What a site needs to join. Everything in it but the names is secret.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Membership {
    /// Version of this format.
    pub version: u16,
    /// Name of the site.
    pub site: SiteName,
    /// Address of the hub's port for leaf servers, `tls://HOST:PORT`.
    pub hub: String,
    /// JetStream domain of the cloud.
    pub domain: String,
    /// Certificate of the authority that certifies the hub, PEM.
    pub authority: String,
    /// When that certificate expires, milliseconds since the epoch.
    pub authority_ends_at_ms: u64,
    /// Seed of the site's NKey at the hub.
    pub leaf_seed: String,
    /// The root that the site trusts.
    pub root: Root,
    /// Secret key that signs its updates, 64 hexadecimal digits.
    pub update_key: String,
}

impl std::fmt::Debug for Membership {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Membership of {} at {}", self.site, self.hub)
    }
}

impl Membership {
    /// The version of the format that this program writes and reads.
    pub const VERSION: u16 = 1;

    /// Reads a site's file.
    ///
    /// # Errors
    /// The file does not exist, other users can read it, or it is invalid.
    pub fn read(path: &Path) -> Result<Self, FleetError> {
        Self::read_with_code(path, None)
    }

    /// Reads a site's file, which may be sealed with a code.
    ///
    /// # Errors
    /// As for [`Membership::read`]; also a missing or wrong code.
    pub fn read_with_code(path: &Path, code: Option<&str>) -> Result<Self, FleetError> {
        let metadata = std::fs::metadata(path).map_err(FleetError::read(path))?;
        let wrong = |why: String| FleetError::Unreadable { path: path.into(), why };
        if !metadata.is_file() || metadata.len() > MAX_BYTES {
            return Err(wrong("it was not written by `tributary site add`".into()));
        }
        let mode = metadata.permissions().mode();
        if mode & 0o027 != 0 {
            return Err(FleetError::Open { path: path.into(), mode: mode & 0o777 });
        }
        let mut text = std::fs::read_to_string(path).map_err(FleetError::read(path))?;
        if let Ok(sealed) = serde_json::from_str::<SealedText>(&text) {
            let sealed_error = |why| FleetError::Sealed { path: path.into(), why };
            let code = code.ok_or_else(|| sealed_error("is sealed; pass its code with --code"))?;
            text = sealed.decrypt(code).ok_or_else(|| {
                sealed_error("does not open with this code; check the code, or ask for a new file and code")
            })?;
        }
        // The decoder's error would quote the file, which is secret.
        let read: Self = serde_json::from_str(&text)
            .map_err(|error| wrong(format!("line {} is not what `tributary site add` writes", error.line())))?;
        if read.version != Self::VERSION {
            return Err(wrong(format!(
                "it has version {}, but this program reads version {}",
                read.version,
                Self::VERSION
            )));
        }
        if streams::nkey::UserKey::from_seed(&read.leaf_seed).is_err() {
            return Err(wrong("its leaf_seed is not a seed".into()));
        }
        if runtime::trust::check_first_root(&read.root).is_err() {
            return Err(wrong("its root is not signed by its own key, so it was changed".into()));
        }
        let plain = |text: &str| text.chars().all(|c| c.is_ascii_graphic()) && !text.contains(['"', '\\']);
        if !read.hub.starts_with("tls://") || !plain(&read.hub) || !plain(&read.domain) {
            return Err(wrong("its hub must be tls://HOST:PORT".into()));
        }
        Ok(read)
    }

    /// Writes the file where only its owner can read it, sealed if there is a code; fails if the file exists.
    pub fn write_new(&self, path: &Path, code: Option<&str>) -> Result<(), FleetError> {
        if path.exists() {
            return Err(FleetError::Site(format!("{} already exists; name another file with --out", path.display())));
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

    /// Writes what servers and workers need into a store: `tributary up` with that store then runs this site.
    pub fn install(&self, store: &Path) -> Result<(), FleetError> {
        std::fs::create_dir_all(store).map_err(FleetError::written(store))?;
        if let Some(existing) = Self::find(store)?
            && existing.site != self.site
        {
            let (owner, wanted) = (existing.site, &self.site);
            return Err(FleetError::Site(format!(
                "{} is the store of site {owner}; use another folder for {wanted} with --store",
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
        // Last, because this file makes the store a site's.
        self.write(&store.join(MEMBER))
    }

    /// The membership in a store, if there is one.
    pub fn find(store: &Path) -> Result<Option<Self>, FleetError> {
        let path = store.join(MEMBER);
        if path.exists() { Self::read(&path).map(Some) } else { Ok(None) }
    }

    /// File of the authority's certificate in a store.
    pub fn authority_file(store: &Path) -> PathBuf {
        store.join(AUTHORITY)
    }

    /// File of the root in a store.
    pub fn root_file(store: &Path) -> PathBuf {
        store.join(ROOT)
    }

    /// File in a store of the key that signs updates.
    pub fn update_key_file(store: &Path) -> PathBuf {
        store.join(UPDATE_KEY)
    }
}
