//! Reads a site's streams back.
//!
//! The path, in [`walk`]: gather (what is said of which image) → select (what is meant, and which of it) → fetch (the images,
//! in order, no faster than live work allows) → into a [`folder`], a [`tarball`], a stream or another model. Pure:
//! [`expression`], [`select`], [`outlet`], [`compare`]. Goes on where it stopped ([`begun`]). Takes nothing away:
//! every reader is its own, and what it reads stays.
//!
//! Deliberately absent: training, decisions about models.

pub mod backtest;
pub mod compare;
pub mod error;
pub mod expression;
pub mod fetch;
pub mod field;
pub mod folder;
pub mod gather;
mod image_kind;
pub mod index;
pub mod read_limiter;
pub mod replay_marker;
pub mod republish;
pub mod row;
pub mod select;
pub mod settings;
pub mod tarball;
pub mod timestamp;
pub mod worker;

pub use error::ReplayError;
pub use expression::{Expression, ExpressionError};
pub use row::TaskRow;
pub use select::{TaskQuery, TaskSampling};
pub use settings::ReplayerSettings;
pub use worker::{ReplayDestination, ReplayOptions, ReplayProgress, ReplaySpacing, ReplaySummary, replay};
