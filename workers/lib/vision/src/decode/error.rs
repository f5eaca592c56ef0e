//! Why pictures are refused: fault names, reasons and remedies.

use std::fmt;

use super::format::PictureFormat;
use super::format_guess::FormatGuess;

/// Longest explanation taken from a decoder, in characters.
const MAX_WHY_CHARS: usize = 200;

/// Why a picture was refused. Always the picture's fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// There are no bytes.
    #[error("image is empty")]
    Empty,
    /// It has more bytes than allowed.
    #[error("image of {size_bytes} bytes is larger than the limit of {limit_bytes} bytes")]
    TooLarge {
        /// Its size in bytes.
        size_bytes: u64,
        /// The limit `max_bytes`.
        limit_bytes: u64,
    },
    /// Its format is not one that is read here.
    #[error("image format is unknown: it begins with {first_bytes}, which looks like {}", guess.what)]
    UnknownFormat {
        /// Up to 16 bytes in hexadecimal.
        first_bytes: String,
        /// What such bytes usually are.
        guess: FormatGuess,
    },
    /// It is a variant of a known format that is not supported.
    #[error("this kind of {format} image is not supported: {why}")]
    Unsupported {
        /// Its format.
        format: PictureFormat,
        /// The variant.
        why: String,
    },
    /// A side is too long.
    #[error("{format} image of {width_px}x{height_px} pixels has a side over the limit of {limit_px}")]
    SideTooLong {
        /// Its format.
        format: PictureFormat,
        /// Width in the header.
        width_px: u32,
        /// Height in the header.
        height_px: u32,
        /// The limit `max_side_px`.
        limit_px: u32,
    },
    /// It has too many pixels.
    #[error("{format} image of {width_px}x{height_px} has more than the limit of {limit} pixels")]
    TooManyPixels {
        /// Its format.
        format: PictureFormat,
        /// Width in the header.
        width_px: u32,
        /// Height in the header.
        height_px: u32,
        /// The limit `max_pixels`.
        limit: u64,
    },
    /// Decoding would need too much memory.
    #[error(
        "{format} image of {width_px}x{height_px} pixels needs {needed_bytes} bytes to decode, \
         more than the limit of {limit_bytes}"
    )]
    TooMuchMemory {
        /// Its format.
        format: PictureFormat,
        /// Width in the header.
        width_px: u32,
        /// Height in the header.
        height_px: u32,
        /// Estimated memory in bytes.
        needed_bytes: u64,
        /// The limit `max_memory_bytes`.
        limit_bytes: u64,
    },
    /// Its end is missing.
    #[error("{format} image is cut off: its end is missing ({why})")]
    Truncated {
        /// Its format.
        format: PictureFormat,
        /// Message of the decoder.
        why: String,
    },
    /// It is damaged.
    #[error("{format} image is damaged: {why}")]
    Corrupt {
        /// Its format.
        format: PictureFormat,
        /// Message of the decoder.
        why: String,
    },
    /// The decoder panicked.
    #[error("{format} decoder failed on this image: {why}")]
    DecoderPanicked {
        /// Its format.
        format: PictureFormat,
        /// Message of the panic.
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

    /// What the publisher can do, in one sentence.
    pub fn remedy(&self) -> &'static str {
        match self {
            DecodeError::Empty => "Publish the bytes of the picture; the message or file was empty.",
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
                "Save it again as a plain JPEG or PNG; if other viewers show the picture, report it."
            }
        }
    }

    pub(super) fn corrupt(format: PictureFormat, why: impl fmt::Display) -> Self {
        DecodeError::Corrupt { format, why: cut(why) }
    }
}

/// A decoder's message, shortened.
pub(super) fn cut(why: impl fmt::Display) -> String {
    why.to_string().chars().take(MAX_WHY_CHARS).collect()
}
