//! What each worker, camera and link user may do on a server, asked of the server itself: every subject of the table, of its
//! own site and of another's, and every question to JetStream.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::Duration;

use harness::{TestWorld, WorldPlan, until};
use schemas::{CameraName, Role, SiteName};
use streams::cameras::CameraLogins;
use streams::permissions::SubjectPermissions;
use streams::server::{LINK_USER, Login, Server};
use streams::subject_table::SUBJECTS;
use streams::topology;

use crate::common::PATIENCE;

/// A client of the server that sees every refusal.
struct PermissionProbe {
    stream: TcpStream,
    answers: BufReader<TcpStream>,
}

impl PermissionProbe {
    fn connect(server: &Server, login: &Login) -> anyhow::Result<Self> {
        let url = server.url();
        let stream = TcpStream::connect(url.rsplit_once('/').unwrap().1)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut asker = Self { answers: BufReader::new(stream.try_clone()?), stream };
        asker.line()?;
        let words = serde_json::json!({
            "verbose": false, "pedantic": false, "headers": true, "user": login.user, "pass": login.password,
        });
        write!(asker.stream, "CONNECT {words}\r\nPING\r\n")?;
        let first = asker.line()?;
        anyhow::ensure!(first.starts_with("PONG"), "{first}");
        Ok(asker)
    }

    fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        Ok(line)
    }

    /// What is refused of these.
    fn refused(&mut self, verb: &str, subjects: &[String]) -> BTreeSet<String> {
        let mut refused = BTreeSet::new();
        for (number, chunk) in subjects.chunks(64).enumerate() {
            let mut asked = String::new();
            for (place, subject) in chunk.iter().enumerate() {
                match verb {
                    "PUB" => asked.push_str(&format!("PUB {subject} 2\r\n{{}}\r\n")),
                    // Taken back, so that what is heard does not come between.
                    _ => asked.push_str(&format!("SUB {subject} {0}\r\nUNSUB {0}\r\n", number * 64 + place)),
                }
            }
            self.stream.write_all(asked.as_bytes()).unwrap();
            self.stream.write_all(b"PING\r\n").unwrap();
            loop {
                let line = self.line().unwrap();
                if line.starts_with("PONG") {
                    break;
                }
                if let Some((_, rest)) = line.split_once("Permissions Violation for ") {
                    refused.insert(rest.split('"').nth(1).unwrap().to_owned());
                }
            }
        }
        refused
    }
}

/// Every verb of JetStream's interface (docs.nats.io, JetStream API reference) with a stream behind it.
const OF_STREAMS: [&str; 14] = [
    "STREAM.INFO",
    "STREAM.CREATE",
    "STREAM.UPDATE",
    "STREAM.DELETE",
    "STREAM.PURGE",
    "STREAM.SNAPSHOT",
    "STREAM.RESTORE",
    "STREAM.MSG.GET",
    "STREAM.MSG.DELETE",
    "STREAM.LEADER.STEPDOWN",
    "DIRECT.GET",
    "CONSUMER.NAMES",
    "CONSUMER.LIST",
    "CONSUMER.CREATE",
];
/// And with a stream and a consumer.
const OF_CONSUMERS: [&str; 7] = [
    "CONSUMER.INFO",
    "CONSUMER.CREATE",
    "CONSUMER.DURABLE.CREATE",
    "CONSUMER.DELETE",
    "CONSUMER.MSG.NEXT",
    "CONSUMER.PAUSE",
    "CONSUMER.LEADER.STEPDOWN",
];
const STREAMS: [&str; 19] = [
    topology::IMAGES,
    topology::ANSWERS,
    topology::OUTBOX,
    topology::LABELS,
    topology::LEARNED,
    topology::PINNED,
    topology::DEAD,
    topology::AUDIT,
    topology::VERIFY,
    topology::VERDICTS,
    topology::HARDCASES,
    topology::UPDATES,
    topology::ORDERS,
    topology::RELEASES,
    topology::SWAPS,
    "KV_ledger",
    "KV_fleet",
    "OBJ_blobs",
    "OBJ_cloud-blobs",
];

/// A subject of the table with a word in each place.
fn example(form: &str, site: &SiteName, camera: &CameraName) -> String {
    let token = |token: &str| match token {
        "SITE" => site.to_string(),
        "CAMERA" => camera.to_string(),
        token if token.starts_with(|first: char| first.is_ascii_uppercase()) => "x1".to_owned(),
        token => token.to_owned(),
    };
    form.split('.').map(token).collect::<Vec<_>>().join(".")
}

/// What is asked of JetStream and of the server.
fn questions(site: &SiteName) -> Vec<String> {
    let durables = [
        topology::recognizer_durable(site),
        topology::learner_durable(site),
        topology::promises_durable(site),
        topology::verdicts_durable(site),
        topology::VERIFIER.to_owned(),
        "another".to_owned(),
    ];
    let mut all: Vec<String> = ["INFO", "STREAM.NAMES", "STREAM.LIST", "ACCOUNT.PURGE.SITE", "META.LEADER.STEPDOWN"]
        .map(|verb| format!("$JS.API.{verb}"))
        .to_vec();
    for stream in STREAMS {
        all.extend(OF_STREAMS.map(|verb| format!("$JS.API.{verb}.{stream}")));
        for durable in &durables {
            all.extend(OF_CONSUMERS.map(|verb| format!("$JS.API.{verb}.{stream}.{durable}")));
            all.push(format!("$JS.ACK.{stream}.{durable}.1.1.1.1.1"));
        }
    }
    let notes =
        ["policy", "scale-recognizer", "scale-verifier", "fleet-root", "uplink-used", "release.m", "round.m", "x"];
    all.extend(notes.map(|key| format!("$KV.ledger.{key}")));
    all.extend(Role::AT_SITE.map(|role| format!("$KV.fleet.{}.w", role.as_str())));
    all.extend(Role::IN_CLOUD.map(|role| format!("$KV.fleet.{}.w", role.as_str())));
    all.extend(["$O.blobs.M.x", "$O.blobs.C.x", "$O.cloud-blobs.M.x", "$O.pinned-blobs.M.x"].map(str::to_owned));
    all.extend(
        [
            "$SYS.REQ.SERVER.PING",
            "$SYS.REQ.ACCOUNT.PING.CONNZ",
            "$SYS.REQ.SERVER.x.KICK",
            "$SYS.REQ.USER.INFO",
            "$MQTT.msgs.x",
            "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.IMAGES.x",
            "_INBOX.x",
            "_INBOX_courier.x",
            "answer-json.x.y.z",
            "camera-json.x.y.z",
        ]
        .map(str::to_owned),
    );
    all
}

const HEARD: [&str; 12] = [
    ">",
    "*",
    "image.>",
    "answer.>",
    "label.>",
    "outbox.>",
    "verify.>",
    "order.>",
    "_INBOX.>",
    "_INBOX_courier.>",
    "$JS.>",
    "$SYS.>",
];

/// A user of a server, and what the table says it may publish.
struct PermissionUser {
    name: String,
    login: Login,
    rights: SubjectPermissions,
    role: Role,
}

/// Asks everything, and returns how much that was.
fn ask_everything(server: &Server, user: &PermissionUser, own: &SiteName, camera: &CameraName) -> usize {
    let (other, other_camera): (SiteName, CameraName) = ("elsewhere".parse().unwrap(), "other-cam".parse().unwrap());
    let mut asker =
        PermissionProbe::connect(server, &user.login).unwrap_or_else(|error| panic!("{}: {error}", user.name));
    let mut asked = 0;
    // What the table says of each kind of subject, of the own site and of another.
    for (site, is_own) in [(own, true), (&other, false)] {
        for (camera, is_own_camera) in [(camera, true), (&other_camera, false)] {
            let subjects: Vec<String> = SUBJECTS.iter().map(|row| example(row.form, site, camera)).collect();
            let refused = asker.refused("PUB", &subjects);
            for (row, subject) in SUBJECTS.iter().zip(&subjects) {
                let of_everybody = !row.form.contains("SITE") || Role::IN_CLOUD.contains(&user.role);
                let of_camera = user.role != Role::Camera || is_own_camera;
                // A form may stand in two rows, and one row's subject may be another's, too.
                let is_publisher = SUBJECTS.iter().any(|other| {
                    other.publishers.contains(&user.role)
                        && streams::permissions::belongs_to(&other.pattern(None), subject)
                });
                let may = is_publisher && (is_own || of_everybody) && of_camera;
                assert_eq!(!refused.contains(subject), may, "{} on {subject} ({})", user.name, row.carries);
            }
            asked += subjects.len();
        }
    }
    let questions = questions(own);
    let refused = asker.refused("PUB", &questions);
    for question in &questions {
        let may = !refused.contains(question);
        assert_eq!(may, user.rights.may_publish(question), "{} on {question}", user.name);
        // Whatever the table of rights says, this is nobody's but the operator's.
        const NEVER: [&str; 9] = [
            "STREAM.CREATE",
            "STREAM.UPDATE",
            "STREAM.DELETE",
            "DURABLE.CREATE",
            "SNAPSHOT",
            "RESTORE",
            "STEPDOWN",
            "PAUSE",
            "$SYS.REQ.SERVER",
        ];
        // By the limit of its stream a janitor refuses images while there is no room.
        let is_refusal = user.role == Role::Janitor && question == "$JS.API.STREAM.UPDATE.IMAGES";
        let forbidden = NEVER.iter().any(|verb| question.contains(verb)) && !is_refusal;
        assert!(!(forbidden && may), "{} may {question}", user.name);
        if question.contains("PINNED") || question.contains("AUDIT") {
            let is_info =
                question.contains("INFO") || question.contains("CONSUMER.LIST") || Role::IN_CLOUD.contains(&user.role);
            assert!(!may || is_info, "{} may {question}", user.name);
        }
    }
    let heard = HEARD.map(str::to_owned);
    let refused = asker.refused("SUB", &heard);
    for pattern in &heard {
        assert_eq!(!refused.contains(pattern), user.rights.may_subscribe(pattern), "{} hears {pattern}", user.name);
        assert!(refused.contains(pattern) || !["*", ">", "_INBOX.>", "$JS.>", "$SYS.>"].contains(&pattern.as_str()));
    }
    asked + questions.len() + heard.len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_may_do_on_a_server_what_the_table_does_not_say() {
    let world = TestWorld::start(WorldPlan::leaves(1)).await.unwrap();
    let (site, hub) = (world.site(0), world.hub.as_ref().unwrap());
    let own = site.name.clone();
    let camera: CameraName = "gate-1".parse().unwrap();
    let store = world.folder().join(own.as_str());
    let mut cameras = CameraLogins::read(&store).unwrap();
    let password = cameras.add(&camera, &[], 1).unwrap().unwrap().reveal_password().to_owned();
    assert!(cameras.add(&camera, &[], 1).unwrap().is_none(), "one login a camera");
    assert!(cameras.save_logins(&store, &own).unwrap(), "the server was told");
    let login = Login { user: camera.to_string(), password };
    let known = until("the camera is known", PATIENCE, async || {
        Ok(PermissionProbe::connect(&site.server, &login).ok().map(|_| ()))
    });
    known.await.unwrap();
    let user = |server: &Server, role: Role, rights: SubjectPermissions| PermissionUser {
        name: format!("{} ({})", role.as_str(), server.url()),
        login: server.login(role).unwrap(),
        rights,
        role,
    };
    let mut asked = 0;
    for role in Role::AT_SITE {
        let rights = SubjectPermissions::of_role_at_site(role, &own, false).unwrap();
        asked += ask_everything(&site.server, &user(&site.server, role, rights), &own, &camera);
    }
    for role in Role::IN_CLOUD {
        let rights = SubjectPermissions::of_role_in_cloud(role).unwrap();
        asked += ask_everything(hub, &user(hub, role, rights), &own, &camera);
    }
    let rights = SubjectPermissions::of_camera(&own, &camera, &[]);
    let of_camera = PermissionUser { name: "camera".into(), login: login.clone(), rights, role: Role::Camera };
    asked += ask_everything(&site.server, &of_camera, &own, &camera);
    println!("{asked} cases");
    assert!(asked > 5000, "{asked}");
    // Nobody's name, another's password, and the link's user in the account of the site.
    let link = Login { user: LINK_USER.into(), password: site.server.link_password().unwrap().into() };
    let mut linked = PermissionProbe::connect(&site.server, &link).unwrap();
    let stored = async || streams::reader::stream_level(&site.bus, topology::IMAGES).await.unwrap().last_sequence;
    let before = stored().await;
    linked.refused("PUB", &["image.site-1.gate-1".to_owned()]);
    assert!(before > 0 && before == stored().await, "what comes over the link is not stored");
    let wrong = Login { user: camera.to_string(), password: link.password };
    PermissionProbe::connect(&site.server, &wrong).map(|_| ()).unwrap_err();
    // A camera that is taken away is cut off.
    let mut asker = PermissionProbe::connect(&site.server, &login).unwrap();
    assert!(cameras.remove(&camera) && cameras.save_logins(&store, &own).unwrap());
    let cut = until("the camera is cut off", PATIENCE, async || {
        let _gone = asker.stream.write_all(b"PING\r\n");
        let line = asker.line();
        Ok(line.map_or(true, |line| !line.starts_with("PONG")).then_some(()))
    });
    cut.await.unwrap();
    PermissionProbe::connect(&site.server, &login).map(|_| ()).unwrap_err();
    // These were refused on purpose.
    world.allow_refusals();
}
