//! A release as an OCI image layout, which registries accept and Kubernetes mounts as an image volume.
//!
//! One image with one layer that has the model's files at its root: mounted at `/model`, it shows `/model/model.toml`.
//! The layer is the model's package without extra files. The same folder always gives the same bytes; nothing in them
//! tells when or where it was made. The image has nothing to run: it names `linux` and `amd64` only because registries
//! and runtimes require a platform.
//!
//! ```text
//! oci-layout                 layout version
//! index.json                 the image's manifest, under its reference
//! blobs/sha256/<sha256>      manifest, configuration, layer
//! ```

use std::path::Path;

use schemas::BlobRef;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use vision::Model;

use crate::package::{self, PackageError};

const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";
/// Longest reference in bytes, as for names in a registry.
const MAX_REFERENCE_BYTES: usize = 255;

/// Why no layout was written.
#[derive(Debug, thiserror::Error)]
pub enum OciError {
    /// The model cannot be packed, or the folder cannot be used.
    #[error(transparent)]
    Package(#[from] PackageError),
    /// The reference is invalid.
    #[error("reference {reference:?} is invalid; use letters and digits joined by one of . _ - : @ + /, as in v1.2")]
    Reference {
        /// The reference, shortened to a printable length.
        reference: String,
    },
}

/// Writes a model as an OCI layout under a reference such as `v1.2`. The folder must not exist, or be empty; it ends up
/// complete, or is not created. Blocks.
pub fn export(model: &Model, into: &Path, reference: &str) -> Result<(), OciError> {
    if !is_reference(reference) {
        return Err(OciError::Reference { reference: reference.chars().take(100).collect() });
    }
    package::refuse_taken(into)?;
    let unfinished = package::temporary_path(into, "unfinished");
    package::remove_folder(&unfinished)?;
    let made = lay_out(model, &unfinished, reference).and_then(|()| package::rename_durably(&unfinished, into));
    if made.is_err() {
        package::remove_folder(&unfinished)?;
    }
    Ok(made?)
}

fn lay_out(model: &Model, folder: &Path, reference: &str) -> Result<(), PackageError> {
    let blobs = folder.join("blobs/sha256");
    package::make_folder(&blobs)?;
    let unnamed = blobs.join("layer");
    let layer = package::pack(model, &[], &unnamed)?;
    package::rename_durably(&unnamed, &blobs.join(&layer.sha256))?;
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {},
        "rootfs": { "type": "layers", "diff_ids": [digest(&layer)] },
    });
    let config = put(&blobs, &config)?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": descriptor(CONFIG_TYPE, &config),
        "layers": [descriptor(LAYER_TYPE, &layer)],
        "annotations": {
            "org.opencontainers.image.title": model.description.name,
            "org.opencontainers.image.revision": model.release,
        },
    });
    let mut manifest = descriptor(MANIFEST_TYPE, &put(&blobs, &manifest)?);
    if let Some(fields) = manifest.as_object_mut() {
        fields.insert("annotations".into(), json!({ "org.opencontainers.image.ref.name": reference }));
    }
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [manifest] });
    write(&folder.join("index.json"), &index.to_string())?;
    write(&folder.join("oci-layout"), &json!({ "imageLayoutVersion": "1.0.0" }).to_string())
}

fn put(blobs: &Path, value: &Value) -> Result<BlobRef, PackageError> {
    let text = value.to_string();
    let blob = BlobRef::new(Sha256::digest(&text).into(), text.len() as u64);
    write(&blobs.join(&blob.sha256), &text)?;
    Ok(blob)
}

fn write(path: &Path, text: &str) -> Result<(), PackageError> {
    std::fs::write(path, text).map_err(|source| PackageError::File { path: path.to_owned(), source })
}

fn descriptor(media_type: &str, blob: &BlobRef) -> Value {
    json!({ "mediaType": media_type, "digest": digest(blob), "size": blob.size_bytes })
}

fn digest(blob: &BlobRef) -> String {
    format!("sha256:{}", blob.sha256)
}

/// As the specification defines it: words joined by single separators, or by two hyphens.
fn is_reference(text: &str) -> bool {
    let is_word = |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_alphanumeric());
    let words = |part: &str| part.replace("--", "-").split(['-', '.', '_', ':', '@', '+']).all(is_word);
    text.len() <= MAX_REFERENCE_BYTES && text.split('/').all(words)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::package::tests::{light, spread};
    use std::fs;
    use std::path::PathBuf;

    fn read(path: PathBuf) -> Value {
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    }

    /// Path of the blob that a descriptor names, checked against it.
    fn follow(layout: &Path, descriptor: &Value) -> PathBuf {
        let sha256 = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
        let path = layout.join("blobs/sha256").join(sha256);
        let bytes = fs::read(&path).unwrap();
        let found = BlobRef::new(Sha256::digest(&bytes).into(), bytes.len() as u64);
        assert_eq!((found.sha256.as_str(), Some(found.size_bytes)), (sha256, descriptor["size"].as_u64()));
        path
    }

    #[test]
    fn descriptors_match_their_blobs_and_the_layer_has_the_models_files() {
        let root = tempfile::tempdir().unwrap();
        for model in [light(), spread(&root.path().join("spread"))] {
            let into = root.path().join(format!("{}-layout", model.release));
            export(&model, &into, "v1.2").unwrap();
            assert_eq!(read(into.join("oci-layout")), json!({ "imageLayoutVersion": "1.0.0" }));
            let index = read(into.join("index.json"));
            let listed = &index["manifests"][0];
            assert_eq!(
                (&listed["mediaType"], index["manifests"].as_array().unwrap().len()),
                (&json!(MANIFEST_TYPE), 1)
            );
            assert_eq!(listed["annotations"]["org.opencontainers.image.ref.name"], "v1.2");
            let manifest = read(follow(&into, listed));
            assert_eq!(manifest["annotations"]["org.opencontainers.image.revision"], model.release.as_str());
            assert_eq!(manifest["annotations"]["org.opencontainers.image.title"], model.description.name.as_str());
            let config = read(follow(&into, &manifest["config"]));
            let layer = &manifest["layers"][0];
            assert_eq!(config["rootfs"]["diff_ids"], json!([layer["digest"]]));
            assert_eq!(layer["mediaType"], LAYER_TYPE);

            let unpacked = root.path().join(format!("{}-unpacked", model.release));
            tar::Archive::new(fs::File::open(follow(&into, layer)).unwrap()).unpack(&unpacked).unwrap();
            assert_eq!(Model::load(&unpacked).unwrap().release, model.release);
            assert_eq!(fs::read_dir(into.join("blobs/sha256")).unwrap().count(), 3);
        }
    }

    #[test]
    fn exporting_is_deterministic() {
        let root = tempfile::tempdir().unwrap();
        let [one, two] = ["one", "two"].map(|name| {
            export(&light(), &root.path().join(name), "v1").unwrap();
            fs::read(root.path().join(name).join("index.json")).unwrap()
        });
        assert_eq!(one, two);
    }

    #[test]
    fn a_folder_that_is_not_empty_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let into = root.path().join("layout");
        fs::create_dir(&into).unwrap();
        export(&light(), &into, "v1").unwrap();
        for taken in [into.clone(), into.join("index.json")] {
            let error = export(&light(), &taken, "v1").unwrap_err();
            assert!(matches!(error, OciError::Package(PackageError::Taken { .. })), "{error}");
        }
    }

    #[test]
    fn a_layout_that_fails_leaves_nothing_behind() {
        let root = tempfile::tempdir().unwrap();
        let mut model = light();
        model.files.push("missing".into());
        export(&model, &root.path().join("layout"), "v1").unwrap_err();
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn references_follow_the_specification() {
        for good in ["v1", "1.2.3", "fashion-light:3", "stable--1", "registry/models/a_b@c+d"] {
            assert!(is_reference(good), "{good:?} was refused");
        }
        for bad in ["", "-a", "a-", "a..b", "a---b", "a//b", "/a", "a b", "ä", &"a".repeat(256)] {
            assert!(!is_reference(bad), "{bad:?} was accepted");
        }
    }
}
