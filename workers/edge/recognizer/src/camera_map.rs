//! Something about each camera, for a limited number of them: the camera that was asked about longest ago is forgotten
//! for a new one. Pure.

use std::collections::BTreeMap;

use schemas::CameraName;

/// Most cameras that a recognizer remembers something about: a few kilobytes for each.
pub(crate) const MAX_CAMERAS: usize = 1024;

/// A value for each camera, at most [`MAX_CAMERAS`].
#[derive(Debug, Clone)]
pub(crate) struct CameraMap<T> {
    cameras: BTreeMap<CameraName, (u64, T)>,
    uses: u64,
}

impl<T> Default for CameraMap<T> {
    fn default() -> Self {
        Self { cameras: BTreeMap::new(), uses: 0 }
    }
}

impl<T> CameraMap<T> {
    /// The value of a camera; a new one for a camera that is not known.
    pub(crate) fn get_or_insert(&mut self, camera: &CameraName, new: impl FnOnce() -> T) -> &mut T {
        self.uses += 1;
        if !self.cameras.contains_key(camera) && self.cameras.len() >= MAX_CAMERAS {
            let oldest = self.cameras.iter().min_by_key(|(_, (used, _))| *used).map(|(camera, _)| camera.clone());
            oldest.and_then(|camera| self.cameras.remove(&camera));
        }
        let (used, value) = self.cameras.entry(camera.clone()).or_insert_with(|| (0, new()));
        *used = self.uses;
        value
    }

    /// The value of a camera, if it is known; does not count as asking.
    pub(crate) fn get_mut(&mut self, camera: &CameraName) -> Option<&mut T> {
        self.cameras.get_mut(camera).map(|(_, value)| value)
    }

    /// The cameras with their values, by name.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&CameraName, &T)> {
        self.cameras.iter().map(|(camera, (_, value))| (camera, value))
    }

    /// Forgets all cameras.
    pub(crate) fn clear(&mut self) {
        self.cameras.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn camera(number: usize) -> CameraName {
        format!("cam-{number}").parse().unwrap()
    }

    #[test]
    fn the_camera_that_was_asked_about_longest_ago_is_forgotten_first() {
        let mut map = CameraMap::default();
        for number in 0..MAX_CAMERAS {
            *map.get_or_insert(&camera(number), || 0) = number;
        }
        assert_eq!(*map.get_or_insert(&camera(0), || 9), 0, "asked about again");
        map.get_or_insert(&camera(MAX_CAMERAS), || MAX_CAMERAS);
        assert_eq!(map.iter().count(), MAX_CAMERAS);
        assert_eq!(map.get_mut(&camera(0)), Some(&mut 0));
        assert_eq!(map.get_mut(&camera(1)), None);
    }
}
