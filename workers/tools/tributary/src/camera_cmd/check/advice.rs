//! Advice from what a check found. Pure.

use schemas::PictureFault;

use super::findings::CheckFindings;
use crate::camera_cmd::{CLOCK_EXACT_MS, clock_text};

/// Key frames further apart than this are worth a change, seconds.
const FAR_KEY_FRAMES_S: f32 = 2.5;
/// Width from which a picture is larger than a model needs, pixels.
const WIDE_PX: u32 = 2560;
/// Width below which small things can hardly be recognized, pixels.
const NARROW_PX: u32 = 320;
/// Rate from which a camera sends far more than is taken, pictures per second.
const FAST_PER_S: f32 = 15.0;
/// Jitter that is worth a word, as a fraction of the time between pictures.
const UNEVEN_RATIO: f64 = 0.5;
/// Pictures a minute above which nearly everything is published.
const BUSY_RATIO: f64 = 0.5;
/// Pictures taken from which the gate can be judged.
const MIN_PICTURES: u64 = 5;

/// What a person may change, one sentence or two each.
pub(super) fn advice(found: &CheckFindings) -> Vec<String> {
    let is_video = ["h264", "h265"].contains(&found.codec.as_str());
    let mut advice = Vec::new();
    let mut say = |sentence: String| advice.push(sentence);
    // Of a stream whose key frames are further apart than it was watched, the distance is not known.
    let distance_s = found.key_frame_distance_s.or(Some(found.watched_s as f32));
    if let Some(distance_s) = distance_s.filter(|distance_s| is_video && *distance_s > FAR_KEY_FRAMES_S) {
        let every = if found.key_frame_distance_s.is_some() { "come every" } else { "are more than" };
        let apart = if found.key_frame_distance_s.is_some() { "" } else { " apart" };
        say(format!(
            "Key frames {every} {distance_s:.1} s{apart}. Set the camera's key frame interval (I-frame interval, GOP) to 2 s: the first picture comes sooner, and fewer frames need decoding."
        ));
    }
    if found.codec == "h265" {
        say("H.265 is decoded by the program ffmpeg, in a process of its own. H.264 or MJPEG takes less memory and processor time.".into());
    }
    if let Some((width, height)) = found.size_px {
        if width >= WIDE_PX {
            say(format!(
                "{width}x{height} is more than most models see. The camera's sub stream costs less; `tributary camera find` tells its address."
            ));
        } else if width < NARROW_PX {
            say(format!("{width}x{height} is small: a larger stream shows more to the model."));
        }
    }
    if let Some(rate) = found.frames_per_s.filter(|rate| is_video && *rate > FAST_PER_S) {
        say(format!("It sends {rate:.0} pictures a second; 5 to 10 are enough, and spare network and processor."));
    }
    if let Some(ahead_ms) = found.clock_ahead_ms.filter(|ahead_ms| ahead_ms.abs() > CLOCK_EXACT_MS) {
        say(format!(
            "The camera's clock is {}. That does no harm: pictures are dated by this machine's clock.",
            clock_text(ahead_ms)
        ));
    }
    if let (Some(interval_ms), Some(jitter_ms)) = (found.interval_ms, found.jitter_ms)
        && jitter_ms > interval_ms * UNEVEN_RATIO
    {
        say("Pictures come unevenly: check the network, Wi-Fi above all, and how many programs watch this camera."
            .into());
    }
    if found.damaged > 0 {
        say(format!("Damaged pictures: {} of {}. Check the network if more come.", found.damaged, found.received));
    }
    for fault in found.report.faults.iter().filter_map(|fault| fault.known()) {
        say(of_fault(fault).into());
    }
    if found.is_one_picture {
        say("All pictures were the very same, which no live sensor sends: the camera hangs, or the address gives a still picture.".into());
    }
    if found.is_remote && found.user.is_none() {
        say("It asked for no password: whoever reaches it sees its pictures.".into());
    }
    if let (Some(published), Some(interval_ms)) = (found.published_per_minute, found.interval_ms)
        && found.taken >= MIN_PICTURES
        && published > BUSY_RATIO * 60_000.0 / interval_ms
    {
        say("Something moves nearly all the time. Hide what does not matter, such as trees or a clock in the picture, with `hidden`, or raise `min_difference` of its gate.".into());
    }
    advice
}

fn of_fault(fault: PictureFault) -> &'static str {
    match fault {
        PictureFault::Frozen => "The picture is frozen: restart the camera.",
        PictureFault::Black => "The picture is black: check the lens cap, the light, and the camera's night mode.",
        PictureFault::Overexposed => {
            "Large parts are white: turn the camera away from the light, or lower its exposure."
        }
        PictureFault::Blurred => "The picture is blurred: focus or clean the lens.",
        PictureFault::Covered => "Something covers the lens.",
        PictureFault::Moved => "The camera moved while it was watched.",
    }
}

#[cfg(test)]
mod tests {
    use schemas::PictureReport;

    use super::*;

    fn healthy() -> CheckFindings {
        let report = PictureReport {
            brightness_ratio: 0.4,
            contrast_ratio: 0.2,
            sharpness_ratio: None,
            white_ratio: 0.0,
            faults: Vec::new(),
            is_scene_changed: false,
        };
        CheckFindings {
            address: "rtsp://camera/main".into(),
            user: Some("admin".into()),
            is_remote: true,
            steps: Vec::new(),
            watched_s: 10.0,
            codec: "h264".into(),
            size_px: Some((1280, 720)),
            frames_per_s: Some(10.0),
            key_frame_distance_s: Some(2.0),
            taken: 10,
            received: 100,
            damaged: 0,
            interval_ms: Some(1000.0),
            jitter_ms: Some(20.0),
            clock_ahead_ms: Some(400),
            published_per_minute: Some(3.0),
            is_one_picture: false,
            report,
            saved: None,
            interruption: None,
            advice: Vec::new(),
        }
    }

    #[test]
    fn a_camera_that_is_set_well_needs_no_advice() {
        assert_eq!(advice(&healthy()), Vec::<String>::new());
        assert!(CheckFindings { advice: Vec::new(), ..healthy() }.advice_text().contains("Nothing to improve"));
    }

    #[test]
    fn each_shortcoming_gets_its_own_advice() {
        let black = PictureReport { faults: vec![PictureFault::Black.into()], ..healthy().report };
        for (found, says) in [
            (CheckFindings { key_frame_distance_s: Some(10.0), ..healthy() }, "every 10.0 s"),
            (CheckFindings { key_frame_distance_s: None, ..healthy() }, "more than 10.0 s apart"),
            (CheckFindings { codec: "h265".into(), ..healthy() }, "ffmpeg"),
            (CheckFindings { size_px: Some((3840, 2160)), ..healthy() }, "sub stream"),
            (CheckFindings { size_px: Some((160, 120)), ..healthy() }, "160x120 is small"),
            (CheckFindings { frames_per_s: Some(25.0), ..healthy() }, "25 pictures a second"),
            (CheckFindings { clock_ahead_ms: Some(7_200_000), ..healthy() }, "2.0 h ahead"),
            (CheckFindings { clock_ahead_ms: Some(-86_400_000), ..healthy() }, "1.0 days behind"),
            (CheckFindings { jitter_ms: Some(600.0), ..healthy() }, "unevenly"),
            (CheckFindings { damaged: 3, ..healthy() }, "3 of 100"),
            (CheckFindings { report: black, ..healthy() }, "lens cap"),
            (CheckFindings { is_one_picture: true, ..healthy() }, "very same"),
            (CheckFindings { user: None, ..healthy() }, "no password"),
            (CheckFindings { published_per_minute: Some(55.0), ..healthy() }, "min_difference"),
        ] {
            let given = advice(&found);
            assert!(given.len() == 1 && given[0].contains(says), "{says}: {given:?}");
        }
    }

    #[test]
    fn a_result_for_people_names_what_was_found() {
        let found = CheckFindings { clock_ahead_ms: Some(-60_000), saved: Some("view.jpg".into()), ..healthy() };
        let text = found.text();
        for says in
            ["rtsp://camera/main", "admin", "1280x720", "10.0 a second", "1.0 min behind", "view.jpg", "healthy"]
        {
            assert!(text.contains(says), "{says}:\n{text}");
        }
        assert!(!CheckFindings { is_remote: false, ..healthy() }.text().contains("login"));
    }
}
