//! Reads a site's streams again.
//!
//! The steps, in [`worker`]: gather (answers and labels) → select (which tasks) → fetch (the images, in order, limited
//! while the site works) → into a [`folder`], one with COCO annotations ([`coco_folder`]), a [`tarball`], a stream ([`republish`]) or another model ([`compare`]).
//! [`backtest`] runs recorded tasks through other settings. Pure: [`expression`], [`select`], [`republish`],
//! [`compare`], [`backtest`]. Interrupted replays resume ([`replay_marker`]). Nothing is removed from the streams:
//! every reader is independent.
//!
//! Deliberately absent: training, decisions about models.

pub mod backtest;
mod coco_folder;
pub mod compare;
mod error;
mod expression;
pub mod fetch;
pub mod field;
mod folder;
pub mod gather;
mod image_kind;
pub mod index;
pub mod read_limiter;
mod replay_marker;
pub mod republish;
pub mod row;
pub mod select;
mod settings;
mod tarball;
pub mod timestamp;
mod worker;

pub use error::ReplayError;
pub use expression::{Expression, ExpressionError};
pub use row::TaskRow;
pub use select::{TaskQuery, TaskSampling};
pub use settings::ReplayerSettings;
pub use worker::{ReplayDestination, ReplayOptions, ReplayProgress, ReplaySpacing, ReplaySummary, replay};
