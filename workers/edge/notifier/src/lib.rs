//! Publishes a site's final answers, and how its cameras are, in JSON, for programs that do not read MessagePack.
//!
//! Takes what the stream ANSWERS stores and publishes the same fields on `answer-json.<site>.<camera>` or, if MQTT is
//! configured, on the topic `answer-json/<site>/<camera>`, retained, so that a new subscriber receives the latest
//! answer of each camera at once. [`worker`] keeps the order of the stream and saves its position in the ledger, so
//! that it continues there after a restart: an answer is published at least once, and those of the last second may be
//! published twice.
//!
//! What the stream CAMERAS keeps, the latest health and state of each camera, goes in the same way to
//! `camera-json.<site>.<camera>.health` and `.state`: all of it at the start, and from then on what changes.
//!
//! Deliberately absent: provisional answers, and any change to the contents of an answer.

mod settings;
mod worker;

pub use settings::NotifierSettings;
pub use worker::run;
