//! What a user may publish and subscribe to, as the server's own permissions. Made from the subjects and names in this
//! crate, so that no permission names something that does not exist.

use schemas::{CameraName, Role, SiteName};

use crate::subject_table::published_by;
use crate::topology::{
    ADVISORIES, ANSWERS, BLOBS, CAMERAS, CLOUD_BLOBS, FLEET, HARDCASES, IMAGES, LABELS, LEARNED, LEDGER, ORDERS,
    OUTBOX, RELEASES, ROUNDS, SWAPS, UPDATES, VERDICTS, VERIFIER, VERIFY, learner_durable, orders_durable,
    promises_durable, recognizer_durable, rounds_durable, sent_blobs, verdicts_durable,
};

/// Default JetStream domain of the cloud.
pub const CLOUD_DOMAIN: &str = "cloud";

/// Subjects that a user may publish and subscribe to, with wildcards. The server refuses everything else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubjectPermissions {
    /// Subjects it may publish on.
    pub publish: Vec<String>,
    /// Exceptions: subjects on which it may not publish even so.
    pub never: Vec<String>,
    /// Subjects it may subscribe to.
    pub subscribe: Vec<String>,
}

impl SubjectPermissions {
    /// Permissions of a site in the cloud: send up its own messages, fetch those addressed to it, read what the cloud
    /// offers to every site. They cover what its courier does, and no more: none creates, changes, purges or reads a
    /// whole stream, and none names another site.
    pub fn of_site_in_cloud(site: &SiteName, domain: &str) -> Self {
        Self::of_site_behind(site, &format!("$JS.{domain}.API"))
    }

    /// The same, with `api` as the prefix of requests to the cloud's JetStream.
    fn of_site_behind(site: &SiteName, api: &str) -> Self {
        let api = |rest: String| format!("{api}.{rest}");
        let sent = sent_blobs(site);
        let mark = format!("$KV.{LEDGER}.{}", mark_key(site));
        let durables =
            [(VERDICTS, verdicts_durable(site)), (UPDATES, rounds_durable(site)), (ORDERS, orders_durable(site))];
        let mut publish = published_by(Role::Site, Some(site));
        publish.extend([
            // Large images and weights, in a bucket of its own.
            format!("$O.{sent}.C.*"),
            format!("$O.{sent}.M.*"),
            api(format!("STREAM.INFO.OBJ_{sent}")),
            api(format!("STREAM.PURGE.OBJ_{sent}")),
            api(format!("DIRECT.GET.OBJ_{sent}.$O.{sent}.M.*")),
            // Packages and weights that the cloud offers.
            api(format!("DIRECT.GET.OBJ_{CLOUD_BLOBS}")),
            api(format!("DIRECT.GET.OBJ_{CLOUD_BLOBS}.$O.{CLOUD_BLOBS}.M.*")),
            // The load of the verifiers, and whether the cloud responds at all.
            api("INFO".into()),
            api(format!("CONSUMER.INFO.{VERIFY}.{VERIFIER}")),
            api(format!("DIRECT.GET.KV_{FLEET}")),
            // The mark by which it notices another site of its name.
            api(format!("DIRECT.GET.KV_{LEDGER}.{mark}")),
            api(mark.clone()),
            // The root it trusts.
            api(format!("DIRECT.GET.KV_{LEDGER}.$KV.{LEDGER}.{ROOT_KEY}")),
        ]);
        for (stream, durable) in durables {
            publish.push(api(format!("CONSUMER.INFO.{stream}.{durable}")));
            publish.push(api(format!("CONSUMER.MSG.NEXT.{stream}.{durable}")));
            publish.push(format!("$JS.ACK.{stream}.{durable}.>"));
        }
        Self { publish, never: Vec::new(), subscribe: vec![format!("{}.>", inbox_prefix(site))] }
    }

    /// Permissions of a worker at its site. `is_alone`: site and cloud share the server, so a courier needs the
    /// permissions of a site in the cloud there.
    pub fn of_role_at_site(role: Role, site: &SiteName, is_alone: bool) -> Option<Self> {
        let duties = duties_at_site(role, site)?;
        let mut publish = published_by(role, Some(site));
        publish.extend(of_every_worker(role));
        publish.push(format!("$KV.{LEDGER}.*"));
        publish.extend(duties.notes.iter().map(|key| format!("$KV.{LEDGER}.{key}")));
        publish.extend(duties.reads.iter().flat_map(|stream| reads(stream)));
        publish.extend(duties.looks.iter().flat_map(|stream| looks(stream)));
        for (stream, durable) in &duties.takes {
            publish.push(format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{durable}"));
            publish.push(format!("$JS.ACK.{stream}.{durable}.>"));
        }
        publish.extend(duties.deletes.iter().map(|stream| format!("$JS.API.STREAM.MSG.DELETE.{stream}")));
        publish.extend(duties.purges.iter().map(|stream| format!("$JS.API.STREAM.PURGE.{stream}")));
        if role == Role::Janitor {
            // It makes the stream refuse images while the disk is full, by lowering its limit.
            publish.push(format!("$JS.API.STREAM.UPDATE.{IMAGES}"));
        }
        if duties.stores_blobs {
            // An upload of the same name replaces the one before.
            publish.extend([format!("$O.{BLOBS}.C.*"), format!("$O.{BLOBS}.M.*")]);
            publish.push(format!("$JS.API.STREAM.PURGE.OBJ_{BLOBS}"));
        }
        let mut subscribe = vec![format!("{}.>", role_inbox(role.as_str()))];
        subscribe.extend(duties.subscribes);
        if is_alone && matches!(role, Role::Courier | Role::Janitor) {
            publish.extend(Self::of_site_behind(site, "$JS.API").publish);
        }
        publish.sort();
        publish.dedup();
        // Workers may not write a person's decisions, and only the courier may write the root.
        let couriers = COURIERS_NOTES.iter().filter(|_| role != Role::Courier);
        let never = OPERATORS_NOTES.iter().chain(couriers).map(|key| format!("$KV.{LEDGER}.{key}")).collect();
        Some(Self { publish, never, subscribe })
    }

    /// Permissions of all cameras of a site together.
    pub fn of_cameras(site: &SiteName) -> Self {
        Self { publish: published_by(Role::Camera, Some(site)), never: Vec::new(), subscribe: Vec::new() }
    }

    /// Permissions of a camera: publish images under its own name and those of the cameras it publishes for, and
    /// receive the acknowledgements.
    pub fn of_camera(site: &SiteName, camera: &CameraName, also: &[CameraName]) -> Self {
        let publish = std::iter::once(camera).chain(also).map(|camera| crate::subject::image(site, camera)).collect();
        Self { publish, never: Vec::new(), subscribe: vec![format!("{}.>", role_inbox(camera.as_str()))] }
    }

    /// Permissions of a role in the cloud; `None` for roles without limits there. Roles read the cloud's streams,
    /// create consumers of their own, and publish their own messages; none creates, changes, purges or deletes a
    /// stream.
    pub fn of_role_in_cloud(role: Role) -> Option<Self> {
        let (read, taken, deleted): (&[&str], &[(&str, &str)], &[&str]) = match role {
            // Requests redelivered after they were answered are deleted.
            Role::Verifier => (&[VERIFY, ORDERS], &[(VERIFY, VERIFIER)], &[VERIFY]),
            Role::Aggregator => (&[UPDATES, ROUNDS, RELEASES, SWAPS, HARDCASES], &[], &[]),
            Role::Releaser => (&[RELEASES, ORDERS, SWAPS, ROUNDS, UPDATES], &[], &[]),
            _ => return None,
        };
        let mut publish = published_by(role, None);
        publish.extend(of_every_worker(role));
        publish.extend(read.iter().flat_map(|stream| reads(stream)));
        for (stream, durable) in taken {
            publish.push(format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{durable}"));
            publish.push(format!("$JS.ACK.{stream}.{durable}.>"));
        }
        publish.extend(deleted.iter().map(|stream| format!("$JS.API.STREAM.MSG.DELETE.{stream}")));
        // What sites sent up and what the cloud offers: a bucket for each site.
        publish.extend(["$JS.API.DIRECT.GET.*".to_owned(), "$JS.API.DIRECT.GET.*.$O.>".to_owned()]);
        if role != Role::Verifier {
            publish.extend([format!("$O.{CLOUD_BLOBS}.C.*"), format!("$O.{CLOUD_BLOBS}.M.*")]);
            publish.push(format!("$JS.API.STREAM.PURGE.OBJ_{CLOUD_BLOBS}"));
        }
        publish.sort();
        publish.dedup();
        Some(Self { publish, never: Vec::new(), subscribe: vec![format!("{}.>", role_inbox(role.as_str()))] })
    }

    /// The permissions in the syntax of the server's configuration.
    pub fn configuration(&self) -> String {
        let list = |subjects: &[String]| {
            let quoted: Vec<String> = subjects.iter().map(|subject| format!("\"{subject}\"")).collect();
            quoted.join(", ")
        };
        let publish = match self.never.is_empty() {
            true => format!("[{}]", list(&self.publish)),
            false => format!("{{ allow: [{}], deny: [{}] }}", list(&self.publish), list(&self.never)),
        };
        format!("{{ publish: {publish}, subscribe: [{}] }}", list(&self.subscribe))
    }

    /// What an account shares with another that has these permissions in it, in the syntax of the server's
    /// configuration: the exports to `to`, and the imports from `from`. `domain`: the JetStream domain named in the
    /// permissions.
    ///
    /// A user in the account itself would not do: a publisher chooses where the server's acknowledgement goes, which no
    /// permission limits, so it could be stored wherever a stream accepts it. A reply to a request across such a share
    /// goes to the account that sent it, and nowhere else.
    pub fn account_share(&self, domain: &str, from: &str, to: &str) -> AccountShare {
        let api = format!("$JS.{domain}.API.");
        let services = self.publish.iter().map(|right| match right.strip_prefix(&api) {
            // The server maps subjects that name its domain this way.
            Some(rest) if rest.starts_with("$KV.") => rest.to_owned(),
            Some(rest) => format!("$JS.API.{rest}"),
            None => right.clone(),
        });
        let (mut exports, mut imports) = (Vec::new(), Vec::new());
        for service in services {
            // One request to JetStream may have several replies.
            let many = if service.starts_with("$JS.API.") { ", response_type: stream" } else { "" };
            exports.push(format!("{{ service: \"{service}\"{many}, accounts: [\"{to}\"] }}"));
            imports.push(format!("{{ service: {{ account: \"{from}\", subject: \"{service}\" }} }}"));
        }
        AccountShare { exports, imports }
    }

    /// Whether it may publish on a subject.
    pub fn may_publish(&self, subject: &str) -> bool {
        let any = |patterns: &[String]| patterns.iter().any(|pattern| belongs_to(pattern, subject));
        any(&self.publish) && !any(&self.never)
    }

    /// Whether it may subscribe to a subject, or to a pattern within its permissions.
    pub fn may_subscribe(&self, subject: &str) -> bool {
        self.subscribe.iter().any(|pattern| belongs_to(pattern, subject))
    }
}

/// What one account of a server shares with another, one entry per subject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountShare {
    /// Entries of `exports` in the sharing account.
    pub exports: Vec<String>,
    /// Entries of `imports` in the other account.
    pub imports: Vec<String>,
}

/// The accounts in the configuration of the cloud's server: the cloud's own with these users, and one for
/// each site with the users of its link.
pub fn hub_accounts(users: &[String], sites: &[(SiteName, Vec<String>)], domain: &str) -> String {
    let (mut exports, mut others) = (Vec::new(), String::new());
    for (site, users) in sites {
        let account = account_of(site);
        let share = SubjectPermissions::of_site_in_cloud(site, domain).account_share(domain, CLOUD_ACCOUNT, &account);
        exports.extend(share.exports);
        let (users, imports) = (users.join("\n    "), share.imports.join("\n    "));
        others
            .push_str(&format!("  \"{account}\": {{ users: [\n    {users}\n  ], imports: [\n    {imports}\n  ] }}\n"));
    }
    let (users, exports) = (users.join("\n    "), exports.join("\n    "));
    format!(
        "  {CLOUD_ACCOUNT}: {{ jetstream: enabled, users: [\n    {users}\n  ], exports: [\n    {exports}\n  ] }}\n{others}"
    )
}

/// Account of the cloud's own users at its server.
pub const CLOUD_ACCOUNT: &str = "CLOUD";
/// Account of a site at its own server.
pub const SITE_ACCOUNT: &str = "SITE";
/// Account of cameras at a site's server.
pub const CAMERAS_ACCOUNT: &str = "CAMERAS";

/// Account of a site at the cloud's server, in which the site's link ends.
pub fn account_of(site: &SiteName) -> String {
    format!("site-{site}")
}

/// Whether a pattern matches a subject, or every subject of another pattern (docs.nats.io, subject-based messaging).
pub fn belongs_to(pattern: &str, subject: &str) -> bool {
    let (mut pattern, mut subject) = (pattern.split('.'), subject.split('.'));
    loop {
        match (pattern.next(), subject.next()) {
            (Some(">"), Some(_)) | (None, None) => return true,
            (Some("*"), Some(token)) if token != ">" => {}
            (Some(a), Some(b)) if a == b => {}
            _ => return false,
        }
    }
}

/// Notes that a person writes and workers follow.
const OPERATORS_NOTES: [&str; 3] = ["policy", "scale-recognizer", "scale-verifier"];
/// Notes that a courier writes: the trusted root, the bytes sent today, the site's mark.
const COURIERS_NOTES: [&str; 3] = [ROOT_KEY, "uplink-used", "site-mark"];

/// What a worker does at its site, besides publishing its subjects and reading notes and
/// heartbeats.
struct WorkerDuties {
    /// Durables from which it takes messages.
    takes: Vec<(&'static str, String)>,
    /// Streams it reads with consumers of its own.
    reads: Vec<String>,
    /// Streams of which it reads single messages.
    looks: Vec<String>,
    /// Streams from which it deletes messages.
    deletes: &'static [&'static str],
    /// Streams it purges.
    purges: &'static [&'static str],
    /// Notes it writes whose keys have more than one token.
    notes: &'static [&'static str],
    /// Subjects it subscribes to without a stream.
    subscribes: Vec<String>,
    stores_blobs: bool,
}

fn duties_at_site(role: Role, site: &SiteName) -> Option<WorkerDuties> {
    let names = |streams: &[&str]| streams.iter().map(|stream| (*stream).to_owned()).collect::<Vec<_>>();
    let blobs = format!("OBJ_{BLOBS}");
    let nothing = WorkerDuties {
        takes: Vec::new(),
        reads: Vec::new(),
        looks: Vec::new(),
        deletes: &[],
        purges: &[],
        notes: &[],
        subscribes: Vec::new(),
        stores_blobs: false,
    };
    Some(match role {
        Role::Grabber => WorkerDuties { looks: names(&[CAMERAS]), stores_blobs: true, ..nothing },
        Role::Recognizer => WorkerDuties {
            takes: vec![(IMAGES, recognizer_durable(site)), (ANSWERS, learner_durable(site))],
            looks: vec![IMAGES.into(), ANSWERS.into(), CAMERAS.into(), blobs],
            deletes: &[IMAGES],
            subscribes: vec![format!("answer.final.{site}.>"), format!("camera.{site}.*.state")],
            stores_blobs: true,
            ..nothing
        },
        Role::Courier => WorkerDuties {
            takes: vec![(ANSWERS, promises_durable(site))],
            reads: names(&[OUTBOX]),
            looks: vec![ANSWERS.into(), blobs],
            deletes: &[OUTBOX],
            notes: &["release.*", "round.*"],
            stores_blobs: true,
            ..nothing
        },
        Role::Trainer => WorkerDuties {
            reads: names(&[ANSWERS, LABELS, LEARNED]),
            looks: vec![IMAGES.into(), blobs],
            deletes: &[LEARNED],
            stores_blobs: true,
            ..nothing
        },
        Role::Janitor => WorkerDuties {
            reads: vec![IMAGES.into(), ANSWERS.into(), blobs],
            deletes: &[IMAGES],
            purges: &[IMAGES],
            subscribes: vec!["image".into(), "image.>".into(), "/.image.>".into()],
            stores_blobs: true,
            ..nothing
        },
        Role::Notifier => WorkerDuties { reads: names(&[ANSWERS, CAMERAS]), ..nothing },
        _ => return None,
    })
}

/// Permissions of every worker: look up states, send heartbeats, read heartbeats, notes and the server's notices.
fn of_every_worker(role: Role) -> Vec<String> {
    let verbs = ["INFO", "STREAM.INFO.*", "STREAM.NAMES", "CONSUMER.INFO.*.*", "CONSUMER.LIST.*"];
    let mut all: Vec<String> = verbs.map(|verb| format!("$JS.API.{verb}")).to_vec();
    // Flow control of the client's own watches.
    all.extend(["$JS.FC.>".to_owned(), "$SYS.REQ.USER.INFO".to_owned()]);
    all.push(format!("$KV.{FLEET}.{}.*", role.as_str()));
    all.extend([format!("KV_{FLEET}"), format!("KV_{LEDGER}")].iter().flat_map(|stream| reads(stream)));
    all.extend(looks(ADVISORIES));
    all.push(format!("$JS.API.STREAM.MSG.DELETE.{ADVISORIES}"));
    all
}

/// Permissions to read single messages of a stream.
fn looks(stream: &str) -> Vec<String> {
    vec![
        format!("$JS.API.DIRECT.GET.{stream}"),
        format!("$JS.API.DIRECT.GET.{stream}.>"),
        format!("$JS.API.STREAM.MSG.GET.{stream}"),
    ]
}

/// Permissions to read a range of a stream with a consumer.
fn reads(stream: &str) -> Vec<String> {
    let mut all = looks(stream);
    all.extend(
        ["CONSUMER.CREATE.{}", "CONSUMER.CREATE.{}.>", "CONSUMER.MSG.NEXT.{}.*", "CONSUMER.DELETE.{}.*"]
            .map(|verb| format!("$JS.API.{}", verb.replace("{}", stream))),
    );
    all
}

/// Prefix of the subjects of replies to a site's requests in the cloud: a site receives its own and nobody else's.
pub fn inbox_prefix(site: &SiteName) -> String {
    format!("_INBOX_{site}")
}

/// The same for a role in the cloud.
pub fn role_inbox(role: &str) -> String {
    format!("_INBOX_{role}")
}

/// Key of the cloud's note with the root of a fleet.
pub const ROOT_KEY: &str = "fleet-root";

/// Key of the cloud's note with the mark that a site left there.
pub fn mark_key(site: &SiteName) -> String {
    format!("site-mark-{site}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::subject_table::{SUBJECTS, SubjectScope};

    #[test]
    fn a_sites_permissions_name_itself_or_what_every_site_may_use() {
        let (reef, farm): (SiteName, SiteName) = ("reef".parse().unwrap(), "farm".parse().unwrap());
        let of = |site: &SiteName| SubjectPermissions::of_site_in_cloud(site, CLOUD_DOMAIN);
        let (a, b) = (of(&reef), of(&farm));
        for right in a.publish.iter().chain(&a.subscribe) {
            assert!(right.contains("reef") || b.publish.contains(right), "{right}");
            assert!(
                !right.contains(".>") || right.starts_with("$JS.ACK.") || right.starts_with("_INBOX_reef"),
                "{right}"
            );
            for verb in ["CREATE", "DELETE", "STREAM.UPDATE", "MSG.GET", "NAMES", "LIST", "PAUSE"] {
                assert!(!right.contains(verb), "{right}");
            }
        }
    }

    #[test]
    fn subjects_that_stay_at_a_site_are_not_shared_with_its_link() {
        let reef: SiteName = "reef".parse().unwrap();
        let shared = SubjectPermissions::of_site_in_cloud(&reef, CLOUD_DOMAIN);
        let mut rows = 0;
        for row in SUBJECTS.iter().filter(|row| row.reach != SubjectScope::Up) {
            let pattern = row.pattern(Some(&reef));
            assert!(!shared.publish.iter().any(|right| belongs_to(right, &pattern)), "{pattern}");
            rows += 1;
        }
        assert!(rows > 20);
    }
}
