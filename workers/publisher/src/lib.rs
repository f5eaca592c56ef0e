//! Images into the stream of a site: the publisher.
//!
//! Enters: files, folders, standard input or a generator's schedule ([`Source`]). Leaves: one message
//! an image on `image.<site>.<camera>`, and a [`Summary`]. Any client may publish without us; what
//! this adds is ids that survive being run again, scans cut into tiles, large images by reference, and
//! bounds on all of it.
//!
//! The path, in [`walk`]: source → load → tile → send → report. Refuses empty, unreadable and oversize
//! files by name and goes on; stops when the stream takes nothing more. Keeps: 2 (one id, one effect),
//! 8 (what is in flight is bounded), 9 (the journal only saves work).
//!
//! Deliberately absent: decoding, except of scans that are cut.

mod capture;
mod failure;
mod image_loader;
mod image_sender;
mod journal;
mod progress;
pub mod report;
pub mod settings;
pub mod source;
mod tile;
pub mod worker;

pub use failure::PublishFailure;
pub use image_sender::RunHeaders;
pub use journal::JournalLocation;
pub use progress::PublishProgress;
pub use report::{PublishSummary, RefusedFile};
pub use settings::{LabelOrigin, PageSelection, PublisherSettings, TileSettings};
pub use source::{CameraNaming, ImageSource, SourceError, list_images};
pub use worker::{AcknowledgedTask, PublishOptions, publish_images};

/// How publishing twice and going on after an interruption work, for `--help`.
pub const RESUME_HELP: &str = "\
Publishing the same files again makes no new tasks. A file's task id follows from the site, the camera,
the name of its folder, its path inside it and its content, so the stream recognizes it, and whatever is
stored twice is answered once. Files that were acknowledged are noted in a journal,
${XDG_STATE_HOME:-~/.local/state}/tributary/publish/<id>.done, one for each server, site, camera and set
of paths; a file in it that has not changed is passed over without being read, however long ago that was.
After an interruption run the same command again: it goes on where it stopped. A journal that belongs to
another stream (the server's store was made anew) is not used. Delete it, or give --again NAME, to
publish everything once more as new tasks; the same NAME makes the same tasks.";
