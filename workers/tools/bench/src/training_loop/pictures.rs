//! Labelled images, divided among the makers of models, the public set, the sites and the test set.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::camera::{self, CameraStyle};
use anyhow::{Context, ensure};
use dataset::{DatasetRow, ExampleSplit, INDEX_FILE, read_dataset};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

/// Most images of a class for the sites, for making models, and for the test set each; the rest of a frequent class is
/// unused.
const MOST_OF_CLASS: usize = 200;
/// Most images of a class in the public set. A third of them selects releases; with fewer, gains would often be chance.
const PUBLIC_OF_CLASS: usize = 40;
/// Share of a class's images at the site that sees it often; the other site has the rest.
const OFTEN: f64 = 0.7;
/// Share of the test set where the index has no split `test`.
const TEST: f64 = 0.2;

/// A labelled image.
#[derive(Debug, Clone)]
pub(super) struct LoopPicture {
    /// File of the image.
    pub path: PathBuf,
    /// True label.
    pub label: String,
    /// Group of images that stay together, such as a video track.
    group: Option<String>,
    /// Whether the index puts it into split `test`.
    test: bool,
}

/// Which images the models are made from.
pub(super) enum PictureProvenance {
    /// None: both models are given.
    Nobody,
    /// Up to this many of each known class.
    OfClass(usize),
    /// Half of all, fewer of frequent classes.
    Half,
}

/// The divided images.
pub(super) struct PictureDivision {
    /// All labels, sorted.
    pub labels: Vec<String>,
    /// Labels that the start model has never seen.
    pub unseen: BTreeSet<String>,
    /// Images that models are made from.
    pub makers: Vec<LoopPicture>,
    /// The public set.
    pub public: Vec<LoopPicture>,
    /// Images of each site, in order.
    pub sites: Vec<Vec<LoopPicture>>,
    /// The test set, which nobody learns from.
    pub test: Vec<LoopPicture>,
}

impl PictureDivision {
    /// Replaces the images of the sites, the public set and the test set by what these cameras, one after the other,
    /// make of them, as new files.
    pub(super) fn show(&mut self, cameras: &[CameraStyle], into: &Path) -> anyhow::Result<()> {
        std::fs::create_dir_all(into).with_context(|| format!("{} cannot be created", into.display()))?;
        let sites = self.sites.iter_mut().flatten();
        for (number, picture) in sites.chain(&mut self.public).chain(&mut self.test).enumerate() {
            let path = into.join(format!("{number}.ppm"));
            let shown = cameras.iter().fold(camera::read_picture(&picture.path)?, |image, camera| camera.apply(&image));
            std::fs::write(&path, camera::encode_ppm(&shown))
                .with_context(|| format!("{} cannot be written", path.display()))?;
            picture.path = path;
        }
        Ok(())
    }
}

/// Reads a folder of labelled images. `groups`: the column that names an image's group.
pub(super) fn read(folder: &Path, groups: Option<&str>) -> anyhow::Result<Vec<LoopPicture>> {
    let dataset = read_dataset(folder, groups)?;
    if let Some(name) = groups {
        let has_column = dataset.rows.iter().all(|row| row.group.is_some());
        ensure!(has_column, "{} has no column {name}", folder.join(INDEX_FILE).display());
    }
    let picture = |row: &DatasetRow| LoopPicture {
        path: dataset.path(row),
        label: row.label.clone(),
        group: row.group.clone(),
        test: row.split == ExampleSplit::Test,
    };
    Ok(dataset.rows.iter().map(picture).collect())
}

/// Divides images among the sites, keeping groups together. The `unseen` rarest labels are unknown to the start model.
/// The division is random with a fixed seed.
pub(super) fn divide(
    pictures: Vec<LoopPicture>,
    makers: &PictureProvenance,
    unseen: usize,
    sites: usize,
) -> anyhow::Result<PictureDivision> {
    let mut random = StdRng::seed_from_u64(1);
    let has_test = pictures.iter().any(|picture| picture.test);
    let mut of_label: BTreeMap<String, Vec<Vec<LoopPicture>>> = BTreeMap::new();
    for (label, mut groups) in grouped(pictures) {
        groups.shuffle(&mut random);
        of_label.insert(label, groups);
    }
    let labels: Vec<String> = of_label.keys().cloned().collect();
    ensure!(labels.len() >= 3, "{} labels are too few: at least 3 are needed", labels.len());
    let unseen = rarest(&of_label, unseen);
    let mut divided = PictureDivision {
        labels,
        unseen,
        makers: Vec::new(),
        public: Vec::new(),
        sites: vec![Vec::new(); sites],
        test: Vec::new(),
    };
    let mut streams: Vec<Vec<Vec<LoopPicture>>> = vec![Vec::new(); sites];
    for (place, (label, groups)) in of_label.into_iter().enumerate() {
        let count = groups.iter().flatten().filter(|picture| !picture.test).count();
        let makers_want = match makers {
            PictureProvenance::OfClass(most) if !divided.unseen.contains(&label) => *most,
            PictureProvenance::Half => (count / 2).min(MOST_OF_CLASS),
            _ => 0,
        };
        let (mut taken, mut test, mut public, mut made) = (0, 0, 0, 0);
        for group in groups {
            let is_test = if has_test { group.iter().any(|picture| picture.test) } else { random.random_bool(TEST) };
            if is_test {
                let left = MOST_OF_CLASS.saturating_sub(test);
                test += group.len();
                divided.test.extend(group.into_iter().take(left));
            } else if public < PUBLIC_OF_CLASS.min(count / 5).max(2) {
                public += group.len();
                divided.public.extend(group);
            } else if made < makers_want {
                made += group.len();
                divided.makers.extend(group);
            } else if taken < MOST_OF_CLASS {
                taken += group.len();
                // Each site sees some classes often, and the others sometimes.
                let own = place % sites;
                let other = (own + 1 + random.random_range(0..sites.max(2) - 1)) % sites;
                let site = if random.random_bool(OFTEN) { own } else { other };
                streams[site].push(group);
            }
        }
    }
    for (site, mut groups) in divided.sites.iter_mut().zip(streams) {
        groups.shuffle(&mut random);
        *site = groups.into_iter().flatten().collect();
    }
    ensure!(!divided.test.is_empty(), "the test set is empty: mark some images as split test");
    Ok(divided)
}

/// Images by label and group; an image without a group is its own.
fn grouped(pictures: Vec<LoopPicture>) -> BTreeMap<String, Vec<Vec<LoopPicture>>> {
    let mut of_label: BTreeMap<String, BTreeMap<String, Vec<LoopPicture>>> = BTreeMap::new();
    for picture in pictures {
        let group = picture.group.clone().unwrap_or_else(|| picture.path.display().to_string());
        of_label.entry(picture.label.clone()).or_default().entry(group).or_default().push(picture);
    }
    of_label.into_iter().map(|(label, groups)| (label, groups.into_values().collect())).collect()
}

/// The labels with the fewest images; of equals, the last by name.
fn rarest(of_label: &BTreeMap<String, Vec<Vec<LoopPicture>>>, count: usize) -> BTreeSet<String> {
    let mut labels: Vec<(usize, &String)> =
        of_label.iter().map(|(label, groups)| (groups.iter().map(Vec::len).sum(), label)).collect();
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
                test: number / 3 % 5 == 0,
            })
        };
        of("a", 300).chain(of("b", 90)).chain(of("c", 30)).collect()
    }

    #[test]
    fn every_image_is_in_one_part_and_groups_stay_together() {
        let divided = divide(pictures(), &PictureProvenance::Half, 1, 2).unwrap();
        assert_eq!(divided.unseen, BTreeSet::from(["c".to_owned()]));
        let parts = [&divided.makers, &divided.public, &divided.sites[0], &divided.sites[1], &divided.test];
        assert!(parts.iter().all(|part| !part.is_empty()));
        let mut where_is: BTreeMap<(String, String), BTreeSet<usize>> = BTreeMap::new();
        let mut paths = BTreeSet::new();
        for (part, picture) in parts.iter().enumerate().flat_map(|(at, part)| part.iter().map(move |one| (at, one))) {
            assert!(paths.insert(picture.path.clone()), "{picture:?} twice");
            let group = (picture.label.clone(), picture.group.clone().unwrap());
            where_is.entry(group).or_default().insert(part);
        }
        assert!(where_is.values().all(|parts| parts.len() == 1), "{where_is:?}");
        assert!(divided.test.iter().all(|picture| picture.test));
    }

    #[test]
    fn what_the_start_model_is_made_from_shows_only_what_it_knows() {
        let divided = divide(pictures(), &PictureProvenance::OfClass(20), 1, 2).unwrap();
        assert!(divided.makers.iter().all(|picture| !divided.unseen.contains(&picture.label)));
        assert!(divided.sites.iter().all(|site| site.iter().any(|picture| picture.label == "c")));
    }
}
