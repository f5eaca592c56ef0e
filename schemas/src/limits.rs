//! Limits that both ends of a connection must share. None of them is a setting.

/// Largest image that any client may publish inside a message, in bytes; a larger one goes to the blob
/// bucket and the message carries a [`crate::BlobRef`].
pub const MAX_INLINE_BYTES: usize = 8 * 1024 * 1024;

/// Largest image that we put inside a message ourselves, in bytes. Measured: above about 1 MB a message costs more
/// memory on the way than an object in the store.
pub const MAX_EMBEDDED_BYTES: usize = 1024 * 1024;

/// Largest total size of an image's headers, in bytes.
pub const MAX_HEADER_BYTES: usize = 64 * 1024;

/// Largest message of any kind, in bytes, headers included: `max_payload` of every server, and the only
/// limit on a message. A stream with a lower limit of its own would drop messages that its server has already
/// acknowledged to an MQTT client.
pub const MAX_MESSAGE_BYTES: usize = MAX_INLINE_BYTES + MAX_HEADER_BYTES;

/// Largest payload that a dead letter keeps whole, in bytes. Of a larger one it keeps the beginning, the size and the
/// digest, so that no dead letter is too large to write and large ones do not displace all others.
pub const MAX_LETTER_BYTES: usize = 1024 * 1024;

/// Bytes that a dead letter keeps of a larger payload.
pub const CUT_LETTER_BYTES: usize = 64 * 1024;

/// Largest image accepted, in bytes, inline or by reference.
pub const MAX_IMAGE_BYTES: u64 = 64 * 1024 * 1024;

/// Most deliveries a role may allow before it gives a message up. Durables whose roles count deliveries stop
/// delivering after twice as many, so that a message that reaches no worker at all is reported too.
pub const MAX_TRIES: u64 = 50;

/// Longest site, camera, model or set name, in characters.
pub const MAX_NAME_CHARS: usize = 64;

/// Longest class label, in bytes.
pub const MAX_LABEL_BYTES: usize = 256;

/// Longest name of the file that an image came from, in bytes.
pub const MAX_FILE_NAME_BYTES: usize = 512;

/// Longest thumbnail of a picture in a header, in bytes; base64 of a thumbnail takes 1,600.
pub const MAX_THUMBNAIL_BYTES: usize = 2048;

/// Most classes an answer lists in `top`.
pub const MAX_TOP: usize = 5;

/// Longest reason or remedy in a fault note, in bytes; longer ones are cut.
pub const MAX_NOTE_BYTES: usize = 2048;

/// Largest weights file that is transferred, in bytes: 128 million 32-bit floats.
pub const MAX_WEIGHTS_BYTES: u64 = 512 * 1024 * 1024;

/// Most images in one list of learned images; 1.8 MB of ids.
pub const MAX_LEARNED_IMAGES: usize = 100_000;

/// Size of the pieces in which a release's package is transferred, in bytes; an interrupted transfer resumes at a
/// piece.
pub const PIECE_BYTES: usize = 8 * 1024 * 1024;
