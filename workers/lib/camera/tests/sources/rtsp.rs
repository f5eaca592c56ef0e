//! RTSP: GStreamer's server, its faults, and the network's.

use std::process::Command;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use camera::source::{FrameSource, SourceOptions};
use camera::{Frame, FramePicture, YuvPicture};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::http_camera::{HttpCamera, answering, certificate, picture};
use super::rtsp_camera::{RtspCamera, Spoiling, SpoilingProxy, children, has_packages};
use super::{PASSWORD, address, every, fault, file, is_silent, jpeg_of, login, next, within};

/// The server that most tests share, each with a mount of its own. It ends with this process.
fn shared() -> &'static RtspCamera {
    static SERVER: OnceLock<RtspCamera> = OnceLock::new();
    SERVER.get_or_init(|| {
        RtspCamera::start(&[
            "baseline=h264,baseline,5,640x480,10",
            "main=h264,main,5,640x480,10",
            "high=h264,high,5,640x480,10",
            "long=h264,high,600,320x240,10",
            "long-main=h264,main,600,320x240,10",
            "jpeg=jpeg,-,1,640x480,10",
            "h265=h265,plain,5,320x240,10",
            "h265-named=h265,plain,5,320x240,10",
            "h265-stopped=h265,plain,5,320x240,10",
            "h265-reordered=h265,reordered,10,320x240,10",
            "h265-long=h265,plain,600,320x240,10",
            "sixty=h264,baseline,30,320x240,60",
            "stall=h264,main,5,320x240,10",
            "size=h264,main,5,320x240,10",
            "size-jpeg=jpeg,-,1,320x240,10",
            "size-h265=h265,plain,5,320x240,10",
            "unkeyed=h264,main,10,320x240,10",
            "spoiled=h264,main,1,640x480,10",
            "spoiled-groups=h264,main,8,640x480,10",
            "clock=h264,baseline,10,320x240,10",
            "private=h264,baseline,5,320x240,10",
        ])
    })
}

async fn open(url: &str, options: &SourceOptions) -> FrameSource {
    let opened = within(15, FrameSource::open(&address(url), options)).await;
    opened.unwrap_or_else(|error| panic!("{url}: {error}"))
}

fn decoded(frame: &Frame) -> &YuvPicture {
    match &frame.picture {
        FramePicture::Yuv(picture) => picture,
        FramePicture::Jpeg(_) => panic!("a JPEG, where a decoded picture was expected"),
    }
}

/// Whether this is the test picture: a bright ball on black.
fn shows_the_ball(picture: &YuvPicture) -> bool {
    let (width, height) = (picture.width_px, picture.height_px);
    let bright = picture.y.iter().filter(|sample| **sample > 150).count();
    let dark = picture.y.iter().filter(|sample| **sample < 40).count();
    let is_gray = [&picture.u, &picture.v].iter().all(|plane| plane.iter().all(|sample| (118..=138).contains(sample)));
    assert_eq!(
        (picture.y.len(), picture.u.len(), picture.v.len()),
        (width * height, width * height / 4, width * height / 4)
    );
    is_gray && (width * height / 20..width * height / 4).contains(&bright) && dark > width * height * 3 / 4
}

#[tokio::test]
async fn each_profile_of_h264_is_decoded_from_key_frames() {
    if !has_packages() {
        return;
    }
    tokio::join!(decodes("baseline"), decodes("main"), decodes("high"));
}

async fn decodes(profile: &str) {
    let mut source = open(&shared().url(profile), &every(500)).await;
    next(&mut source, 10).await;
    let begun = Instant::now();
    for _ in 0..6 {
        let frame = next(&mut source, 5).await;
        let picture = decoded(&frame);
        assert_eq!((picture.width_px, picture.height_px), (640, 480));
        assert!(shows_the_ball(picture), "{profile}");
    }
    let (elapsed, facts) = (begun.elapsed().as_secs_f32(), source.facts());
    assert!((2.2..4.0).contains(&elapsed), "{profile}: six half seconds took {elapsed} s");
    assert_eq!((facts.codec.as_str(), facts.size_px, facts.damaged), ("h264", Some((640, 480)), 0), "{profile}");
    let (rate, distance) = (facts.frames_per_s.unwrap(), facts.key_frame_distance_s.unwrap());
    assert!((8.0..12.5).contains(&rate) && (0.4..0.62).contains(&distance), "{profile}: {facts:?}");
}

#[tokio::test]
async fn a_client_that_comes_between_two_key_frames_waits_for_the_next() {
    if !has_packages() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let film = folder.path().join("film.h264");
    let made = Command::new("ffmpeg")
        .args([
            "-nostdin",
            "-loglevel",
            "error",
            "-f",
            "lavfi",
            "-i",
            "testsrc2=size=320x240:rate=10",
            "-frames:v",
            "80",
        ])
        .args(["-pix_fmt", "yuv420p", "-c:v", "libx264", "-bf", "0", "-g", "20", "-sc_threshold", "0"])
        .arg(&film)
        .status();
    assert!(made.unwrap().success());
    let camera = RtspCamera::start(&[&format!("loop=loop,{},10", film.display())]);
    let url = camera.url("loop");
    let first_wait = async || {
        let begun = Instant::now();
        let mut source = open(&url, &every(1000)).await;
        let picture = next(&mut source, 10).await;
        let waited = begun.elapsed().as_secs_f32();
        assert_eq!((decoded(&picture).width_px, decoded(&picture).height_px), (320, 240));
        // Past the end of the film, which is followed by its beginning.
        for _ in 0..5 {
            next(&mut source, 4).await;
        }
        assert_eq!(source.facts().damaged, 0);
        waited
    };
    let (one, two, three, four) = tokio::join!(first_wait(), first_wait(), first_wait(), first_wait());
    let mut waits = [one, two, three, four];
    waits.sort_by(f32::total_cmp);
    // Each comes in at another place: of four, two at least are half a second apart.
    assert!(waits[3] < 4.0 && waits[3] - waits[0] > 0.5, "{waits:?}");
}

#[tokio::test]
async fn where_key_frames_are_a_minute_apart_pictures_come_all_the_same() {
    if !has_packages() {
        return;
    }
    tokio::join!(goes_on("long-main"), goes_on("long"));
}

async fn goes_on(mount: &str) {
    let mut source = open(&shared().url(mount), &every(500)).await;
    next(&mut source, 10).await;
    let begun = Instant::now();
    let mut times = Vec::new();
    let mut pictures = Vec::new();
    for _ in 0..6 {
        let frame = next(&mut source, 5).await;
        assert!(shows_the_ball(decoded(&frame)), "{mount}");
        times.push(begun.elapsed().as_secs_f32());
        pictures.push(decoded(&frame).y.clone());
    }
    // A pause until it is known that no key frame comes, and then the wanted rate.
    assert!((2.0..4.0).contains(&times[0]), "{mount}: {times:?}");
    assert!(times.windows(2).all(|pair| pair[1] - pair[0] < 1.2), "{mount}: {times:?}");
    assert!(pictures.windows(2).all(|pair| pair[0] != pair[1]), "{mount}: the ball stands still");
    assert_eq!((source.facts().damaged, source.facts().key_frame_distance_s), (0, None), "{mount}");
}

#[tokio::test]
async fn a_stream_without_key_frames_is_silent_and_the_silence_is_named() {
    if !has_packages() {
        return;
    }
    let proxy = SpoilingProxy::start(shared().port, Spoiling::KeyFrames).await;
    let url = format!("rtsp://127.0.0.1:{}/unkeyed", proxy.port);
    let (mut source, waited) = (open(&url, &every(300)).await, Duration::from_secs(3));
    assert!(is_silent(&mut source, waited).await);
    let fault = source.silence(&address(&url), waited);
    assert_eq!(fault.kind(), "camera_no_key_frame");
    assert!(fault.to_string().contains("for 3 s, although") && fault.remedy().contains("GOP"), "{fault}");
    assert!(source.facts().received > 10, "{:?}", source.facts());
    // With key frames a silence is one.
    let mut source = open(&shared().url("unkeyed"), &every(300)).await;
    next(&mut source, 10).await;
    assert_eq!(source.silence(&address(&url), waited).kind(), "camera_silent");
}

#[tokio::test]
async fn jpegs_are_passed_on_as_they_are() {
    if !has_packages() {
        return;
    }
    let mut source = open(&shared().url("jpeg"), &every(300)).await;
    for _ in 0..4 {
        let frame = next(&mut source, 10).await;
        let size = vision::dimensions(jpeg_of(&frame)).unwrap();
        assert_eq!((size.1, size.2), (640, 480));
    }
    let facts = source.facts();
    assert_eq!((facts.codec.as_str(), facts.size_px, facts.key_frame_distance_s), ("mjpeg", Some((640, 480)), None));
}

#[tokio::test]
async fn h265_is_decoded_by_ffmpeg() {
    if !has_packages() {
        return;
    }
    tokio::join!(is_decoded("h265", 500), is_decoded("h265-reordered", 1000), is_decoded("h265-long", 500));
}

async fn is_decoded(mount: &str, interval_ms: u64) {
    let mut source = open(&shared().url(mount), &every(interval_ms)).await;
    next(&mut source, 10).await;
    let mut gaps = Vec::new();
    for _ in 0..6 {
        let begun = Instant::now();
        let frame = next(&mut source, 10).await;
        gaps.push(begun.elapsed().as_secs_f32());
        let size = vision::dimensions(jpeg_of(&frame)).unwrap();
        assert_eq!((size.1, size.2), (320, 240), "{mount}");
    }
    assert!(gaps[2..].iter().all(|gap| *gap < 2.2), "{mount}: {gaps:?}");
    let facts = source.facts();
    assert_eq!((facts.codec.as_str(), facts.damaged), ("h265", 0), "{mount}: {facts:?}");
}

#[tokio::test]
async fn h265_without_ffmpeg_is_named() {
    if !has_packages() {
        return;
    }
    let options = SourceOptions { ffmpeg: Some("/no/such/ffmpeg".into()), ..every(500) };
    let error = fault(&shared().url("h265"), &options, 10).await;
    assert_eq!((error.kind(), error.needs_a_person()), ("camera_needs_ffmpeg", true));
    assert!(error.to_string().contains("h265 needs the program ffmpeg"), "{error}");
}

#[tokio::test]
async fn ffmpeg_sees_neither_address_nor_login_and_ends_with_its_source() {
    if !has_packages() {
        return;
    }
    let camera = RtspCamera::start_with(
        &["secret-mount=h265,plain,5,320x240,10"],
        &["--user", "viewer", "--password", PASSWORD],
    );
    let options = SourceOptions { login: login(PASSWORD), ..every(300) };
    let mut source = open(&camera.url("secret-mount"), &options).await;
    next(&mut source, 10).await;
    let fed = |children: Vec<super::rtsp_camera::Process>| {
        children.into_iter().filter(|child| child.arguments.contains("-f hevc")).collect::<Vec<_>>()
    };
    let before = fed(children("ffmpeg"));
    assert!(!before.is_empty());
    for child in &before {
        let shown = &child.arguments;
        assert!(
            !shown.contains(PASSWORD) && !shown.contains("secret-mount") && !shown.contains("127.0.0.1"),
            "{shown}"
        );
    }
    drop(source);
    let ended = async {
        // Other tests have some of their own: one less.
        while before.iter().all(|child| std::fs::exists(format!("/proc/{}", child.id)).unwrap()) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within(5, ended).await;
}

#[tokio::test]
async fn an_ffmpeg_that_is_stopped_is_ended_and_replaced() {
    if !has_packages() {
        return;
    }
    // An ffmpeg of its own, to be told from those of other tests.
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("ffmpeg-stopped");
    let path = std::env::var_os("PATH").unwrap();
    let found = std::env::split_paths(&path).map(|folder| folder.join("ffmpeg")).find(|path| path.is_file()).unwrap();
    std::os::unix::fs::symlink(found, &program).unwrap();
    let options = SourceOptions { ffmpeg: Some(program), ..every(300) };
    let mut source = open(&shared().url("h265-stopped"), &options).await;
    next(&mut source, 10).await;
    let child = Pid::from_raw(children("ffmpeg-stopped").first().unwrap().id);
    kill(child, Signal::SIGSTOP).unwrap();
    let _already_there = tokio::time::timeout(Duration::from_millis(300), source.next_frame()).await;
    for _ in 0..3 {
        next(&mut source, 10).await;
    }
    assert!(children("ffmpeg-stopped").iter().all(|running| running.id != child.as_raw()), "it is still there");
    drop(source);
    within(5, async {
        while !children("ffmpeg-stopped").is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_wrong_password_a_missing_one_and_an_unknown_path_are_told_apart() {
    if !has_packages() {
        return;
    }
    let camera = RtspCamera::start_with(
        &["main=h264,main,5,320x240,10"],
        &["--user", "viewer", "--password", "another password"],
    );
    let wrong = SourceOptions { login: login(PASSWORD), ..every(300) };
    let error = fault(&camera.url("main"), &wrong, 10).await;
    assert_eq!((error.kind(), error.needs_a_person()), ("camera_login", true));
    let error = fault(&camera.url("main"), &every(300), 10).await;
    assert!(error.kind() == "camera_login" && error.to_string().contains("none is given"), "{error}");
    let in_address = format!("rtsp://viewer:{PASSWORD}@127.0.0.1:{}/main", camera.port);
    assert_eq!(fault(&in_address, &every(300), 10).await.kind(), "camera_login");

    let right = SourceOptions { login: login("another password"), ..every(300) };
    next(&mut open(&camera.url("main"), &right).await, 10).await;
    let error = fault(&camera.url("no-such-mount"), &right, 10).await;
    assert_eq!((error.kind(), error.needs_a_person()), ("camera_path_unknown", true), "{error}");
}

#[tokio::test]
async fn a_server_that_is_killed_closes_and_is_there_again_after_a_restart() {
    if !has_packages() {
        return;
    }
    let mount = ["main=h264,main,5,320x240,10"];
    let camera = RtspCamera::start(&mount);
    let (url, port) = (camera.url("main"), camera.port.to_string());
    let mut source = open(&url, &every(300)).await;
    next(&mut source, 10).await;
    camera.signal(Signal::SIGKILL);
    let ended = async {
        loop {
            if let Err(error) = source.next_frame().await {
                return error;
            }
        }
    };
    assert_eq!(within(5, ended).await.kind(), "camera_closed");
    assert_eq!(source.next_frame().await.unwrap_err().kind(), "camera_closed", "and it stays so");
    drop(camera);
    assert_eq!(fault(&url, &every(300), 5).await.kind(), "camera_unreachable");

    let _again = RtspCamera::start_with(&mount, &["--port", &port]);
    let begun = Instant::now();
    next(&mut open(&url, &every(300)).await, 10).await;
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?} to the first picture", begun.elapsed());
}

#[tokio::test]
async fn a_server_that_is_stopped_is_silent_and_goes_on_afterwards() {
    if !has_packages() {
        return;
    }
    let camera = RtspCamera::start(&["main=h264,main,5,320x240,10"]);
    let mut source = open(&camera.url("main"), &every(200)).await;
    next(&mut source, 10).await;
    camera.signal(Signal::SIGSTOP);
    let _already_there = tokio::time::timeout(Duration::from_millis(300), source.next_frame()).await;
    assert!(is_silent(&mut source, Duration::from_secs(3)).await);
    camera.signal(Signal::SIGCONT);
    next(&mut source, 5).await;
    // A stopped server accepts connections, but does not answer.
    camera.signal(Signal::SIGSTOP);
    let error = fault(&camera.url("main"), &every(200), 12).await;
    assert_eq!(error.kind(), "camera_timeout");
    assert!(error.to_string().contains("DESCRIBE within 10 s"), "{error}");
}

#[tokio::test]
async fn a_stall_is_silent_and_a_dropped_session_closes() {
    if !has_packages() {
        return;
    }
    let mut source = open(&shared().url("stall"), &every(200)).await;
    next(&mut source, 10).await;
    shared().control("/stall/stall");
    let _already_there = tokio::time::timeout(Duration::from_millis(500), source.next_frame()).await;
    assert!(is_silent(&mut source, Duration::from_secs(4)).await);
    shared().control("/flow/stall");
    next(&mut source, 5).await;

    let camera = RtspCamera::start(&["main=h264,main,5,320x240,10"]);
    let mut source = open(&camera.url("main"), &every(0)).await;
    next(&mut source, 10).await;
    camera.control("/drop");
    let ended = async {
        loop {
            if let Err(error) = source.next_frame().await {
                return error;
            }
        }
    };
    assert_eq!(within(5, ended).await.kind(), "camera_closed");
}

#[tokio::test]
async fn another_size_in_the_running_stream_gives_pictures_of_that_size() {
    if !has_packages() {
        return;
    }
    tokio::join!(is_resized("size"), is_resized("size-jpeg"), is_resized("size-h265"));
}

async fn is_resized(mount: &str) {
    let mut source = open(&shared().url(mount), &every(200)).await;
    next(&mut source, 10).await;
    assert_eq!(source.facts().size_px, Some((320, 240)), "{mount}");
    shared().control(&format!("/size/{mount}/640x360"));
    let resized = async {
        loop {
            let frame = next(&mut source, 5).await;
            let size = match &frame.picture {
                FramePicture::Yuv(picture) => (picture.width_px as u32, picture.height_px as u32),
                FramePicture::Jpeg(bytes) => vision::dimensions(bytes).map(|size| (size.1, size.2)).unwrap(),
            };
            assert!(size == (320, 240) || size == (640, 360), "{mount}: {size:?}");
            if size == (640, 360) {
                return;
            }
        }
    };
    within(10, resized).await;
    assert_eq!((source.facts().size_px, source.facts().damaged), (Some((640, 360)), 0), "{mount}");
}

#[tokio::test]
async fn of_sixty_pictures_a_second_only_those_that_are_due_are_given() {
    if !has_packages() {
        return;
    }
    let mut source = open(&shared().url("sixty"), &every(1000)).await;
    next(&mut source, 10).await;
    let (begun, before) = (Instant::now(), source.facts().received);
    for _ in 0..3 {
        next(&mut source, 5).await;
    }
    let elapsed = begun.elapsed().as_secs_f32();
    assert!((2.4..4.5).contains(&elapsed), "three seconds took {elapsed} s");
    let facts = source.facts();
    assert!(facts.received - before > 100, "{facts:?}");
    assert!((40.0..75.0).contains(&facts.frames_per_s.unwrap()), "{facts:?}");
}

#[tokio::test]
async fn spoiled_packets_are_counted_and_cost_no_more_than_their_pictures() {
    if !has_packages() {
        return;
    }
    for (mount, nth) in [("spoiled", 7), ("spoiled-groups", 11)] {
        let proxy = SpoilingProxy::start(shared().port, Spoiling::EveryNth(nth)).await;
        let url = format!("rtsp://127.0.0.1:{}/{mount}", proxy.port);
        let mut source = open(&url, &every(0)).await;
        let seen = async {
            let mut given = 0;
            while source.facts().damaged < 2 || given < 4 {
                let frame = next(&mut source, 10).await;
                assert_eq!((decoded(&frame).width_px, decoded(&frame).height_px), (640, 480));
                given += 1;
            }
        };
        within(20, seen).await;
    }
    // Where all are spoiled, it is a fault.
    let proxy = SpoilingProxy::start(shared().port, Spoiling::EveryNth(1)).await;
    let error = fault(&format!("rtsp://127.0.0.1:{}/spoiled", proxy.port), &every(0), 20).await;
    assert_eq!(error.kind(), "camera_damaged", "{error}");
}

#[tokio::test]
async fn the_cameras_clock_is_told_once_it_is_known() {
    if !has_packages() {
        return;
    }
    let mut source = open(&shared().url("clock"), &every(200)).await;
    let told = async {
        loop {
            let frame = next(&mut source, 10).await;
            let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
            assert!(frame.arrived_at_ms.abs_diff(now_ms) < 2000);
            if let Some(camera_at_ms) = frame.camera_at_ms {
                return frame.arrived_at_ms.abs_diff(camera_at_ms);
            }
        }
    };
    let apart_ms = within(15, told).await;
    assert!(apart_ms < 3000, "the same machine's clock is off by {apart_ms} ms");
}

#[tokio::test]
async fn what_does_not_speak_rtsp_is_named() {
    let web = HttpCamera::start(answering(|_| picture(0))).await;
    let error = fault(&format!("rtsp://{}/", web.address), &every(200), 12).await;
    assert!(["camera_no_picture", "camera_closed"].contains(&error.kind()), "{error}");
    let refused = format!("rtsp://{}/", web.address);
    drop(web);
    assert_eq!(fault(&refused, &every(200), 5).await.kind(), "camera_unreachable");
}

/// An encrypted port in front of an RTSP server.
async fn encrypted_port(server_port: u16, config: rustls::ServerConfig) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let Ok(mut client) = acceptor.accept(client).await else { continue };
            let mut server = TcpStream::connect(("127.0.0.1", server_port)).await.unwrap();
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut client, &mut server).await });
        }
    });
    port
}

#[tokio::test]
async fn an_encrypted_stream_needs_an_authority_that_is_trusted() {
    if !has_packages() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (authority, config) = certificate();
    let port = encrypted_port(shared().port, config).await;
    let url = format!("rtsps://127.0.0.1:{port}/private");
    let error = fault(&url, &every(300), 10).await;
    assert_eq!((error.kind(), error.needs_a_person()), ("camera_certificate", true), "{error}");
    let options = SourceOptions { authority: Some(file(&folder, "ca.pem", authority.as_bytes())), ..every(300) };
    let mut source = open(&url, &options).await;
    for _ in 0..3 {
        assert!(shows_the_ball(decoded(&next(&mut source, 10).await)));
    }
    // Plain speech behind an address that promises encryption.
    let error = fault(&shared().url("private").replace("rtsp://", "rtsps://"), &every(300), 10).await;
    assert!(["camera_unreachable", "camera_timeout"].contains(&error.kind()), "{error}");
}
