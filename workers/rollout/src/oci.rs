//! A release as an OCI image layout: what registries take, and what Kubernetes mounts as an image volume.
//!
//! One image of one layer, in which the model's files lie at the root: mounted at `/model` it shows `/model/model.toml`.
//! The layer is the model's package without extra files, and of a folder the layout is always the same bytes: nothing in
//! it says when or where it was made. Nothing in it runs: it says `linux` and `amd64` because registries and runtimes want
//! a platform, and is for machines of every kind.
//!
//! ```text
//! oci-layout                 version of the layout
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
/// Longest reference, bytes: as long as a name of a registry may be.
const MAX_REFERENCE_BYTES: usize = 255;

/// Why there is no layout.
#[derive(Debug, thiserror::Error)]
pub enum OciError {
    /// The model cannot be packed, or the folder not be used.
    #[error(transparent)]
    Package(#[from] PackageError),
    /// A reference that no layout has.
    #[error(
        "reference {reference:?} is refused: write words of letters and digits joined by one of . _ - : @ + /, as in v1.2"
    )]
    Reference {
        /// The reference, cut to a printable length.
        reference: String,
    },
}

/// Lays a model out under a reference, such as `v1.2`. The folder must not exist, or be empty; it is whole, or not there.
/// Blocks.
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
    manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": reference });
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

/// As the layout's specification has it: words joined by single separators, or by two hyphens.
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

    /// Where what a descriptor describes lies, held against it.
    fn follow(layout: &Path, descriptor: &Value) -> PathBuf {
        let sha256 = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
        let path = layout.join("blobs/sha256").join(sha256);
        let bytes = fs::read(&path).unwrap();
        let found = BlobRef::new(Sha256::digest(&bytes).into(), bytes.len() as u64);
        assert_eq!((found.sha256.as_str(), Some(found.size_bytes)), (sha256, descriptor["size"].as_u64()));
        path
    }

    #[test]
    fn every_descriptor_fits_its_blob_and_the_layer_holds_the_models_files() {
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
    fn a_model_is_laid_out_the_same_twice() {
        let root = tempfile::tempdir().unwrap();
        let [one, two] = ["one", "two"].map(|name| {
            export(&light(), &root.path().join(name), "v1").unwrap();
            fs::read(root.path().join(name).join("index.json")).unwrap()
        });
        assert_eq!(one, two);
    }

    #[test]
    fn a_folder_that_something_is_in_is_refused() {
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
    fn references_are_those_of_the_specification() {
        for good in ["v1", "1.2.3", "fashion-light:3", "stable--1", "registry/models/a_b@c+d"] {
            assert!(is_reference(good), "{good:?} was refused");
        }
        for bad in ["", "-a", "a-", "a..b", "a---b", "a//b", "/a", "a b", "ä", &"a".repeat(256)] {
            assert!(!is_reference(bad), "{bad:?} was accepted");
        }
    }
}
