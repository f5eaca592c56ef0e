//! Cameras for tests, on loopback, with every oddity that was met in real ones: [`WebCamera`] gives snapshots and motion
//! JPEG over HTTP, [`OnvifCamera`] describes itself. Both end when they are dropped.
//!
//! A folder of its own with nothing of the rest of the harness, so that a crate's own tests can include it, too.

mod http_server;
mod onvif_camera;
mod web_camera;

pub use onvif_camera::{HostileAnswer, OnvifCamera, OnvifPlan, XmlStyle};
pub use web_camera::{PASSWORD, SeenRequest, USER, WebCamera};
