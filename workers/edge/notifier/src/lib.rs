//! A site's final answers in JSON, for programs that read no MessagePack.
//!
//! Enters: what the stream ANSWERS keeps. Leaves: the same fields on `answer-json.<site>.<camera>`, and where MQTT is set, the
//! same topic `answer-json/<site>/<camera>`, retained, so that whoever subscribes hears the latest answer of each camera at
//! once. In [`worker`] the order of the stream is kept; how far it came is kept in the ledger, so that after a restart it goes on
//! there: an answer is told at least once, and the last second's may be told twice.
//!
//! Deliberately absent: provisional answers, and any change of what an answer says.

pub mod settings;
pub mod worker;

pub use settings::NotifierSettings;
pub use worker::run;
