//! Divides labelled images into the sites' images, the public set, the test set, and images to make models from.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::camera::{self, CameraStyle};
use anyhow::{Context, ensure};
use dataset::{DatasetRow, ExampleSplit, INDEX_FILE, read_dataset};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

/// Maximum images per class for all sites, for making models, and for the test set each; further images are unused.
const MAX_PER_CLASS: usize = 200;
/// Maximum images per class in the public set. A third of the set selects releases; with fewer images, measured gains
/// would often be chance.
const MAX_PUBLIC_PER_CLASS: usize = 40;
/// Share of a class's images that goes to its main site; the other sites get the rest.
const MAIN_SITE_RATIO: f64 = 0.7;
/// Share of the test set if the index has no split `test`.
const TEST_RATIO: f64 = 0.2;

/// A labelled image.
#[derive(Debug, Clone)]
pub(super) struct LoopPicture {
    /// File of the image.
    pub path: PathBuf,
    /// True label.
    pub label: String,
    /// Group of images that stay together, such as a video track; absent, the image is its own group.
    group: Option<String>,
    /// Whether the index assigns it to split `test`.
    is_test: bool,
}

/// Selection of the images to make models from.
pub(super) enum ModelImages {
    /// None, because both models are given.
    None,
    /// At most this many per class that the start model has seen.
    PerSeenClass(usize),
    /// Half of each class, at most [`MAX_PER_CLASS`].
    Half,
}

/// Images by purpose.
pub(super) struct PictureDivision {
    /// All labels, sorted.
    pub labels: Vec<String>,
    /// Labels that the start model has never seen.
    pub unseen: BTreeSet<String>,
    /// Images to make models from.
    pub models: Vec<LoopPicture>,
    /// The public set.
    pub public: Vec<LoopPicture>,
    /// Images of each site, in the order of arrival.
    pub sites: Vec<Vec<LoopPicture>>,
    /// The test set, never used for training.
    pub test: Vec<LoopPicture>,
}

impl PictureDivision {
    /// Replaces the images of the sites, the public set and the test set by new files, changed by these cameras one after
    /// the other.
    pub(super) fn apply_cameras(&mut self, cameras: &[CameraStyle], into: &Path) -> anyhow::Result<()> {
        std::fs::create_dir_all(into).with_context(|| format!("could not create {}", into.display()))?;
        let sites = self.sites.iter_mut().flatten();
        for (number, picture) in sites.chain(&mut self.public).chain(&mut self.test).enumerate() {
            let path = into.join(format!("{number}.ppm"));
            let changed =
                cameras.iter().fold(camera::read_picture(&picture.path)?, |image, camera| camera.apply(&image));
            std::fs::write(&path, camera::encode_ppm(&changed))
                .with_context(|| format!("could not write {}", path.display()))?;
            picture.path = path;
        }
        Ok(())
    }
}

/// Reads a folder of labelled images. `groups`: name of the column with an image's group.
pub(super) fn read_pictures(folder: &Path, groups: Option<&str>) -> anyhow::Result<Vec<LoopPicture>> {
    let dataset = read_dataset(folder, groups)?;
    if let Some(name) = groups {
        let has_column = dataset.rows.iter().all(|row| row.group.is_some());
        ensure!(
            has_column,
            "{} has no column {name}: name one of its columns with --groups, or omit the option",
            folder.join(INDEX_FILE).display()
        );
    }
    let picture = |row: &DatasetRow| LoopPicture {
        path: dataset.path(row),
        label: row.label.clone(),
        group: row.group.clone(),
        is_test: row.split == ExampleSplit::Test,
    };
    Ok(dataset.rows.iter().map(picture).collect())
}

/// Divides images by purpose, keeping groups together. `unseen`: number of rarest labels that the start model must not
/// see. The division is random with a fixed seed.
pub(super) fn divide_pictures(
    pictures: Vec<LoopPicture>,
    model_images: &ModelImages,
    unseen: usize,
    sites: usize,
) -> anyhow::Result<PictureDivision> {
    let mut random = StdRng::seed_from_u64(1);
    let has_test = pictures.iter().any(|picture| picture.is_test);
    let mut groups_by_label: BTreeMap<String, Vec<Vec<LoopPicture>>> = BTreeMap::new();
    for (label, mut groups) in group_pictures(pictures) {
        groups.shuffle(&mut random);
        groups_by_label.insert(label, groups);
    }
    let labels: Vec<String> = groups_by_label.keys().cloned().collect();
    ensure!(labels.len() >= 3, "the images have {} labels; at least 3 are needed", labels.len());
    let unseen = rarest_labels(&groups_by_label, unseen);
    let mut division = PictureDivision {
        labels,
        unseen,
        models: Vec::new(),
        public: Vec::new(),
        sites: vec![Vec::new(); sites],
        test: Vec::new(),
    };
    let mut site_groups: Vec<Vec<Vec<LoopPicture>>> = vec![Vec::new(); sites];
    for (index, (label, groups)) in groups_by_label.into_iter().enumerate() {
        let count = groups.iter().flatten().filter(|picture| !picture.is_test).count();
        let max_models = match model_images {
            ModelImages::PerSeenClass(most) if !division.unseen.contains(&label) => *most,
            ModelImages::Half => (count / 2).min(MAX_PER_CLASS),
            _ => 0,
        };
        let (mut sites_count, mut test_count, mut public_count, mut models_count) = (0, 0, 0, 0);
        for group in groups {
            let is_test =
                if has_test { group.iter().any(|picture| picture.is_test) } else { random.random_bool(TEST_RATIO) };
            if is_test {
                let left = MAX_PER_CLASS.saturating_sub(test_count);
                test_count += group.len();
                division.test.extend(group.into_iter().take(left));
            } else if public_count < MAX_PUBLIC_PER_CLASS.min(count / 5).max(2) {
                public_count += group.len();
                division.public.extend(group);
            } else if models_count < max_models {
                models_count += group.len();
                division.models.extend(group);
            } else if sites_count < MAX_PER_CLASS {
                sites_count += group.len();
                // Each class has a main site, so that the sites' class mixes differ.
                let main = index % sites;
                let other = (main + 1 + random.random_range(0..sites.max(2) - 1)) % sites;
                let site = if random.random_bool(MAIN_SITE_RATIO) { main } else { other };
                site_groups[site].push(group);
            }
        }
    }
    for (site, mut groups) in division.sites.iter_mut().zip(site_groups) {
        groups.shuffle(&mut random);
        *site = groups.into_iter().flatten().collect();
    }
    ensure!(!division.test.is_empty(), "the test set is empty: mark some images as split test");
    Ok(division)
}

/// Groups images by label and group.
fn group_pictures(pictures: Vec<LoopPicture>) -> BTreeMap<String, Vec<Vec<LoopPicture>>> {
    let mut by_label: BTreeMap<String, BTreeMap<String, Vec<LoopPicture>>> = BTreeMap::new();
    for picture in pictures {
        let group = picture.group.clone().unwrap_or_else(|| picture.path.display().to_string());
        by_label.entry(picture.label.clone()).or_default().entry(group).or_default().push(picture);
    }
    by_label.into_iter().map(|(label, groups)| (label, groups.into_values().collect())).collect()
}

/// Labels with the fewest images; among equals, the last by name.
fn rarest_labels(groups_by_label: &BTreeMap<String, Vec<Vec<LoopPicture>>>, count: usize) -> BTreeSet<String> {
    let mut labels: Vec<(usize, &String)> =
        groups_by_label.iter().map(|(label, groups)| (groups.iter().map(Vec::len).sum(), label)).collect();
    labels.sort_by(|a, b| a.0.cmp(&b.0).then(b.1.cmp(a.1)));
    labels.into_iter().take(count).map(|(_, label)| label.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pictures() -> Vec<LoopPicture> {
        let of = |label: &str, count: usize| {
            let label = label.to_owned();
            (0..count).map(move |number| LoopPicture {
                path: PathBuf::from(format!("{label}/{number}")),
                label: label.clone(),
                group: Some(format!("{}", number / 3)),
                is_test: number / 3 % 5 == 0,
            })
        };
        of("a", 300).chain(of("b", 90)).chain(of("c", 30)).collect()
    }

    #[test]
    fn every_image_is_in_one_part_and_groups_stay_together() {
        let division = divide_pictures(pictures(), &ModelImages::Half, 1, 2).unwrap();
        assert_eq!(division.unseen, BTreeSet::from(["c".to_owned()]));
        let parts = [&division.models, &division.public, &division.sites[0], &division.sites[1], &division.test];
        assert!(parts.iter().all(|part| !part.is_empty()));
        let mut parts_of_group: BTreeMap<(String, String), BTreeSet<usize>> = BTreeMap::new();
        let mut paths = BTreeSet::new();
        for (part, picture) in
            parts.iter().enumerate().flat_map(|(number, part)| part.iter().map(move |picture| (number, picture)))
        {
            assert!(paths.insert(picture.path.clone()), "{picture:?} is in two parts");
            let group = (picture.label.clone(), picture.group.clone().unwrap());
            parts_of_group.entry(group).or_default().insert(part);
        }
        assert!(parts_of_group.values().all(|parts| parts.len() == 1), "{parts_of_group:?}");
        assert!(division.test.iter().all(|picture| picture.is_test));
    }

    #[test]
    fn images_for_the_start_model_have_no_unseen_label() {
        let division = divide_pictures(pictures(), &ModelImages::PerSeenClass(20), 1, 2).unwrap();
        assert!(division.models.iter().all(|picture| !division.unseen.contains(&picture.label)));
        assert!(division.sites.iter().all(|site| site.iter().any(|picture| picture.label == "c")));
    }
}
