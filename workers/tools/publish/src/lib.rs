//! The publisher: sends images to the stream of a site.
//!
//! In: files, folders, standard input or a generator's schedule ([`ImageSource`]). Out: one message per image on
//! `image.<site>.<camera>`, and a [`PublishSummary`]. Any client can publish without it; this one adds ids that are
//! stable across runs, scans cut into tiles, large images by reference, and limits on all of it.
//!
//! The path of an image, in [`worker`]: source → load → tile → send → report. Empty, unreadable and oversize files are
//! refused by name and the rest continues; a full stream stops the run. Keeps invariants 2 (one id, one effect), 8
//! (what is in flight is bounded) and 9 (the journal only saves work).
//!
//! Deliberately absent: decoding, except of scans that are cut.

mod capture;
mod failure;
mod image_loader;
mod image_sender;
mod journal;
mod progress;
mod report;
mod settings;
mod source;
mod tile;
mod worker;

pub use failure::PublishFailure;
pub use image_sender::RunHeaders;
pub use journal::JournalLocation;
pub use progress::PublishProgress;
pub use report::{PublishSummary, RefusedFile};
pub use settings::{LabelOrigin, PageSelection, PublisherSettings, TileSettings};
pub use source::{CameraNaming, ImageSource, SourceError, list_images};
pub use worker::{AcknowledgedTask, PublishOptions, publish_images};

/// Help text on publishing again and resuming, for `--help`.
pub const RESUME_HELP: &str = "\
Publishing the same files again creates no new tasks: the task id is derived from the site, the camera, the folder's \
name, the file's path in it and its content, so the stream recognizes duplicates, and an image that is stored twice is \
answered once.

Acknowledged files are recorded in a journal, ${XDG_STATE_HOME:-~/.local/state}/tributary/publish/<id>.done, one per \
server, site, camera and set of paths; unchanged files in it are skipped without being read, however long ago they \
were published. After an interruption, run the same command again to resume. A journal of another stream (the server's \
store was recreated) is ignored. To publish everything again as new tasks, delete the journal or use --run-id NAME; \
the same NAME gives the same tasks.";
