//! Membership of a fleet. The operator keeps a folder ([`FleetFolder`]): a certificate authority, the hub's
//! certificate, and the public half of every key. A site receives one file ([`Membership`]): its keys, the authority's
//! certificate and the hub's address. Both are turned into nats-server configuration. The operator keeps no secret of a
//! site.

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
