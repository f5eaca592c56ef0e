//! How cameras are, as rows of a table and as problems.

use schemas::{CameraHealth, CameraState};

use crate::format;

/// Heads of the columns of [`camera_cells`].
pub(crate) const CAMERA_HEAD: [&str; 9] =
    ["camera", "state", "picture", "size", "coding", "published", "unchanged", "lost", "health"];

/// A camera as a row. `now_ms`: milliseconds since the epoch.
pub(crate) fn camera_cells(health: &CameraHealth, now_ms: u64) -> Vec<String> {
    let or_blank = |text: Option<String>| text.unwrap_or_default();
    let counts = &health.counts;
    let faults = health.picture.iter().flat_map(|picture| &picture.faults);
    let faults: Vec<String> = faults.map(|fault| format::plain_text(fault.as_str())).collect();
    vec![
        health.camera.to_string(),
        format::plain_text(health.state.as_str()),
        or_blank(
            health
                .picture_at_ms
                .map(|at_ms| format!("{} ago", format::format_span(now_ms.saturating_sub(at_ms) as f64))),
        ),
        or_blank(health.size_px.map(|(width, height)| format!("{width}x{height}"))),
        or_blank(health.codec.as_deref().map(format::plain_text)),
        counts.published.to_string(),
        counts.unchanged.to_string(),
        (counts.dropped + counts.damaged).to_string(),
        match (&health.picture, faults.is_empty()) {
            (None, _) => String::new(),
            (Some(_), true) => "good".into(),
            (Some(_), false) => faults.join(", "),
        },
    ]
}

/// What is wrong with a camera, with what to do; absent while nothing is.
pub(crate) fn camera_problem(health: &CameraHealth, now_ms: u64) -> Option<String> {
    if let Some(fault) = &health.fault {
        let lead = match health.state.known() {
            Some(CameraState::Silent) => {
                let since = format::format_span(now_ms.saturating_sub(health.since_ms) as f64);
                format!("Camera {} has given no pictures for {since}", health.camera)
            }
            _ => format!("Camera {}", health.camera),
        };
        return Some(format!("{lead}: {}: {}.", format::plain_text(&fault.reason), format::plain_text(&fault.remedy)));
    }
    let faults = health.picture.iter().flat_map(|picture| &picture.faults);
    let faults: Vec<String> = faults.map(|fault| format::plain_text(fault.as_str())).collect();
    match &faults[..] {
        [] => None,
        faults => Some(format!(
            "Pictures of camera {} are {}: have a look at the camera. They are recognized, but not learned from.",
            health.camera,
            faults.join(" and ")
        )),
    }
}
