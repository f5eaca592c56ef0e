//! Carries messages across the link: requests and reports up ([`outbox_carrier`]), verdicts down ([`verdict_carrier`]),
//! rounds and orders down ([`note_carrier`]). It also keeps the deadlines of provisional answers ([`deadline_keeper`]).
//!
//! [`link`] is the network signal and [`probe`] keeps it up to date; [`outbox_index`] chooses what goes next,
//! [`budget`] and [`breaker`] decide whether anything may. What it sends up it chooses by destination, urgency and deadline
//! alone, and reads only to give it up: the task then has the site's own answer ([`schemas::final_answer`]), and its hard case is kept. Coming down it
//! reads verdicts, rounds and orders, to refuse what the site did not ask for or nobody signed. Deliberately absent:
//! models, decisions about confidence.

mod breaker;
pub mod budget;
mod deadline_keeper;
mod identity;
mod link;
mod note_carrier;
mod outbox_carrier;
mod outbox_index;
mod probe;
mod settings;
pub mod trust_anchor;
mod verdict_carrier;
mod verdict_counter;
mod verifier_progress;
mod worker;

pub use settings::CourierSettings;
pub use worker::run;
