//! The grabber: takes pictures from a site's cameras and publishes those worth recognizing.
//!
//! In: the site's cameras ([`CameraPlan`]), which may change while it runs. Out: images on `image.<site>.<camera>` with
//! measures of the picture and a thumbnail in their headers, and how each camera is, on
//! `camera.<site>.<camera>.health` and in heartbeats. Each camera is a task of its own: one that is dead or stalled
//! delays no other. A camera is alive as long as pictures arrive, whatever its connection says.
//!
//! The path of a picture, in `camera_task`: source → gray → judge → cut → send. Keeps invariant 8 (what is in flight is
//! bounded): one picture of each published camera.
//!
//! Deliberately absent: protocols and decoding (crate `camera`), recognition.

mod camera_task;
mod image_sender;
mod published_camera;
mod settings;
mod worker;

pub use settings::{CameraSettings, RegionSettings, check_cameras};
pub use worker::{CameraPlan, run};
