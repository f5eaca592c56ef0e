//! Publishes a site's final answers in JSON, for programs that do not read MessagePack.
//!
//! Takes what the stream ANSWERS stores and publishes the same fields on `answer-json.<site>.<camera>` or, if MQTT is
//! configured, on the topic `answer-json/<site>/<camera>`, retained, so that a new subscriber receives the latest
//! answer of each camera at once. [`worker`] keeps the order of the stream and saves its position in the ledger, so
//! that it continues there after a restart: an answer is published at least once, and those of the last second may be
//! published twice.
//!
//! Deliberately absent: provisional answers, and any change to the contents of an answer.

mod settings;
mod worker;

pub use settings::NotifierSettings;
pub use worker::run;
