//! From a camera's address to pictures worth recognizing.
//!
//! In: an address ([`CameraAddress`]) and how often a picture is wanted. Out: [`Frame`]s. The path of a picture:
//! [`source`] (bytes from the network, a program or a file) → [`Frame`] → thumbnail → [`motion_gate`] (is it worth
//! publishing?) and [`picture_health`] (can one see anything?) → [`region`] (the part that is wanted, as JPEG). Whoever
//! has no address yet asks [`onvif`] for it.
//!
//! Deliberately absent: messages and streams, settings files, models. Whoever holds a [`source::FrameSource`] watches over it: a
//! source says what failed, but silence is no failure of its own.

mod address;
mod error;
mod frame;
mod http_client;
pub mod motion_gate;
pub mod onvif;
mod password;
pub mod picture_health;
pub mod region;
pub mod source;
mod tls;

pub use address::{AddressError, CameraAddress, CameraCredentials, CameraPlace};
pub use error::CameraError;
pub use frame::{Frame, FramePicture, YuvPicture};
pub use password::PasswordSource;
