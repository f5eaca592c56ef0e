//! Why pictures are refused: names, words and remedies.

use std::fmt;

use super::format::PictureFormat;
use super::format_guess::FormatGuess;

/// Longest explanation taken over from a decoder, in characters.
const MAX_WHY_CHARS: usize = 200;

/// Why a picture was refused. Always the picture's fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// No bytes at all.
    #[error("image is empty")]
    Empty,
    /// More bytes than allowed.
    #[error("image of {size_bytes} bytes is larger than the limit of {limit_bytes} bytes")]
    TooLarge {
        /// Its size.
        size_bytes: u64,
        /// `max_bytes`.
        limit_bytes: u64,
    },
    /// None of the formats read here.
    #[error("image format is unknown: it begins with {first_bytes}, which looks like {}", guess.what)]
    UnknownFormat {
        /// Up to 16 bytes in hexadecimal.
        first_bytes: String,
        /// What such bytes usually are.
        guess: FormatGuess,
    },
    /// A known format in a kind that is not read here.
    #[error("{format} image is of a kind that is not supported: {why}")]
    Unsupported {
        /// The format.
        format: PictureFormat,
        /// The kind.
        why: String,
    },
    /// A side longer than allowed.
    #[error("{format} image of {width_px}x{height_px} pixels is longer than {limit_px} on a side")]
    SideTooLong {
        /// The format.
        format: PictureFormat,
        /// As the header says.
        width_px: u32,
        /// As the header says.
        height_px: u32,
        /// `max_side_px`.
        limit_px: u32,
    },
    /// More pixels than allowed.
    #[error("{format} image of {width_px}x{height_px} pixels has more than {limit} of them")]
    TooManyPixels {
        /// The format.
        format: PictureFormat,
        /// As the header says.
        width_px: u32,
        /// As the header says.
        height_px: u32,
        /// `max_pixels`.
        limit: u64,
    },
    /// Decoding would take more memory than allowed.
    #[error(
        "{format} image of {width_px}x{height_px} pixels needs {needed_bytes} bytes to decode, \
         more than the limit of {limit_bytes}"
    )]
    TooMuchMemory {
        /// The format.
        format: PictureFormat,
        /// As the header says.
        width_px: u32,
        /// As the header says.
        height_px: u32,
        /// The estimate.
        needed_bytes: u64,
        /// `max_memory_bytes`.
        limit_bytes: u64,
    },
    /// The end is missing.
    #[error("{format} image is cut off: its end is missing ({why})")]
    Truncated {
        /// The format.
        format: PictureFormat,
        /// The decoder's words.
        why: String,
    },
    /// Damaged.
    #[error("{format} image is damaged: {why}")]
    Corrupt {
        /// The format.
        format: PictureFormat,
        /// The decoder's words.
        why: String,
    },
    /// The decoder itself gave up in a way it should not.
    #[error("{format} decoder failed on this image: {why}")]
    DecoderPanicked {
        /// The format.
        format: PictureFormat,
        /// Its last words.
        why: String,
    },
}

impl DecodeError {
    /// A stable name for dead letters, metrics and scripts.
    pub fn name(&self) -> &'static str {
        match self {
            DecodeError::Empty => "image_empty",
            DecodeError::TooLarge { .. } => "image_too_large",
            DecodeError::UnknownFormat { .. } => "image_unknown_format",
            DecodeError::Unsupported { .. } => "image_unsupported",
            DecodeError::SideTooLong { .. } => "image_side_too_long",
            DecodeError::TooManyPixels { .. } => "image_too_many_pixels",
            DecodeError::TooMuchMemory { .. } => "image_too_much_memory",
            DecodeError::Truncated { .. } => "image_truncated",
            DecodeError::Corrupt { .. } => "image_corrupt",
            DecodeError::DecoderPanicked { .. } => "image_decoder_panicked",
        }
    }

    /// What the one who published it can do, in one sentence.
    pub fn remedy(&self) -> &'static str {
        match self {
            DecodeError::Empty => "Publish the bytes of the picture; the message or the file had none.",
            DecodeError::TooLarge { .. } => {
                "Send a smaller or more strongly compressed picture, or raise decode.max_bytes where it is decoded."
            }
            DecodeError::UnknownFormat { guess, .. } => guess.remedy,
            DecodeError::Unsupported { .. } => "Save it again as a plain JPEG or PNG before publishing.",
            DecodeError::SideTooLong { .. } => {
                "Scale it down or publish it as tiles, or raise decode.max_side_px where it is decoded."
            }
            DecodeError::TooManyPixels { .. } => {
                "Scale it down or publish it as tiles, or raise decode.max_pixels where it is decoded."
            }
            DecodeError::TooMuchMemory { .. } => {
                "Scale it down or publish it as tiles, or raise decode.max_memory_bytes where it is decoded."
            }
            DecodeError::Truncated { .. } => {
                "Publish it again once it is written completely; the copy or the upload stopped too early."
            }
            DecodeError::Corrupt { .. } => "Check the file with another viewer and publish an undamaged copy.",
            DecodeError::DecoderPanicked { .. } => {
                "Save it again as a plain JPEG or PNG; if it is a picture of yours that other viewers show, report it."
            }
        }
    }

    pub(super) fn corrupt(format: PictureFormat, why: impl fmt::Display) -> Self {
        DecodeError::Corrupt { format, why: cut(why) }
    }
}

/// No more of what a decoder says than fits.
pub(super) fn cut(why: impl fmt::Display) -> String {
    why.to_string().chars().take(MAX_WHY_CHARS).collect()
}
