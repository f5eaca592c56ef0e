//! Reads pictures and boxes from COCO annotations: JSON with `images`, `annotations` and `categories`, as COCO itself,
//! CVAT, Label Studio, Roboflow and `tributary export` write it. Pure.
//!
//! Boxes come out as fractions of their picture, clipped to it. Refused, with the id of what is wrong: boxes without
//! area or outside their picture, annotations of unknown pictures or categories, crowds, ids that are given twice, and
//! files with more than [`MAX_PICTURES`] pictures or [`MAX_ANNOTATIONS`] annotations, as soon as the limit is reached.

use std::collections::HashMap;
use std::fmt;
use std::marker::PhantomData;

use schemas::limits::MAX_LABEL_BYTES;
use schemas::{BoundingBox, DetectedObject, MAX_OBJECTS};
use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// Largest annotation file that is read, bytes.
pub const MAX_FILE_BYTES: u64 = 256 * 1024 * 1024;
/// Most pictures of a file.
pub const MAX_PICTURES: usize = 200_000;
/// Most annotations of a file.
pub const MAX_ANNOTATIONS: usize = 900_000;
/// Most categories of a file.
pub const MAX_CATEGORIES: usize = 20_000;

/// A picture of an annotation file, with its boxes.
#[derive(Debug, Clone, PartialEq)]
pub struct CocoImage {
    /// Its id in the file.
    pub id: i64,
    /// Its file, as the annotations name it.
    pub file_name: String,
    /// Width, pixels.
    pub width_px: f64,
    /// Height, pixels.
    pub height_px: f64,
    /// Task that it is the image of, as exports of ours write it, unchecked; absent in files of others.
    pub task: Option<String>,
    /// Who said what is in it, as exports of ours write it (`person`, `publisher`, `verdict` or `edge`); absent in files
    /// of others, and of annotation tools that drop it.
    pub source: Option<String>,
    /// Its objects in the order of the annotations, each with confidence 1; at most [`MAX_OBJECTS`].
    pub objects: Vec<DetectedObject>,
    /// How many of the boxes went over the edge of the picture, and were clipped.
    pub clipped: usize,
}

/// Why annotations cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum CocoError {
    /// It is no JSON of this form, or larger than it may be.
    #[error("the annotations are not COCO JSON")]
    Json(#[source] serde_json::Error),
    /// An id is given twice.
    #[error("{what} {id} is given twice; each id must be given once")]
    Twice {
        /// `image` or `category`.
        what: &'static str,
        /// The id.
        id: i64,
    },
    /// A picture has no size.
    #[error("image {id} ({file_name}) is {width} x {height} pixels large; both must be above 0")]
    Size {
        /// The picture's id.
        id: i64,
        /// Its file.
        file_name: String,
        /// Its width.
        width: f64,
        /// Its height.
        height: f64,
    },
    /// A category's name is empty or too long.
    #[error("the name of category {id} has {size_bytes} bytes; it must have 1 to {MAX_LABEL_BYTES}")]
    CategoryName {
        /// The category's id.
        id: i64,
        /// Size of its name.
        size_bytes: usize,
    },
    /// An annotation names a picture that is not there.
    #[error("annotation {id} is of image {image}, which the file does not list")]
    NoImage {
        /// The annotation's id.
        id: AnnotationId,
        /// The picture's id.
        image: i64,
    },
    /// An annotation names a category that is not there.
    #[error("annotation {id} is of category {category}, which the file does not list; add it to categories")]
    NoCategory {
        /// The annotation's id.
        id: AnnotationId,
        /// The category's id.
        category: i64,
    },
    /// An annotation is a crowd.
    #[error("annotation {id} is a crowd (iscrowd 1); remove it, or draw a box for each object")]
    Crowd {
        /// The annotation's id.
        id: AnnotationId,
    },
    /// A box has no area, or is outside the picture.
    #[error(
        "annotation {id} has the box {bounds:?} in image {image} of {width} x {height} pixels; left, top, width and height must name an area inside the picture"
    )]
    Bounds {
        /// The annotation's id.
        id: AnnotationId,
        /// Left, top, width and height, pixels.
        bounds: [f64; 4],
        /// The picture's id.
        image: i64,
        /// Its width.
        width: f64,
        /// Its height.
        height: f64,
    },
    /// A picture has too many boxes.
    #[error("image {id} has more than {MAX_OBJECTS} boxes")]
    TooManyObjects {
        /// The picture's id.
        id: i64,
    },
}

/// The id of an annotation, or its place in the list, from 1, if it has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnnotationId {
    /// Its id.
    Id(i64),
    /// Its place.
    Place(usize),
}

impl fmt::Display for AnnotationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AnnotationId::Id(id) => write!(f, "{id}"),
            AnnotationId::Place(place) => write!(f, "number {place}"),
        }
    }
}

#[derive(Deserialize)]
struct CocoFile {
    images: BoundedList<ImageEntry, MAX_PICTURES>,
    annotations: BoundedList<AnnotationEntry, MAX_ANNOTATIONS>,
    categories: BoundedList<CategoryEntry, MAX_CATEGORIES>,
}

#[derive(Deserialize)]
struct ImageEntry {
    id: i64,
    file_name: String,
    width: f64,
    height: f64,
    #[serde(default)]
    task: Option<String>,
    #[serde(default)]
    source: Option<String>,
}

#[derive(Deserialize)]
struct AnnotationEntry {
    #[serde(default)]
    id: Option<i64>,
    image_id: i64,
    category_id: i64,
    bbox: [f64; 4],
    #[serde(default)]
    iscrowd: u8,
}

#[derive(Deserialize)]
struct CategoryEntry {
    id: i64,
    name: String,
}

/// A list that is refused at its limit, before more of it is read.
struct BoundedList<T, const MOST: usize>(Vec<T>);

impl<'de, T: Deserialize<'de>, const MOST: usize> Deserialize<'de> for BoundedList<T, MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<T, const MOST: usize>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>, const MOST: usize> Visitor<'de> for Entries<T, MOST> {
            type Value = Vec<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<Vec<T>, A::Error> {
                let mut all = Vec::new();
                while let Some(entry) = entries.next_element()? {
                    if all.len() >= MOST {
                        return Err(A::Error::custom(format!("more than {MOST} entries; divide the file")));
                    }
                    all.push(entry);
                }
                Ok(all)
            }
        }
        deserializer.deserialize_seq(Entries::<T, MOST>(PhantomData)).map(Self)
    }
}

/// The pictures of an annotation file, in its order.
///
/// # Errors
/// What cannot be read, and the id of what is wrong.
pub fn read_coco(json: &[u8]) -> Result<Vec<CocoImage>, CocoError> {
    let file: CocoFile = serde_json::from_slice(json).map_err(CocoError::Json)?;
    let categories = categories(file.categories.0)?;
    let mut places = HashMap::new();
    let mut images = Vec::with_capacity(file.images.0.len());
    for entry in file.images.0 {
        if places.insert(entry.id, images.len()).is_some() {
            return Err(CocoError::Twice { what: "image", id: entry.id });
        }
        images.push(image(entry)?);
    }
    for (place, entry) in (1..).zip(file.annotations.0) {
        let id = entry.id.map_or(AnnotationId::Place(place), AnnotationId::Id);
        let image = places.get(&entry.image_id).and_then(|place| images.get_mut(*place));
        let image = image.ok_or(CocoError::NoImage { id, image: entry.image_id })?;
        let label = categories.get(&entry.category_id);
        let label = label.ok_or(CocoError::NoCategory { id, category: entry.category_id })?;
        if entry.iscrowd != 0 {
            return Err(CocoError::Crowd { id });
        }
        let (bounds, is_clipped) = bounds(&entry, id, image)?;
        if image.objects.len() >= MAX_OBJECTS {
            return Err(CocoError::TooManyObjects { id: image.id });
        }
        image.clipped += usize::from(is_clipped);
        image.objects.push(DetectedObject { label: label.clone(), confidence: 1.0, bounds });
    }
    Ok(images)
}

fn categories(entries: Vec<CategoryEntry>) -> Result<HashMap<i64, String>, CocoError> {
    let mut categories = HashMap::with_capacity(entries.len());
    for CategoryEntry { id, name } in entries {
        if !(1..=MAX_LABEL_BYTES).contains(&name.len()) {
            return Err(CocoError::CategoryName { id, size_bytes: name.len() });
        }
        if categories.insert(id, name).is_some() {
            return Err(CocoError::Twice { what: "category", id });
        }
    }
    Ok(categories)
}

fn image(entry: ImageEntry) -> Result<CocoImage, CocoError> {
    let ImageEntry { id, file_name, width, height, task, source } = entry;
    let is_size = |side: f64| side.is_finite() && side > 0.0;
    if !is_size(width) || !is_size(height) {
        return Err(CocoError::Size { id, file_name, width, height });
    }
    Ok(CocoImage { id, file_name, width_px: width, height_px: height, task, source, objects: Vec::new(), clipped: 0 })
}

/// The box of an annotation as fractions of its picture, and whether it went over the edge by more than a rounding.
fn bounds(entry: &AnnotationEntry, id: AnnotationId, image: &CocoImage) -> Result<(BoundingBox, bool), CocoError> {
    /// A hundredth of a pixel is rounding, and nothing that was cut off.
    const ROUNDING_PX: f64 = 0.01;
    let [left, top, width, height] = entry.bbox;
    let (right, bottom) = (left + width, top + height);
    let is_clipped = left < -ROUNDING_PX
        || top < -ROUNDING_PX
        || right > image.width_px + ROUNDING_PX
        || bottom > image.height_px + ROUNDING_PX;
    let fraction = |edge: f64, side: f64| (edge / side).clamp(0.0, 1.0) as f32;
    let bounds = BoundingBox {
        left: fraction(left, image.width_px),
        top: fraction(top, image.height_px),
        right: fraction(right, image.width_px),
        bottom: fraction(bottom, image.height_px),
    };
    match bounds.is_valid() {
        true => Ok((bounds, is_clipped)),
        false => Err(CocoError::Bounds {
            id,
            bounds: entry.bbox,
            image: image.id,
            width: image.width_px,
            height: image.height_px,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Annotations with these of one picture of 200 x 100 pixels and one category.
    fn file(annotations: &str) -> String {
        format!(
            r#"{{"info": {{"year": 2026}}, "images": [{{"id": 7, "file_name": "a.jpg", "width": 200, "height": 100, "license": 1}}],
                "annotations": [{annotations}], "categories": [{{"id": 3, "name": "cup", "supercategory": ""}}]}}"#
        )
    }

    fn refused(json: &str) -> String {
        let error = read_coco(json.as_bytes()).unwrap_err();
        let source = std::error::Error::source(&error).map(|source| format!(": {source}"));
        format!("{error}{}", source.unwrap_or_default())
    }

    fn annotation(bbox: &str) -> String {
        format!(r#"{{"id": 11, "image_id": 7, "category_id": 3, "bbox": {bbox}, "area": 1, "iscrowd": 0}}"#)
    }

    #[test]
    fn boxes_become_fractions_of_their_picture() {
        let images = read_coco(file(&annotation("[50, 25, 100, 75.0]")).as_bytes()).unwrap();
        let [image] = &images[..] else { panic!("{images:?}") };
        assert_eq!((image.id, image.file_name.as_str(), image.clipped), (7, "a.jpg", 0));
        let object = &image.objects[0];
        assert_eq!((object.label.as_str(), object.confidence), ("cup", 1.0));
        assert_eq!(<[f32; 4]>::from(object.bounds), [0.25, 0.25, 0.75, 1.0]);
    }

    #[test]
    fn a_picture_without_annotations_has_no_objects() {
        let images = read_coco(file("").as_bytes()).unwrap();
        assert!(images.len() == 1 && images[0].objects.is_empty());
    }

    #[test]
    fn a_box_over_the_edge_is_clipped_and_one_outside_is_refused_with_its_id() {
        let images = read_coco(file(&annotation("[-20, 50, 120, 100]")).as_bytes()).unwrap();
        assert_eq!(<[f32; 4]>::from(images[0].objects[0].bounds), [0.0, 0.5, 0.5, 1.0]);
        assert_eq!(images[0].clipped, 1);
        let rounded = read_coco(file(&annotation("[0, 0, 200.001, 100]")).as_bytes()).unwrap();
        assert_eq!(rounded[0].clipped, 0);
        for bbox in ["[250, 0, 10, 10]", "[0, 0, 0, 10]", "[0, 0, -5, 10]", "[1e308, 0, 1e308, 10]"] {
            let why = refused(&file(&annotation(bbox)));
            assert!(why.starts_with("annotation 11 has the box") && why.contains("image 7 of 200 x 100"), "{why}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let other = |from: &str, to: &str| file(&annotation("[0, 0, 10, 10]")).replace(from, to);
        for (json, said) in [
            (other("\"category_id\": 3", "\"category_id\": 4"), "annotation 11 is of category 4"),
            (other("\"image_id\": 7", "\"image_id\": 8"), "annotation 11 is of image 8"),
            (other("\"id\": 11, \"image_id\": 7", "\"image_id\": 8"), "annotation number 1 is of image 8"),
            (other("\"iscrowd\": 0", "\"iscrowd\": 1"), "annotation 11 is a crowd"),
            (other("\"width\": 200", "\"width\": 0"), "image 7 (a.jpg) is 0 x 100"),
            (other("\"name\": \"cup\"", "\"name\": \"\""), "category 3 has 0 bytes"),
            (other("[0, 0, 10, 10]", "[0, 0, NaN, 10]"), "line 2 column"),
            (other("[0, 0, 10, 10]", "[0, 0, 10]"), "line 2 column"),
            (other("[0, 0, 10, 10]", "null"), "line 2 column"),
            (other("\"categories\"", "\"kinds\""), "missing field `categories`"),
            (other("\"annotations\"", "\"labels\""), "missing field `annotations`"),
            ("[]".to_owned(), "not COCO JSON"),
            (String::new(), "not COCO JSON"),
        ] {
            let why = refused(&json);
            assert!(why.contains(said), "{json}\n{why}");
        }
        let image = r#"{"id": 7, "file_name": "b.jpg", "width": 1, "height": 1}, "#;
        let twice = file("").replace("\"images\": [", &format!("\"images\": [{image}"));
        assert_eq!(refused(&twice), "image 7 is given twice; each id must be given once");
        let category = r#""categories": [{"id": 3, "name": "mug"}, "#;
        assert_eq!(
            refused(&file("").replace("\"categories\": [", category)),
            "category 3 is given twice; each id must be given once"
        );
    }

    #[test]
    fn too_many_entries_are_refused_at_the_limit() {
        let one = annotation("[0, 0, 10, 10]");
        let why = refused(&file(&vec![one.as_str(); MAX_OBJECTS + 1].join(",")));
        assert_eq!(why, "image 7 has more than 300 boxes");
        // A million annotations of pictures that are not there: refused for their number, before any is looked at.
        let small = r#"{"image_id":0,"category_id":0,"bbox":[0,0,0,0]}"#;
        let why = refused(&file(&vec![small; 1_000_000].join(",")));
        assert!(why.contains("more than 900000 entries"), "{why}");
    }

    #[test]
    fn annotations_that_were_bent_are_read_or_refused() {
        let two = [annotation("[50, 25, 100, 75.0]"), annotation("[-20, 50, 120, 100]")].join(",");
        let files = bend::texts([file(&two), file("")]);
        bend::bend_all("annotations", &files, bend::turns() / 4, |bytes| {
            for image in read_coco(bytes).into_iter().flatten() {
                assert!(image.objects.len() <= MAX_OBJECTS);
                assert!(image.objects.iter().all(|object| object.bounds.is_valid()), "{image:?}");
            }
            1
        });
    }
}
