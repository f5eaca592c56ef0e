//! Which camera an image is from: a given one, or the folder it is in.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::{Component, Path};

use schemas::CameraName;
use schemas::limits::MAX_NAME_CHARS;

/// Where camera names come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CameraNaming {
    /// All images are from this camera.
    One(CameraName),
    /// Each folder directly below the published folder is a camera.
    FromFolders,
}

/// Names cameras and remembers which folder has which name.
#[derive(Debug)]
pub(crate) struct CameraNamer {
    cameras: CameraNaming,
    folders: HashMap<CameraName, String>,
}

impl CameraNamer {
    pub(super) fn new(cameras: CameraNaming) -> Self {
        Self { cameras, folders: HashMap::new() }
    }

    /// The camera of an image, by its path below the published folder; and a note, once, if the folder's name had to be
    /// changed.
    ///
    /// # Errors
    /// One sentence, if the image has no camera.
    pub(super) fn name(&mut self, inside: &Path) -> Result<(CameraName, Option<String>), String> {
        if let CameraNaming::One(camera) = &self.cameras {
            return Ok((camera.clone(), None));
        }
        let mut parts = inside.components();
        let (Some(Component::Normal(folder)), Some(_)) = (parts.next(), parts.next()) else {
            return Err("it is not in a camera's folder; use --camera NAME for such files".into());
        };
        let folder = folder.to_string_lossy().into_owned();
        let legal = |c: char| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c } else { '-' };
        let name: String = folder.chars().take(MAX_NAME_CHARS).map(legal).collect();
        let camera: CameraName =
            name.parse().map_err(|error| format!("its folder is not a valid camera name: {error}"))?;
        match self.folders.entry(camera.clone()) {
            Entry::Occupied(known) if *known.get() == folder => Ok((camera, None)),
            Entry::Occupied(known) => Err(format!(
                "its folder {folder:?} and folder {:?} would both be camera {camera}; rename one of them",
                known.get()
            )),
            Entry::Vacant(free) => {
                let note =
                    (folder != camera.as_str()).then(|| format!("folder {folder:?} is published as camera {camera}"));
                free.insert(folder);
                Ok((camera, note))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_folder_names_the_camera() {
        let mut namer = CameraNamer::new(CameraNaming::FromFolders);
        let mut name = |path: &str| namer.name(Path::new(path)).map(|(camera, note)| (camera.to_string(), note));
        assert_eq!(name("door/2026/a.jpg"), Ok(("door".into(), None)));
        assert_eq!(name("door/b.jpg"), Ok(("door".into(), None)));
        let (camera, note) = name("Küche links/a.jpg").unwrap();
        assert_eq!(
            (camera.as_str(), note.as_deref()),
            ("K-che-links", Some("folder \"Küche links\" is published as camera K-che-links"))
        );
        assert_eq!(name("Küche links/b.jpg").unwrap().1, None, "noted only once");
        assert!(name("Käche links/a.jpg").unwrap_err().contains("rename one of them"));
        assert!(name("a.jpg").unwrap_err().contains("--camera"));
    }

    #[test]
    fn a_given_camera_applies_to_every_image() {
        let camera: CameraName = "cam-1".parse().unwrap();
        let mut namer = CameraNamer::new(CameraNaming::One(camera.clone()));
        assert_eq!(namer.name(Path::new("a.jpg")), Ok((camera, None)));
    }
}
