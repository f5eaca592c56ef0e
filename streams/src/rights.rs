//! Who may do what on a server: what a user may publish and hear, as the server's own permissions say it. Made of the
//! subjects and names of this crate, so that a right never speaks of something that does not exist.

use schemas::SiteName;

use crate::topology::{
    CLOUD_BLOBS, FLEET, LEDGER, ORDERS, UPDATES, VERDICTS, VERIFIER, VERIFY, orders_durable, rounds_durable,
    sent_blobs, verdicts_durable,
};

/// The JetStream domain of the cloud where nobody chose another.
pub const CLOUD_DOMAIN: &str = "cloud";

/// What a user may publish and hear, with wildcards. Everything else is refused by the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rights {
    /// Subjects it may publish on.
    pub publish: Vec<String>,
    /// Subjects it may hear.
    pub subscribe: Vec<String>,
}

impl Rights {
    /// What a site may do in the cloud: send up what is its own, fetch what is addressed to it, read what the cloud offers
    /// to every site. It is what its courier does, and no more: nothing here makes, changes, purges or reads a stream as a
    /// whole, and nothing names another site.
    pub fn of_site_in_cloud(site: &SiteName, domain: &str) -> Self {
        let api = |rest: String| format!("$JS.{domain}.API.{rest}");
        let sent = sent_blobs(site);
        let mark = format!("$KV.{LEDGER}.{}", mark_key(site));
        let durables =
            [(VERDICTS, verdicts_durable(site)), (UPDATES, rounds_durable(site)), (ORDERS, orders_durable(site))];
        let mut publish = vec![
            format!("verify.*.{site}.*"),
            format!("hardcase.{site}"),
            format!("update.*.*.{site}"),
            format!("swap.{site}.*.*"),
            // Large images and weights, in a bucket of its own.
            format!("$O.{sent}.C.*"),
            format!("$O.{sent}.M.*"),
            api(format!("STREAM.INFO.OBJ_{sent}")),
            api(format!("STREAM.PURGE.OBJ_{sent}")),
            api(format!("DIRECT.GET.OBJ_{sent}.$O.{sent}.M.*")),
            // Packages and weights that the cloud offers.
            api(format!("DIRECT.GET.OBJ_{CLOUD_BLOBS}")),
            api(format!("DIRECT.GET.OBJ_{CLOUD_BLOBS}.$O.{CLOUD_BLOBS}.M.*")),
            // How busy the verifiers are, and whether it answers at all.
            api("INFO".into()),
            api(format!("CONSUMER.INFO.{VERIFY}.{VERIFIER}")),
            api(format!("DIRECT.GET.KV_{FLEET}")),
            // The mark by which it finds another site of its name.
            api(format!("DIRECT.GET.KV_{LEDGER}.{mark}")),
            api(mark.clone()),
            // Whom it obeys.
            api(format!("DIRECT.GET.KV_{LEDGER}.$KV.{LEDGER}.{ROOT_KEY}")),
        ];
        for (stream, durable) in durables {
            publish.push(api(format!("CONSUMER.INFO.{stream}.{durable}")));
            publish.push(api(format!("CONSUMER.MSG.NEXT.{stream}.{durable}")));
            publish.push(format!("$JS.ACK.{stream}.{durable}.>"));
        }
        Self { publish, subscribe: vec![format!("{}.>", inbox_prefix(site))] }
    }

    /// What a role may do in the cloud; `None` for whoever may do everything there. Roles read what is in the cloud, make
    /// consumers of their own, and publish what is theirs to say; none makes, changes, purges or deletes a stream.
    pub fn of_role_in_cloud(role: &str) -> Option<Self> {
        let own: &[&str] = match role {
            "verifier" => &["verdict.*.*", "hardcase.*", "dead.verify.*.*", "swap.cloud.*.*"],
            "aggregator" => &["round.*.*.*", "release.*.*", "dead.updates.*.*", "$O.cloud-blobs.>"],
            "releaser" => &["release.*.*", "order.*.*", "$O.cloud-blobs.>"],
            _ => return None,
        };
        let all = [
            "$JS.API.INFO",
            "$JS.API.STREAM.INFO.*",
            "$JS.API.STREAM.MSG.GET.*",
            "$JS.API.STREAM.NAMES",
            "$JS.API.DIRECT.GET.>",
            "$JS.API.CONSUMER.CREATE.>",
            "$JS.API.CONSUMER.INFO.>",
            "$JS.API.CONSUMER.MSG.NEXT.>",
            "$JS.API.CONSUMER.DELETE.*.*",
            "$JS.API.STREAM.MSG.DELETE.ADVISORIES",
            "$JS.ACK.>",
            "$JS.FC.>",
            "$SYS.REQ.USER.INFO",
        ];
        let mut publish: Vec<String> = all.iter().chain(own).map(|subject| (*subject).to_owned()).collect();
        publish.push(format!("$KV.{FLEET}.{role}.*"));
        if role == "verifier" {
            // Requests that came back after they were acknowledged, and the count of what was judged.
            publish.push(format!("$JS.API.STREAM.MSG.DELETE.{VERIFY}"));
        }
        if own.contains(&"$O.cloud-blobs.>") {
            // An upload of the same name takes the place of the one before.
            publish.push(format!("$JS.API.STREAM.PURGE.OBJ_{CLOUD_BLOBS}"));
        }
        Some(Self { publish, subscribe: vec![format!("{}.>", role_inbox(role))] })
    }

    /// As it stands in a server's configuration.
    pub fn configuration(&self) -> String {
        let list = |subjects: &[String]| {
            let quoted: Vec<String> = subjects.iter().map(|subject| format!("\"{subject}\"")).collect();
            quoted.join(", ")
        };
        format!("{{ publish: [{}], subscribe: [{}] }}", list(&self.publish), list(&self.subscribe))
    }
}

/// What the subjects of answers to a site's questions in the cloud begin with: a site hears its own and nobody else's.
pub fn inbox_prefix(site: &SiteName) -> String {
    format!("_INBOX_{site}")
}

/// The same of a role in the cloud.
pub fn role_inbox(role: &str) -> String {
    format!("_INBOX_{role}")
}

/// The cloud's note of whom the sites of a fleet obey.
pub const ROOT_KEY: &str = "fleet-root";

/// The cloud's note of the mark that a site left there.
pub fn mark_key(site: &SiteName) -> String {
    format!("site-mark-{site}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sites_rights_name_it_or_what_is_for_every_site_and_nothing_of_another() {
        let (reef, farm): (SiteName, SiteName) = ("reef".parse().unwrap(), "farm".parse().unwrap());
        let of = |site: &SiteName| Rights::of_site_in_cloud(site, CLOUD_DOMAIN);
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
}
