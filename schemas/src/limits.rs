//! Numbers both ends of a connection must share. Nothing here is an operator's choice.

/// Largest image sent inside a message, in bytes; a larger one goes to the blob bucket and the
/// message carries a [`crate::BlobRef`]. Measured: above about 1 MB a broker message costs more
/// memory on the way than the object store does.
pub const MAX_INLINE_BYTES: usize = 1024 * 1024;

/// Room for the headers of an image, in bytes.
pub const MAX_HEADER_BYTES: usize = 64 * 1024;

/// Largest message of any kind, in bytes, headers included (`max_payload` of every server).
/// Leaves room for an inline image with an answer and headers around it.
pub const MAX_MESSAGE_BYTES: usize = 2 * 1024 * 1024;

/// Largest image accepted at all, in bytes, inline or by reference.
pub const MAX_IMAGE_BYTES: u64 = 64 * 1024 * 1024;

/// Longest site or camera name, in characters.
pub const MAX_NAME_CHARS: usize = 64;

/// Longest class label, in bytes.
pub const MAX_LABEL_BYTES: usize = 256;

/// Most classes an answer lists in `top`.
pub const MAX_TOP: usize = 5;

/// Longest explanation inside a fault note, in bytes; longer ones are cut.
pub const MAX_NOTE_BYTES: usize = 2048;

/// Largest file of weights that travels, in bytes: 128 million 32-bit floats.
pub const MAX_WEIGHTS_BYTES: u64 = 512 * 1024 * 1024;

/// Packages of releases travel in pieces of this size, in bytes, so that one that was cut off goes on where it was.
pub const PIECE_BYTES: usize = 8 * 1024 * 1024;
