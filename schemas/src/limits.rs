//! Numbers both ends of a connection must share. Nothing here is an operator's choice.

/// Largest image that any client may publish inside a message, in bytes; a larger one goes to the blob
/// bucket and the message carries a [`crate::BlobRef`].
pub const MAX_INLINE_BYTES: usize = 8 * 1024 * 1024;

/// Largest image that we put inside a message ourselves, in bytes. Measured: above about 1 MB a broker
/// message costs more memory on the way than the object store does.
pub const MAX_EMBEDDED_BYTES: usize = 1024 * 1024;

/// Room for the headers of an image, in bytes.
pub const MAX_HEADER_BYTES: usize = 64 * 1024;

/// Largest message of any kind, in bytes, headers included: `max_payload` of every server, and the only
/// limit on a message. A stream with a lower one of its own would drop what its server has acknowledged
/// to an MQTT client.
pub const MAX_MESSAGE_BYTES: usize = MAX_INLINE_BYTES + MAX_HEADER_BYTES;

/// Largest payload that a dead letter keeps whole, in bytes. Of a larger one it keeps the beginning, the size
/// and the digest: no letter is too large to be written, and large ones do not push out all others.
pub const MAX_LETTER_BYTES: usize = 1024 * 1024;

/// How much a dead letter keeps of a payload that it does not keep whole, in bytes.
pub const CUT_LETTER_BYTES: usize = 64 * 1024;

/// Largest image accepted at all, in bytes, inline or by reference.
pub const MAX_IMAGE_BYTES: u64 = 64 * 1024 * 1024;

/// Most deliveries a role may allow itself before it gives a message up. The durables whose roles count
/// stop delivering at twice as many, so that a message that reaches no worker at all is told, too.
pub const MAX_TRIES: u64 = 50;

/// Longest site or camera name, in characters.
pub const MAX_NAME_CHARS: usize = 64;

/// Longest class label, in bytes.
pub const MAX_LABEL_BYTES: usize = 256;

/// Longest name of the file that an image came from, in bytes.
pub const MAX_FILE_NAME_BYTES: usize = 512;

/// Most classes an answer lists in `top`.
pub const MAX_TOP: usize = 5;

/// Longest explanation inside a fault note, in bytes; longer ones are cut.
pub const MAX_NOTE_BYTES: usize = 2048;

/// Largest file of weights that travels, in bytes: 128 million 32-bit floats.
pub const MAX_WEIGHTS_BYTES: u64 = 512 * 1024 * 1024;

/// Most images that one message lists as learned from; 1.8 MB of ids.
pub const MAX_LEARNED_IMAGES: usize = 100_000;

/// Packages of releases travel in pieces of this size, in bytes, so that one that was cut off goes on where it was.
pub const PIECE_BYTES: usize = 8 * 1024 * 1024;
