//! Snapshots and motion JPEG.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use camera::source::{FrameSource, SourceOptions};
use md5::{Digest, Md5};
use sha2::Sha256;
use tokio::io::AsyncWriteExt;

use super::http_camera::{
    HttpCamera, Request, STREAM, answer, answering, certificate, jpeg, number, part, picture, streaming,
};
use super::{PASSWORD, address, every, fault, file, is_silent, jpeg_of, login, next, within};

#[tokio::test]
async fn a_snapshot_is_read_however_its_length_is_told() {
    let with_length = answering(|request| picture(request.number as u32));
    let closed = answering(|request| [b"HTTP/1.0 200 OK\r\n\r\n", &jpeg(request.number as u32)[..]].concat());
    let chunked = answering(|request| {
        let mut answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n".to_vec();
        for piece in jpeg(request.number as u32).chunks(1000) {
            answer.extend(format!("{:x}\r\n", piece.len()).bytes());
            answer.extend([piece, b"\r\n"].concat());
        }
        [&answer[..], b"0\r\n\r\n"].concat()
    });
    for handler in [with_length, closed, chunked] {
        let camera = HttpCamera::start(handler).await;
        let mut source = FrameSource::open(&address(&camera.url("/snap.jpg")), &every(50)).await.unwrap();
        for expected in 0..4 {
            let frame = next(&mut source, 5).await;
            assert_eq!(number(jpeg_of(&frame)), expected);
            assert_eq!(jpeg_of(&frame), jpeg(expected));
        }
        let facts = source.facts();
        assert_eq!((facts.codec.as_str(), facts.size_px, facts.damaged), ("jpeg", Some((320, 240)), 0));
    }
}

#[tokio::test]
async fn pictures_are_asked_for_at_the_interval_and_the_connection_is_used_again() {
    let camera = HttpCamera::start(Arc::new(|request, stream| {
        Box::pin(async move {
            let jpeg = jpeg(request.number as u32);
            stream.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", jpeg.len()).as_bytes()).await?;
            stream.write_all(&jpeg).await?;
            Ok(true)
        })
    }))
    .await;
    let mut source = FrameSource::open(&address(&camera.url("/")), &every(300)).await.unwrap();
    let begun = Instant::now();
    for _ in 0..4 {
        next(&mut source, 5).await;
    }
    let elapsed = begun.elapsed();
    assert!(elapsed >= Duration::from_millis(850), "three intervals took {elapsed:?}");
    assert!((4..=6).contains(&camera.requests().len()), "{} requests", camera.requests().len());
    let connections = camera.connections();
    assert!(connections <= 2, "{connections} connections for four pictures");
}

#[tokio::test]
async fn an_unchanged_picture_is_not_sent_again_and_is_given_again() {
    let camera = HttpCamera::start(answering(|request| {
        let is_known = request.headers.get("if-none-match").is_some_and(|tag| tag == "\"first\"")
            && request.headers.contains_key("if-modified-since");
        match is_known {
            true => b"HTTP/1.1 304 Not Modified\r\nConnection: close\r\n\r\n".to_vec(),
            false => answer(
                "200 OK",
                &["ETag: \"first\"", "Last-Modified: Mon, 30 Nov 2026 10:00:00 GMT"],
                &jpeg(request.number as u32),
            ),
        }
    }))
    .await;
    let mut source = FrameSource::open(&address(&camera.url("/")), &every(20)).await.unwrap();
    for _ in 0..4 {
        // The same bytes: that a picture is frozen is for the caller to see.
        assert_eq!(number(jpeg_of(&next(&mut source, 5).await)), 0);
    }
    let asked = camera.requests();
    assert!(!asked[0].headers.contains_key("if-none-match"), "{:?}", asked[0]);
    assert!(asked.len() >= 4 && asked[1..].iter().all(|request| request.headers.contains_key("if-none-match")));
}

/// Whether a request answers this challenge, by the arithmetic of RFC 7616.
fn answers_digest(request: &Request, algorithm: &str) -> bool {
    let hash = |text: String| match algorithm {
        "MD5" => Md5::digest(text).iter().map(|byte| format!("{byte:02x}")).collect::<String>(),
        _ => Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect(),
    };
    let Some(given) = request.headers.get("authorization").and_then(|value| value.strip_prefix("Digest ")) else {
        return false;
    };
    let part = |name: &str| {
        let found = given.split(", ").find_map(|pair| pair.trim().strip_prefix(&format!("{name}=")));
        found.unwrap_or_default().trim_matches('"').to_owned()
    };
    let first = hash(format!("viewer:camera:{PASSWORD}"));
    let second = hash(format!("GET:{}", request.target));
    let together = [first, part("nonce"), part("nc"), part("cnonce"), part("qop"), second].join(":");
    part("uri") == request.target && part("response") == hash(together)
}

#[tokio::test]
async fn a_login_is_given_as_the_camera_asks_for_it() {
    for algorithm in ["MD5", "SHA-256"] {
        let camera = HttpCamera::start(answering(move |request| match answers_digest(&request, algorithm) {
            true => picture(request.number as u32),
            false => {
                let digest = format!(
                    "WWW-Authenticate: Digest realm=\"camera\", nonce=\"{}\", qop=\"auth\", algorithm={algorithm}",
                    request.number
                );
                answer("401 Unauthorized", &[&digest], b"")
            }
        }))
        .await;
        let url = camera.url("/snap.jpg?channel=1&size=640x480");
        let options = SourceOptions { login: login(PASSWORD), ..every(20) };
        let mut source = FrameSource::open(&address(&url), &options).await.unwrap();
        for _ in 0..3 {
            next(&mut source, 5).await;
        }
        let refused = camera.requests().iter().filter(|request| !answers_digest(request, algorithm)).count();
        assert_eq!(refused, 1, "with {algorithm} only the first request goes without an answer");
    }
    let camera = HttpCamera::start(answering(|request| {
        // "viewer:S3cr3t-of-the-camera"
        let expected = "Basic dmlld2VyOlMzY3IzdC1vZi10aGUtY2FtZXJh";
        match request.headers.get("authorization").is_some_and(|given| given == expected) {
            true => picture(0),
            false => answer("401 Unauthorized", &["WWW-Authenticate: Basic realm=\"camera\""], b""),
        }
    }))
    .await;
    let in_address = format!("http://viewer:{PASSWORD}@{}/", camera.address);
    let mut source = FrameSource::open(&address(&in_address), &every(20)).await.unwrap();
    next(&mut source, 5).await;
    assert!(!format!("{source:?} {:?}", address(&in_address)).contains(PASSWORD));
}

#[tokio::test]
async fn a_wrong_password_is_tried_once_and_named() {
    let refuse = || {
        answering(|_| {
            let digest = "WWW-Authenticate: Digest realm=\"camera\", nonce=\"1\", qop=\"auth\"";
            answer("401 Unauthorized", &[digest], b"<html>who are you?</html>")
        })
    };
    let camera = HttpCamera::start(refuse()).await;
    let options = SourceOptions { login: login(PASSWORD), ..every(20) };
    let error = fault(&camera.url("/"), &options, 5).await;
    assert_eq!((error.kind(), error.needs_a_person()), ("camera_login", true));
    assert_eq!(camera.requests().len(), 2, "cameras lock accounts");

    let error = fault(&camera.url("/"), &every(20), 5).await;
    assert!(error.kind() == "camera_login" && error.to_string().contains("none is given"), "{error}");

    // A camera that asks in an unknown way, and one that forbids.
    let camera =
        HttpCamera::start(answering(|_| answer("401 Unauthorized", &["WWW-Authenticate: Negotiate"], b""))).await;
    assert_eq!(fault(&camera.url("/"), &options, 5).await.kind(), "camera_login");
    let camera = HttpCamera::start(answering(|_| answer("403 Forbidden", &[], b""))).await;
    assert_eq!(fault(&camera.url("/"), &options, 5).await.kind(), "camera_login");
}

#[tokio::test]
async fn what_is_no_picture_is_named_by_its_type() {
    let cases: [(&[&str], &[u8], &str); 5] = [
        (&["Content-Type: text/html; charset=utf-8"], b"<html><form>user <input name=u>", "text/html"),
        (&["Content-Type: image/jpeg"], b"", "an empty answer"),
        (&["Content-Type: image/jpeg"], b"\x89PNG\r\n\x1a\n0000", "image/jpeg without a JPEG"),
        (&["Content-Type: image/png"], b"\x89PNG\r\n\x1a\n0000", "image/png"),
        (&[], b"OK", "unknown type"),
    ];
    for (headers, body, says) in cases {
        let (headers, body) = (headers.to_vec(), body.to_vec());
        let camera = HttpCamera::start(answering(move |_| answer("200 OK", &headers, &body))).await;
        let error = fault(&camera.url("/?user=viewer&password=S3cr3t-of-the-camera"), &every(20), 5).await;
        assert_eq!(error.kind(), "camera_no_picture");
        assert!(error.to_string().contains(says), "{error}");
    }
    // Without an end: no more of it is read than a picture's preface may have.
    let camera = HttpCamera::start(Arc::new(|_, stream| {
        Box::pin(async move {
            stream.write_all(STREAM.as_bytes()).await?;
            loop {
                stream.write_all(&[b'x'; 4096]).await?;
            }
        })
    }))
    .await;
    assert_eq!(fault(&camera.url("/"), &every(20), 5).await.kind(), "camera_no_picture");
}

#[tokio::test]
async fn refusals_are_told_apart() {
    for (status, kind) in [
        ("404 Not Found", "camera_path_unknown"),
        ("410 Gone", "camera_path_unknown"),
        ("500 Internal Server Error", "camera_status"),
        ("503 Service Unavailable", "camera_status"),
        // Nobody asked whether it changed.
        ("304 Not Modified", "camera_status"),
        ("302 Found", "camera_status"),
    ] {
        let camera = HttpCamera::start(answering(move |_| answer(status, &[], b""))).await;
        assert_eq!(fault(&camera.url("/"), &every(20), 5).await.kind(), kind, "{status}");
    }
    let camera = HttpCamera::start(answering(|_| b"SSH-2.0-OpenSSH_9.2\r\n".to_vec())).await;
    assert_eq!(fault(&camera.url("/"), &every(20), 5).await.kind(), "camera_closed");
    let url = camera.url("/");
    drop(camera);
    assert_eq!(fault(&url, &every(20), 5).await.kind(), "camera_unreachable");
    assert_eq!(fault("http://no-such-camera.invalid/", &every(20), 20).await.kind(), "camera_unreachable");
}

#[tokio::test]
async fn redirects_stay_with_the_camera() {
    let other = HttpCamera::start(answering(|_| picture(7))).await;
    let elsewhere = format!("Location: http://localhost:{}/", other.address.port());
    let camera = HttpCamera::start(answering(move |request| match request.target.as_str() {
        "/moved" => answer("302 Found", &["Location: /deeper?channel=1"], b""),
        "/deeper?channel=1" => picture(3),
        "/loop" => answer("302 Found", &["Location: /loop"], b""),
        _ => answer("301 Moved Permanently", &[&elsewhere], b""),
    }))
    .await;
    let mut source = FrameSource::open(&address(&camera.url("/moved")), &every(20)).await.unwrap();
    assert_eq!(number(jpeg_of(&next(&mut source, 5).await)), 3);

    let options = SourceOptions { login: login(PASSWORD), ..every(20) };
    let error = fault(&camera.url("/away"), &options, 5).await;
    assert_eq!((error.kind(), error.needs_a_person()), ("camera_redirected", true));
    assert!(error.to_string().contains("http://localhost:"), "{error}");
    assert!(other.requests().is_empty(), "the other host was asked");
    assert_eq!(fault(&camera.url("/loop"), &every(20), 5).await.kind(), "camera_status");
}

#[tokio::test]
async fn a_picture_that_is_cut_is_noticed_counted_and_in_the_end_a_fault() {
    let cut = || {
        let whole = picture(1);
        whole[..whole.len() - 1000].to_vec()
    };
    let close_delimited = || [b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", &jpeg(1)[..2000]].concat();
    for cut in [cut(), close_delimited()] {
        let always = cut.clone();
        let camera = HttpCamera::start(answering(move |_| always.clone())).await;
        assert_eq!(fault(&camera.url("/"), &every(10), 5).await.kind(), "camera_damaged");

        let camera = HttpCamera::start(answering(move |request| match request.number % 2 {
            0 => picture(request.number as u32),
            _ => cut.clone(),
        }))
        .await;
        let mut source = FrameSource::open(&address(&camera.url("/")), &every(10)).await.unwrap();
        for _ in 0..4 {
            assert_eq!(number(jpeg_of(&next(&mut source, 5).await)) % 2, 0);
        }
        assert!(source.facts().damaged >= 3, "{:?}", source.facts());

        // From some time on, all are.
        let once = AtomicU32::new(0);
        let camera = HttpCamera::start(answering(move |_| match once.fetch_add(1, Ordering::Relaxed) {
            0 => picture(0),
            _ => close_delimited(),
        }))
        .await;
        assert_eq!(fault(&camera.url("/"), &every(10), 5).await.kind(), "camera_damaged");
        assert_eq!(camera.requests().len(), 11);
    }
}

#[tokio::test]
async fn a_picture_that_is_too_large_is_refused_before_it_is_read() {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 65 << 20);
    let camera = HttpCamera::start(answering(move |_| [head.as_bytes(), &jpeg(1)[..500]].concat())).await;
    let error = fault(&camera.url("/"), &every(10), 5).await;
    assert!(error.kind() == "camera_damaged" && error.to_string().contains("68157440 bytes"), "{error}");
}

#[tokio::test]
async fn every_style_of_stream_gives_every_picture() {
    let styles: [(&str, &str, &str, &str); 9] = [
        ("frame", "--frame\r\nContent-Type: image/jpeg\r\nContent-Length: LENGTH\r\n\r\n", "\r\n", "plain"),
        ("--frame", "--frame\r\nContent-Type: image/jpeg\r\nContent-Length: LENGTH\r\n\r\n", "\r\n", "dashes"),
        ("\"frame\"", "--frame\r\nContent-Type: image/jpeg\r\n\r\n", "\r\n", "quoted"),
        ("frame", "--frame\r\nContent-Type: image/jpeg\r\n\r\n", "\r\n", "no length"),
        ("frame", "--frame\r\n\r\n", "\r\n", "no headers"),
        ("frame", "--frame\nContent-Type: image/jpeg\n\n", "\n", "line feeds"),
        ("frame", "--frame\r\ncontent-type: image/jpeg\r\ncontent-length: LENGTH\r\n\r\n", "\r\n", "lower case"),
        ("frame", "ignore me\r\n\r\n--frame\r\n\r\n", "\r\n", "preamble"),
        ("frame", "--frame\r\nContent-Length: 5\r\n\r\n", "", "glued, with a wrong length"),
    ];
    for (boundary, before, after, name) in styles {
        let camera = HttpCamera::start(Arc::new(move |_, stream| {
            Box::pin(async move {
                let head = "HTTP/1.1 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=";
                stream.write_all(format!("{head}{boundary}\r\n\r\n").as_bytes()).await?;
                for number in 0..10 {
                    let jpeg = jpeg(number);
                    stream.write_all(before.replace("LENGTH", &jpeg.len().to_string()).as_bytes()).await?;
                    stream.write_all(&jpeg).await?;
                    stream.write_all(after.as_bytes()).await?;
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                Ok(false)
            })
        }))
        .await;
        let mut source = FrameSource::open(&address(&camera.url("/video")), &every(0)).await.unwrap();
        let mut last = 0;
        let end = loop {
            match within(5, source.next_frame()).await {
                Ok(Some(frame)) => last = number(jpeg_of(&frame)),
                Ok(None) => panic!("{name}: a camera has no end"),
                Err(error) => break error,
            }
        };
        let facts = source.facts();
        assert_eq!((end.kind(), last, facts.received, facts.damaged), ("camera_closed", 9, 10, 0), "{name}");
        assert_eq!((facts.codec.as_str(), facts.size_px), ("mjpeg", Some((320, 240))), "{name}");
    }
}

#[tokio::test]
async fn a_stream_that_does_not_say_so_is_one_all_the_same() {
    let camera = HttpCamera::start(Arc::new(|_, stream| {
        Box::pin(async move {
            stream.write_all(b"HTTP/1.0 200 OK\r\nContent-Type: image/jpeg\r\n\r\n").await?;
            for number in 0.. {
                stream.write_all(&jpeg(number)).await?;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Ok(false)
        })
    }))
    .await;
    let mut source = FrameSource::open(&address(&camera.url("/")), &every(100)).await.unwrap();
    assert!(number(jpeg_of(&next(&mut source, 5).await)) < number(jpeg_of(&next(&mut source, 5).await)));
    assert_eq!((source.facts().codec.as_str(), camera.requests().len()), ("mjpeg", 1));
}

#[tokio::test]
async fn of_sixty_pictures_a_second_those_that_are_due_are_given_and_the_newest_wins() {
    let camera = HttpCamera::start(streaming(Duration::from_micros(16_667), u32::MAX, b"")).await;
    let mut source = FrameSource::open(&address(&camera.url("/")), &every(250)).await.unwrap();
    let (begun, mut given) = (Instant::now(), 0);
    while begun.elapsed() < Duration::from_millis(2100) {
        next(&mut source, 5).await;
        given += 1;
    }
    assert!((7..=10).contains(&given), "{given} pictures in 2.1 s at four a second");
    let facts = source.facts();
    let rate = facts.frames_per_s.unwrap();
    assert!(facts.received > given * 5 && (20.0..70.0).contains(&rate), "{facts:?}");
    // Nobody takes any for a while: what is taken then is new, and one alone.
    let before = number(jpeg_of(&next(&mut source, 5).await));
    tokio::time::sleep(Duration::from_millis(1200)).await;
    let received = source.facts().received as u32;
    let newest = number(jpeg_of(&next(&mut source, 5).await));
    assert!(newest > before && received - newest < 25, "{before}, then {newest} of {received}");
}

#[tokio::test]
async fn a_stream_may_be_silent_between_pictures_but_not_within_one() {
    let between = HttpCamera::start(streaming(Duration::from_millis(10), 3, b"--frame\r\n")).await;
    let within_one =
        HttpCamera::start(streaming(Duration::from_millis(10), 3, b"--frame\r\n\r\n\xff\xd8\xff\xe0")).await;
    let unanswered = HttpCamera::start(Arc::new(|_, _| Box::pin(std::future::pending()))).await;
    let mut source = FrameSource::open(&address(&between.url("/")), &every(0)).await.unwrap();
    while !is_silent(&mut source, Duration::from_millis(500)).await {}
    assert_eq!(source.facts().received, 3);
    let (is_silent, stopped, hangs) = tokio::join!(
        is_silent(&mut source, Duration::from_secs(12)),
        async { fault(&within_one.url("/"), &every(0), 12).await },
        async { fault(&unanswered.url("/"), &every(0), 17).await },
    );
    assert!(is_silent, "a camera may send a picture in five minutes");
    assert_eq!((stopped.kind(), hangs.kind()), ("camera_timeout", "camera_timeout"));
    assert!(stopped.to_string().contains("the rest of a picture within 10 s"), "{stopped}");
}

#[tokio::test]
async fn damaged_pictures_of_a_stream_cost_nothing_but_themselves() {
    let camera = HttpCamera::start(Arc::new(|_, stream| {
        Box::pin(async move {
            stream.write_all(STREAM.as_bytes()).await?;
            for number in 0.. {
                let part = part(number);
                let length = if number % 3 == 1 { part.len() - 900 } else { part.len() };
                stream.write_all(&part[..length]).await?;
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Ok(false)
        })
    }))
    .await;
    let mut source = FrameSource::open(&address(&camera.url("/")), &every(0)).await.unwrap();
    while source.facts().damaged < 5 {
        assert_ne!(number(jpeg_of(&next(&mut source, 5).await)) % 3, 1, "a picture that was cut was given");
    }
}

#[tokio::test]
async fn a_certificate_must_be_of_an_authority_that_is_trusted() {
    let folder = tempfile::tempdir().unwrap();
    let (authority, config) = certificate();
    let camera = HttpCamera::start_encrypted(answering(|request| picture(request.number as u32)), config).await;
    let url = format!("https://{}/", camera.address);
    let error = fault(&url, &every(20), 10).await;
    assert_eq!((error.kind(), error.needs_a_person()), ("camera_certificate", true), "{error}");

    let (stranger, _) = certificate();
    let of =
        |pem: &str, name: &str| SourceOptions { authority: Some(file(&folder, name, pem.as_bytes())), ..every(20) };
    assert_eq!(fault(&url, &of(&stranger, "other.pem"), 10).await.kind(), "camera_certificate");
    let mut source = FrameSource::open(&address(&url), &of(&authority, "ca.pem")).await.unwrap();
    for _ in 0..3 {
        next(&mut source, 5).await;
    }
    // Another name than the certificate's.
    let named = format!("https://localhost:{}/", camera.address.port());
    assert_eq!(fault(&named, &of(&authority, "ca.pem"), 10).await.kind(), "camera_certificate");
    for (text, name) in [("", "empty.pem"), ("-----BEGIN CERTIFICATE-----\n!", "broken.pem")] {
        assert_eq!(fault(&url, &of(text, name), 10).await.kind(), "camera_unreadable", "{name}");
    }
    // Plain speech to an encrypted port, and the other way round.
    assert_eq!(fault(&camera.url("/"), &every(20), 10).await.kind(), "camera_closed");
    let plain = HttpCamera::start(answering(|_| picture(1))).await;
    let error = fault(&format!("https://{}/", plain.address), &every(20), 10).await;
    assert_eq!(error.kind(), "camera_unreachable", "{error}");
}
