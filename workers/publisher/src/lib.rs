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

/// How publishing twice and resuming after an interruption work, for `--help`.
pub const RESUME_HELP: &str = "\
Publishing the same files again creates no new tasks: the task id follows from the site, the camera, the folder's \
name, the file's path in it and its content, so the stream recognizes duplicates, and an image stored twice is \
answered once.

Acknowledged files are recorded in a journal, ${XDG_STATE_HOME:-~/.local/state}/tributary/publish/<id>.done, one per \
server, site, camera and set of paths; an unchanged file in it is skipped without being read. After an interruption, \
run the same command again; it continues where it stopped. A journal of another stream (the server's store was \
recreated) is ignored. To publish everything again as new tasks, use --run-id NAME; the same NAME gives the same \
tasks.";
