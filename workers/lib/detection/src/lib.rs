//! How good a detector is, and the truths that it is held against.
//!
//! [`precision`]: mean average precision, equal to pycocotools'. [`f1`]: matched, missed and invented objects at a
//! confidence. [`coco`]: pictures and boxes from a COCO annotation file. Pure: bytes and lists in, numbers out.
//!
//! Deliberately absent: pictures, models, files.

pub mod coco;
pub mod f1;
pub mod precision;

pub use coco::{CocoError, CocoImage, read_coco};
pub use f1::match_from;
pub use precision::{AveragePrecision, ClassPrecision, PrecisionSums};
