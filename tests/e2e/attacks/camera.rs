//! What a camera can publish that has no other right than that: whatever bytes, under the subjects of images of its site.

use std::fs;

use bytes::Bytes;
use harness::odd_images;
use harness::pictures::{first_picture, nth_picture};
use harness::program::{fixture, root};
use schemas::limits::{MAX_INLINE_BYTES, MAX_MESSAGE_BYTES};
use schemas::task::{
    HEADER_BLOB, HEADER_CAPTURED_AT, HEADER_DEADLINE, HEADER_DEADLINE_AT, HEADER_FILE, HEADER_IMAGE, HEADER_LABEL,
    HEADER_MESSAGE_ID, HEADER_PRIORITY, HEADER_REPLAYED, HEADER_TASK, HEADER_TILE, HEADER_TO,
};
use schemas::{BlobRef, SiteName, TaskId};

use super::raw_client::RawPublication;
use super::table::{Action, ActionOutcome};

/// Builds its actions, each from a camera of its own name.
struct HostileCamera {
    site: SiteName,
    picture: Bytes,
    actions: Vec<Action>,
}

/// A header block of these lines.
pub(super) fn headers(lines: &[(&str, &str)]) -> Vec<u8> {
    let lines: String = lines.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    format!("NATS/1.0\r\n{lines}\r\n").into_bytes()
}

/// A text as a name in a table.
fn named(text: &str) -> String {
    let shown: String = text.chars().take(24).flat_map(char::escape_default).collect();
    if text.chars().count() > 24 {
        format!("“{shown}…”, {} characters", text.chars().count())
    } else {
        format!("“{shown}”")
    }
}

impl HostileCamera {
    fn subject(&self) -> String {
        format!("image.{}.foe-{}", self.site, self.actions.len())
    }

    fn add(&mut self, name: impl Into<String>, headers: Vec<u8>, payload: impl Into<Bytes>, expected: ActionOutcome) {
        let shot = RawPublication { subject: self.subject(), headers, payload: payload.into(), reply: None };
        self.actions.push(Action::new(name, shot, expected));
    }

    /// The good picture with a header.
    fn with(&mut self, header: &str, value: &str, expected: ActionOutcome) {
        let picture = self.picture.clone();
        self.add(format!("{header} is {}", named(value)), headers(&[(header, value)]), picture, expected);
    }
}

/// Everything that a camera does. `others`: tasks of other cameras, of which it takes the ids before they do; `lies`:
/// references to things in the bucket that are not what they say.
pub(super) fn actions(site: &SiteName, others: &[TaskId], lies: &[(&'static str, BlobRef)]) -> Vec<Action> {
    let mut camera =
        HostileCamera { site: site.clone(), picture: first_picture(true).unwrap().bytes.clone(), actions: Vec::new() };
    header_forms(&mut camera);
    our_headers(&mut camera);
    ids(&mut camera, others);
    references(&mut camera, lies);
    brokers_headers(&mut camera);
    payloads(&mut camera);
    subjects(&mut camera);
    camera.actions
}

/// Header blocks that no client should write.
fn header_forms(camera: &mut HostileCamera) {
    let many: Vec<u8> = [b"NATS/1.0\r\n".to_vec(), b"A: 1\r\n".repeat(5000), b"\r\n".to_vec()].concat();
    let long = |bytes: usize| [b"NATS/1.0\r\nX-Long: ".to_vec(), vec![b'a'; bytes], b"\r\n\r\n".to_vec()].concat();
    let name = [b"NATS/1.0\r\n".to_vec(), vec![b'N'; 20_000], b": 1\r\n\r\n".to_vec()].concat();
    let forms: Vec<(&str, Vec<u8>, ActionOutcome)> = vec![
        ("a bare carriage return in a value", b"NATS/1.0\r\nX-Note: a\rb\r\n\r\n".to_vec(), ActionOutcome::Answered),
        ("a bare line feed in a value", b"NATS/1.0\r\nX-Note: a\nb\r\n\r\n".to_vec(), ActionOutcome::Answered),
        ("a header without a colon", b"NATS/1.0\r\nno colon at all\r\n\r\n".to_vec(), ActionOutcome::Answered),
        ("a name that is no UTF-8", b"NATS/1.0\r\nX-Caf\xe9: 1\r\n\r\n".to_vec(), ActionOutcome::Answered),
        ("a value that is no UTF-8", b"NATS/1.0\r\nX-Place: K\xfcche\r\n\r\n".to_vec(), ActionOutcome::Answered),
        ("a name with a space", b"NATS/1.0\r\na name: 1\r\n\r\n".to_vec(), ActionOutcome::Answered),
        ("a name with a control character", b"NATS/1.0\r\nX-\x01: 1\r\n\r\n".to_vec(), ActionOutcome::Answered),
        ("a zero byte in a value", b"NATS/1.0\r\nX-Zero: a\0b\r\n\r\n".to_vec(), ActionOutcome::Answered),
        ("a zero byte in a name", b"NATS/1.0\r\nX-\0: a\r\n\r\n".to_vec(), ActionOutcome::Answered),
        ("an empty name", b"NATS/1.0\r\n: nothing\r\n\r\n".to_vec(), ActionOutcome::Answered),
        ("an empty value", b"NATS/1.0\r\nX-Empty:\r\n\r\n".to_vec(), ActionOutcome::Answered),
        ("blanks alone for a value", b"NATS/1.0\r\nX-Blank:   \t \r\n\r\n".to_vec(), ActionOutcome::Answered),
        ("a status 404", b"NATS/1.0 404\r\n\r\n".to_vec(), ActionOutcome::Answered),
        ("a status 503 as of nobody there", b"NATS/1.0 503\r\n\r\n".to_vec(), ActionOutcome::Answered),
        ("a status 100 as of a heartbeat", b"NATS/1.0 100 Idle Heartbeat\r\n\r\n".to_vec(), ActionOutcome::Answered),
        (
            "a status 409 as of a consumer gone",
            b"NATS/1.0 409 Consumer Deleted\r\n\r\n".to_vec(),
            ActionOutcome::Answered,
        ),
        ("a status that is no number", b"NATS/1.0 nonsense here\r\nX-Ok: 1\r\n\r\n".to_vec(), ActionOutcome::Answered),
        ("a status of ten digits", b"NATS/1.0 9999999999\r\nX-Ok: 1\r\n\r\n".to_vec(), ActionOutcome::Answered),
        ("a folded line", b"NATS/1.0\r\nX-Long: a\r\n  b\r\nX-Ok: 1\r\n\r\n".to_vec(), ActionOutcome::Answered),
        ("another version of the protocol", b"NATS/9.9\r\nX-Ok: 1\r\n\r\n".to_vec(), ActionOutcome::Answered),
        ("no version at all", b"X-Ok: 1\r\n\r\n".to_vec(), ActionOutcome::Answered),
        ("no end of the headers", b"NATS/1.0\r\nX-Ok: 1\r\n".to_vec(), ActionOutcome::Answered),
        ("zeros for headers", vec![0; 64], ActionOutcome::Answered),
        ("5,000 headers of one name", many, ActionOutcome::Answered),
        ("a value of 60,000 bytes", long(60_000), ActionOutcome::Answered),
        ("a name of 20,000 bytes", name, ActionOutcome::Answered),
        ("a value of 70,000 bytes", long(70_000), ActionOutcome::Refused),
        ("a value of 1 MiB", long(1 << 20), ActionOutcome::Refused),
        (
            "terminal escapes in a value",
            b"NATS/1.0\r\nX-Note: \x1b[2J\x1b]0;owned\x07\r\n\r\n".to_vec(),
            ActionOutcome::Answered,
        ),
        (
            "a value in writing from right to left",
            "NATS/1.0\r\nX-Note: \u{202e}gpj\r\n\r\n".into(),
            ActionOutcome::Answered,
        ),
    ];
    for (name, block, expected) in forms {
        let picture = camera.picture.clone();
        camera.add(name, block, picture, expected);
    }
}

/// Our own headers, with what they must not say.
fn our_headers(camera: &mut HostileCamera) {
    let long = "x".repeat(5000);
    let texts = [
        "",
        "-1",
        "NaN",
        "inf",
        "-inf",
        "1e309",
        "18446744073709551615",
        "18446744073709551616",
        "0x10",
        "1 2",
        "\u{661}",
        " 5\t",
        "\u{1b}[31m5",
        long.as_str(),
    ];
    for header in [HEADER_PRIORITY, HEADER_DEADLINE, HEADER_CAPTURED_AT, HEADER_LABEL, HEADER_FILE] {
        for text in texts {
            camera.with(header, text, ActionOutcome::Answered);
        }
    }
    for text in ["../../etc/passwd", "/etc/passwd", "C:\\windows\\system32", "a\u{0}b"] {
        camera.with(HEADER_FILE, text, ActionOutcome::Answered);
    }
    let picture = camera.picture.clone();
    let twice = headers(&[(HEADER_PRIORITY, "1"), (HEADER_PRIORITY, "9"), ("tributary-priority", "x")]);
    camera.add("a priority twice, and in small letters", twice, picture.clone(), ActionOutcome::Answered);
    let first = headers(&[(HEADER_PRIORITY, "9"), (HEADER_DEADLINE, "1")]);
    camera.add("the first of all, within a millisecond", first, picture.clone(), ActionOutcome::Answered);
    // What later stages write.
    for (header, text) in [
        (HEADER_TO, "$KV.ledger.policy"),
        (HEADER_TO, "order.site-1.m"),
        (HEADER_DEADLINE_AT, "1"),
        (HEADER_IMAGE, "1"),
        (HEADER_IMAGE, "18446744073709551615"),
        ("Tributary-Ticket", "00"),
        ("Nats-Msg-Size", "18446744073709551615"),
        ("Nats-Sequence", "1"),
        ("Nats-Subject", "image.site-1.cam-1"),
        ("Nats-Stream", "ANSWERS"),
        ("Nats-Request-Info", "{\"acc\":\"SYS\"}"),
        ("Nats-Num-Pending", "-1"),
    ] {
        camera.with(header, text, ActionOutcome::Answered);
    }
}

/// Ids: bad ones, and those of others.
fn ids(camera: &mut HostileCamera, others: &[TaskId]) {
    for header in [HEADER_TASK, HEADER_REPLAYED] {
        for text in ["", "x", "1", "{}", "00000000-0000-0000-0000", "../../x"] {
            camera.with(header, text, ActionOutcome::dead("header_unreadable"));
        }
        camera.with(header, "00000000-0000-0000-0000-000000000000", ActionOutcome::Answered);
        camera.with(header, "ffffffff-ffff-ffff-ffff-ffffffffffff", ActionOutcome::Answered);
    }
    let picture = camera.picture.clone();
    for (number, task) in others.iter().enumerate() {
        let task = task.to_string();
        let (header, doubtful) = match number % 4 {
            0 => (HEADER_TASK, false),
            1 => (HEADER_MESSAGE_ID, false),
            2 => (HEADER_TASK, true),
            _ => (HEADER_MESSAGE_ID, true),
        };
        let bytes = if doubtful { nth_picture(false, 3).unwrap().bytes.clone() } else { picture.clone() };
        let what = if doubtful { "that goes up" } else { "that stays" };
        let name = format!("the id of an image that another camera will publish, in {header}, with a picture {what}");
        camera.add(name, headers(&[(header, &task)]), bytes, ActionOutcome::Answered);
    }
    let long = "i".repeat(30_000);
    for (name, id) in
        [("of 30,000 characters", long.as_str()), ("with escapes", "\u{1b}[2J"), ("like a path", "../../../x")]
    {
        camera.add(
            format!("a message id {name}"),
            headers(&[(HEADER_MESSAGE_ID, id)]),
            picture.clone(),
            ActionOutcome::Answered,
        );
    }
    camera.add("an empty message id", headers(&[(HEADER_MESSAGE_ID, "")]), picture.clone(), ActionOutcome::Answered);
    let two = headers(&[(HEADER_MESSAGE_ID, "one"), (HEADER_MESSAGE_ID, "two")]);
    camera.add("two message ids", two, picture.clone(), ActionOutcome::Answered);
    let urn = format!("urn:uuid:{}", TaskId::new_random());
    camera.add(
        "a message id as a URN",
        headers(&[(HEADER_MESSAGE_ID, &urn)]),
        picture.clone(),
        ActionOutcome::Answered,
    );
    // One camera that says the same again, and one that says something else under the same id.
    let subject = camera.subject();
    let again = RawPublication {
        subject,
        headers: headers(&[(HEADER_MESSAGE_ID, "again")]),
        payload: picture.clone(),
        reply: None,
    };
    let mut same =
        Action::many("the same image three times under one id", vec![again.clone(); 3], ActionOutcome::Answered);
    same.expected.push(ActionOutcome::AnsweredBefore);
    camera.actions.push(same);
    let other = |number| RawPublication { payload: nth_picture(true, number).unwrap().bytes.clone(), ..again.clone() };
    let others: Vec<RawPublication> = (10..14).map(other).collect();
    camera.actions.push(Action::many("four other images under that id", others, ActionOutcome::Answered));
}

/// Images by reference, and tiles.
fn references(camera: &mut HostileCamera, lies: &[(&'static str, BlobRef)]) {
    let digest = "ab".repeat(32);
    for text in [
        "".to_owned(),
        "nonsense".into(),
        digest.clone(),
        format!("{digest}:"),
        format!("{digest}:-1"),
        format!("{digest}:NaN"),
        format!("{digest}:{}", u64::MAX),
        format!("{digest}:{}", 65 << 20),
        format!("{}:100", digest.to_uppercase()),
        format!("../../../../etc/passwd{}:100", &digest[22..]),
        format!("{}:100", &digest[1..]),
        format!("{digest}:100:100"),
        "*:100".into(),
        format!("{}:100", "é".repeat(32)),
    ] {
        let name = format!("a reference {}", named(&text));
        camera.add(name, headers(&[(HEADER_BLOB, &text)]), Bytes::new(), ActionOutcome::dead("header_unreadable"));
    }
    let block = |blob: &str| headers(&[(HEADER_BLOB, blob)]);
    camera.add(
        "a reference to nothing",
        block(&format!("{digest}:100")),
        Bytes::new(),
        ActionOutcome::dead("blob_bad"),
    );
    camera.add(
        "a reference of no bytes",
        block(&format!("{digest}:0")),
        Bytes::new(),
        ActionOutcome::dead("image_empty"),
    );
    let picture = camera.picture.clone();
    camera.add(
        "a reference and bytes",
        block(&format!("{digest}:100")),
        picture,
        ActionOutcome::dead("image_ambiguous"),
    );
    for (name, blob) in lies {
        camera.add(
            format!("a reference to {name}"),
            block(&blob.to_string()),
            Bytes::new(),
            ActionOutcome::dead("blob_bad"),
        );
    }
    let scan = TaskId::new_random();
    for text in ["", "a b c", "1 2 3 4 5 6 7", &format!("{scan} -1 0 1 1 1 1"), &format!("{scan} 4294967296 0 1 1 1 1")]
    {
        camera.with(HEADER_TILE, text, ActionOutcome::dead("header_unreadable"));
    }
    let most = u32::MAX;
    for text in [format!("{scan} 0 0 0 0 0 0"), format!("{scan} {most} {most} {most} {most} {most} {most}")] {
        camera.with(HEADER_TILE, &text, ActionOutcome::Answered);
    }
}

/// What the server itself heeds.
fn brokers_headers(camera: &mut HostileCamera) {
    let most = u64::MAX.to_string();
    for (header, text, expected) in [
        ("Nats-Expected-Stream", "ANSWERS", ActionOutcome::Refused),
        ("Nats-Expected-Stream", "IMAGES", ActionOutcome::Answered),
        ("Nats-Expected-Last-Sequence", "1", ActionOutcome::Refused),
        ("Nats-Expected-Last-Sequence", most.as_str(), ActionOutcome::Refused),
        ("Nats-Expected-Last-Sequence", "NaN", ActionOutcome::Refused),
        ("Nats-Stream-Source", "UPDATES 99 > > >", ActionOutcome::Refused),
        ("Nats-Expected-Last-Msg-Id", "nobody", ActionOutcome::Refused),
        ("Nats-Expected-Last-Subject-Sequence", "1", ActionOutcome::Refused),
        ("Nats-Expected-Last-Subject-Sequence", "0", ActionOutcome::Answered),
        ("Nats-Expected-Last-Subject-Sequence-Subject", "image.site-1.cam-1", ActionOutcome::Refused),
        ("Nats-Rollup", "all", ActionOutcome::Refused),
        ("Nats-Rollup", "sub", ActionOutcome::Refused),
        ("Nats-Rollup", "nonsense", ActionOutcome::Refused),
        ("Nats-TTL", "1s", ActionOutcome::Refused),
        ("Nats-TTL", "never", ActionOutcome::Refused),
        ("Nats-TTL", "nonsense", ActionOutcome::Refused),
        ("Nats-Marker-Reason", "MaxAge", ActionOutcome::Answered),
        ("Nats-Incr", "+1", ActionOutcome::Refused),
        ("Nats-Schedule", "@every 1s", ActionOutcome::Refused),
        ("Nats-Batch-Id", "batch", ActionOutcome::Refused),
        ("Nats-Required-Api-Level", "99", ActionOutcome::Answered),
        ("KV-Operation", "PURGE", ActionOutcome::Answered),
    ] {
        camera.with(header, text, expected);
    }
}

/// Pictures that are none, or too much of one.
fn payloads(camera: &mut HostileCamera) {
    let png = camera.picture.clone();
    let testdata = |name: &str| fs::read(root().join("workers/lib/vision/testdata").join(name)).unwrap();
    let jpeg = testdata("grey_progressive.jpg");
    let padded = |bytes: usize| {
        let mut padded = png.to_vec();
        padded.resize(bytes, 0);
        padded
    };
    let polyglot = |behind: &[u8]| [&png[..], behind].concat();
    let cases: Vec<(&str, Vec<u8>, ActionOutcome)> = vec![
        ("nothing", Vec::new(), ActionOutcome::dead("image_empty")),
        ("one byte", vec![0xff], ActionOutcome::dead("image_unknown_format")),
        ("a text", b"I am a picture".to_vec(), ActionOutcome::dead("image_unknown_format")),
        ("2 MiB of zeros", vec![0; 2 << 20], ActionOutcome::dead("image_unknown_format")),
        ("8 MiB of zeros", vec![0; MAX_INLINE_BYTES], ActionOutcome::dead("image_unknown_format")),
        ("more than any message may have", vec![0; MAX_MESSAGE_BYTES + 1], ActionOutcome::Disconnected),
        ("a picture with 2 MiB of zeros behind it", padded(2 << 20), ActionOutcome::Answered),
        ("a picture with a ZIP behind it", polyglot(b"PK\x03\x04\x14\0\0\0\0\0"), ActionOutcome::Answered),
        ("a picture with a page behind it", polyglot(b"<html><script>alert(1)</script>"), ActionOutcome::Answered),
        ("a picture with a program behind it", polyglot(b"\x7fELF\x02\x01\x01"), ActionOutcome::Answered),
        ("a PNG of 20,000 x 20,000", odd_images::png_bomb(20_000), ActionOutcome::dead("image_side_too_long")),
        ("a PNG of 16,000 x 16,000", odd_images::png_bomb(16_000), ActionOutcome::dead("image_too_many_pixels")),
        ("a PNG of 5,000 x 5,000 in some kB", odd_images::png_bomb(5_000), ActionOutcome::Answered),
        (
            "a JPEG that says 60,000 x 60,000",
            odd_images::jpeg_saying(&jpeg, 60_000, 60_000),
            ActionOutcome::dead("image_side_too_long"),
        ),
        ("a JPEG that says 0 x 0", odd_images::jpeg_saying(&jpeg, 0, 0), ActionOutcome::dead("image_*")),
        ("an animated GIF", odd_images::animated_gif(), ActionOutcome::Answered),
        ("an animated WebP", testdata("animated.webp"), ActionOutcome::Answered),
        ("a CMYK JPEG", testdata("cmyk.jpg"), ActionOutcome::Answered),
        ("a turned TIFF", testdata("orientation6.tif"), ActionOutcome::Answered),
        ("a PNG with a palette and alpha", testdata("palette_alpha.png"), ActionOutcome::Answered),
        (
            "an SVG",
            b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>".to_vec(),
            ActionOutcome::dead("image_*"),
        ),
        ("a PostScript program", b"%!PS-Adobe-3.0\n(%pipe%id) (w) file".to_vec(), ActionOutcome::dead("image_*")),
        (
            "an XML bomb",
            b"<!DOCTYPE a [<!ENTITY b 'bbb'><!ENTITY c '&b;&b;'>]><a>&c;</a>".to_vec(),
            ActionOutcome::dead("image_*"),
        ),
        ("gzip", b"\x1f\x8b\x08\0\0\0\0\0\0\x03".to_vec(), ActionOutcome::dead("image_*")),
        ("MessagePack of 2^32 arrays", vec![0xdd; 5000], ActionOutcome::dead("image_*")),
        ("JSON 100,000 levels deep", vec![b'['; 100_000], ActionOutcome::dead("image_*")),
        ("base64 of 1 MiB of nothing", vec![b'A'; 1 << 20], ActionOutcome::dead("image_*")),
        ("a data URL without data", b"data:image/png;base64,".to_vec(), ActionOutcome::dead("image_*")),
    ];
    for (name, bytes, expected) in cases {
        camera.add(name, Vec::new(), bytes, expected);
    }
    for share in [1, 3, 5, 7] {
        for (what, whole) in [("PNG", &png[..]), ("JPEG", &jpeg[..])] {
            let cut = whole[..whole.len() * share / 8].to_vec();
            camera.add(format!("{share} eighths of a {what}"), Vec::new(), cut, ActionOutcome::dead("image_*"));
        }
    }
    let field = fixture("images/field");
    let cases = fs::read_to_string(field.join("cases.csv")).unwrap();
    for line in cases.lines().skip(1) {
        let fields: Vec<&str> = line.split(',').collect();
        let expected = if fields[2] == "right" { ActionOutcome::Answered } else { ActionOutcome::dead("image_*") };
        camera.add(format!("fixture {}", fields[0]), Vec::new(), fs::read(field.join(fields[1])).unwrap(), expected);
    }
}

/// Subjects that are not quite one of its own.
fn subjects(camera: &mut HostileCamera) {
    let long = "c".repeat(65);
    let longer = "c".repeat(250);
    let longest = "c".repeat(5000);
    let unknown = || ActionOutcome::dead("subject_unknown");
    for (camera_name, expected) in [
        ("cam-1", ActionOutcome::Answered),
        ("unknown", ActionOutcome::Answered),
        ("cloud", ActionOutcome::Answered),
        ("-", ActionOutcome::Answered),
        ("__proto__", ActionOutcome::Answered),
        (long.as_str(), unknown()),
        (longer.as_str(), unknown()),
        (longest.as_str(), ActionOutcome::Disconnected),
        ("küche", unknown()),
        ("\u{1f41f}", unknown()),
        ("cam$1", unknown()),
        ("%2e%2e", unknown()),
        ("..%2f", ActionOutcome::Refused),
        ("$JS", unknown()),
        ("{{wildcard(1)}}", unknown()),
        ("a.b", unknown()),
        ("a.b.c.d.e.f.g.h", unknown()),
        ("<script>", unknown()),
        ("\u{1b}[2J", unknown()),
        ("\u{7f}", unknown()),
        ("*", unknown()),
        (">", unknown()),
        ("", ActionOutcome::Refused),
        (".cam", ActionOutcome::Refused),
        ("cam.", ActionOutcome::Refused),
        ("a..b", ActionOutcome::Refused),
    ] {
        let shot = RawPublication {
            subject: format!("image.{}.{camera_name}", camera.site),
            payload: camera.picture.clone(),
            ..RawPublication::default()
        };
        camera.actions.push(Action::new(format!("as camera {}", named(camera_name)), shot, expected));
    }
}

/// Many at once. A thousand names, a name that says nothing a thousand times, large ones, unreadable ones.
pub(super) fn floods(site: &SiteName) -> Vec<Action> {
    let picture = first_picture(true).unwrap().bytes.clone();
    let shot = |camera: String, headers: Vec<u8>, payload: Bytes| RawPublication {
        subject: format!("image.{site}.{camera}"),
        headers,
        payload,
        reply: None,
    };
    let mut large = picture.to_vec();
    large.resize(1 << 20, 0);
    let large = Bytes::from(large);
    let no_id = headers(&[(HEADER_TASK, "x")]);
    vec![
        Action::many(
            "1,000 cameras",
            (0..1000).map(|number| shot(format!("many-{number}"), Vec::new(), picture.clone())).collect(),
            ActionOutcome::Answered,
        ),
        Action::many(
            "nothing, 300 times",
            (0..300).map(|_| shot("nothing".into(), Vec::new(), Bytes::new())).collect(),
            ActionOutcome::dead("image_empty"),
        ),
        Action::many(
            "an id that is none, 300 times",
            (0..300).map(|_| shot("no-id".into(), no_id.clone(), picture.clone())).collect(),
            ActionOutcome::dead("header_unreadable"),
        ),
        Action::many(
            "24 pictures of 1 MiB",
            (0..24).map(|_| shot("large".into(), Vec::new(), large.clone())).collect(),
            ActionOutcome::Answered,
        ),
    ]
}
