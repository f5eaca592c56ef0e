//! Who belongs to a fleet. The operator keeps a folder ([`Fleet`]): a certificate authority, the hub's certificate, and the
//! public half of every key. A site gets one file to carry ([`Membership`]): its keys, the authority's certificate and where
//! the hub is. Both make of it what nats-server reads. No secret of a site stays with the operator.

mod certificate;
mod directory;
mod error;
mod membership;
mod sealed_text;

pub use certificate::{RENEW_WITHIN_DAYS, ServerCertificate, certificate_end, certify_site, days_left};
pub use directory::{CalendarEntry, FleetFolder, HubAddress, Member, ROLES, hub_role};
pub use error::FleetError;
pub use membership::Membership;
pub use sealed_text::make_code;
