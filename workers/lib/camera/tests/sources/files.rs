//! Stills and video files.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use camera::source::{FrameSource, SourceOptions};

use super::http_camera::{jpeg, number};
use super::rtsp_camera::{children, has_packages};
use super::{address, every, fault, file, jpeg_of, next, path_text, within};

#[tokio::test]
async fn stills_come_in_the_order_of_their_names_and_then_end() {
    let folder = tempfile::tempdir().unwrap();
    for (name, still) in [("b.jpg", 2), ("a.JPEG", 1), ("d.jpg", 4), ("ü c.jpg", 5)] {
        file(&folder, name, &jpeg(still));
    }
    file(&folder, "c.jpg", &jpeg(3)[..2000]);
    file(&folder, "notes.txt", b"no picture");
    std::fs::create_dir(folder.path().join("folder.jpg")).unwrap();
    let mut source = FrameSource::open(&address(path_text(folder.path())), &every(100)).await.unwrap();
    let begun = Instant::now();
    for expected in [1, 2, 4, 5] {
        assert_eq!(number(jpeg_of(&next(&mut source, 5).await)), expected);
    }
    let elapsed = begun.elapsed();
    assert!((290..2000).contains(&elapsed.as_millis()), "three intervals took {elapsed:?}");
    assert!(source.next_frame().await.unwrap().is_none() && source.next_frame().await.unwrap().is_none());
    let facts = source.facts();
    assert_eq!((facts.received, facts.damaged, facts.size_px), (5, 1, Some((320, 240))));
}

#[tokio::test]
async fn a_wait_for_a_still_may_be_given_up_without_losing_it() {
    let folder = tempfile::tempdir().unwrap();
    for still in 0..2 {
        file(&folder, &format!("{still}.jpg"), &jpeg(still));
    }
    let mut source = FrameSource::open(&address(path_text(folder.path())), &every(300)).await.unwrap();
    next(&mut source, 5).await;
    assert!(tokio::time::timeout(Duration::from_millis(50), source.next_frame()).await.is_err());
    assert_eq!(number(jpeg_of(&next(&mut source, 5).await)), 1);
}

#[tokio::test]
async fn a_single_picture_is_given_once() {
    let folder = tempfile::tempdir().unwrap();
    // A name without the usual ending: its contents decide.
    let path = file(&folder, "picture", &[&jpeg(8)[..], b"trailing bytes"].concat());
    let mut source = FrameSource::open(&address(path_text(&path)), &every(0)).await.unwrap();
    assert_eq!(jpeg_of(&next(&mut source, 5).await), jpeg(8));
    assert!(source.next_frame().await.unwrap().is_none());
}

#[tokio::test]
async fn what_cannot_be_read_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let (empty, damaged) = (folder.path().join("empty"), folder.path().join("damaged"));
    std::fs::create_dir(&empty).unwrap();
    std::fs::create_dir(&damaged).unwrap();
    std::fs::write(damaged.join("a.jpg"), b"no picture").unwrap();
    for path in [folder.path().join("missing.mp4"), empty, damaged, PathBuf::from("/dev/video-none")] {
        let error = fault(path_text(&path), &every(0), 10).await;
        assert_eq!(error.kind(), "camera_unreadable", "{error}");
        assert!(error.to_string().contains(path_text(&path)), "{error}");
    }
    let missing = SourceOptions { ffmpeg: Some("/no/such/ffmpeg".into()), ..every(0) };
    let video = file(&folder, "film.mp4", b"\0\0\0\x20ftypisom");
    let error = fault(path_text(&video), &missing, 10).await;
    assert_eq!((error.kind(), error.needs_a_person()), ("camera_needs_ffmpeg", true));
    assert!(error.to_string().contains("a video file needs the program ffmpeg"), "{error}");
}

#[tokio::test]
async fn a_video_is_played_at_its_own_speed_and_ends() {
    if !has_packages() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    // A name that could be an address, and one that could be an option.
    let film = folder.path().join("-http:film.mp4");
    let made = Command::new("ffmpeg")
        .args("-nostdin -loglevel error -f lavfi -i testsrc=size=320x240:rate=10 -t 3 -g 30 -c:v libx264".split(' '))
        .arg(format!("file:{}", film.display()))
        .status();
    assert!(made.unwrap().success());
    let mut source = FrameSource::open(&address(path_text(&film)), &every(500)).await.unwrap();
    let (begun, mut given) = (Instant::now(), 0);
    while let Some(frame) = within(20, source.next_frame()).await.unwrap() {
        assert!(jpeg_of(&frame).len() > 1000);
        given += 1;
    }
    assert_eq!(given, 6, "one each half second of three seconds");
    assert!(begun.elapsed() >= Duration::from_millis(2300), "{:?}", begun.elapsed());
    assert_eq!((source.facts().codec.as_str(), source.facts().size_px), ("video", Some((320, 240))));

    let text = file(&folder, "film.txt", b"not a film at all");
    let error = fault(path_text(&text), &every(0), 10).await;
    assert_eq!(error.kind(), "camera_unreadable", "{error}");

    // A film that is left ends its ffmpeg.
    let mut source = FrameSource::open(&address(path_text(&film)), &every(0)).await.unwrap();
    next(&mut source, 10).await;
    let name = path_text(&film);
    assert!(children("ffmpeg").iter().any(|child| child.arguments.contains(name)));
    drop(source);
    within(5, async {
        while children("ffmpeg").iter().any(|child| child.arguments.contains(name)) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}
