//! Walks through the whole of Tributary: real nats-servers, real ONNX Runtime, the built binary.
//!
//! One binary, because linking costs more than running. What is marked `ignored` runs by `make soak`.

#![allow(clippy::indexing_slicing)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, missing_docs)]

mod attacks;
mod bad_input;
mod bench;
mod bounds;
mod boxes;
mod camera_answers;
mod cameras;
mod cameras_found;
mod cameras_rtsp;
mod common;
mod deadlines;
mod demo;
mod deploy;
mod drift;
mod entry;
mod faults;
mod fleet;
mod guarantees;
mod image_path;
mod interop;
mod layering;
mod models;
mod notifier;
mod policy;
mod power_cut;
mod releases;
mod replay;
mod rights;
mod rounds;
#[allow(dead_code)]
#[path = "../../workers/lib/camera/tests/sources/rtsp_camera.rs"]
mod rtsp_camera;
mod scale;
mod signals;
mod soak;
mod store;
mod strangers;
mod traces;
mod training;
mod tutorial;
mod up;
mod weight_path;
mod wire_golden;
