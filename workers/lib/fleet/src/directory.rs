//! The operator's folder.
//!
//! ```text
//! fleet.json          the members, public keys only
//! ca.key, ca.pem      the authority; ca.key is needed to renew the hub's certificate, and can lie elsewhere meanwhile
//! hub/hub.pem, hub.key   the hub's certificate
//! hub/accounts.conf   users and permissions for the hub's nats-server; rewritten at every change
//! hub/ROLE.nk         seed of each role in the cloud
//! hub/ROLE.sign       keys that orders and rounds are signed with
//! root.key            signs the root that sites trust; needed for a new root alone, and should lie elsewhere meanwhile
//! ```

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use runtime::clock;
use runtime::site_key::SiteKey;
use runtime::trust::sign_root;
use schemas::{ReleaseId, Role, Root, SiteName, Vocabulary as _};
use serde::{Deserialize, Serialize};
use streams::nkey::UserKey;
use streams::permissions::{CLOUD_DOMAIN, SubjectPermissions, hub_accounts};
use streams::server::write_private;

use crate::certificate::{IssuedCertificate, issue_hub, make_authority};
use crate::error::FleetError;
use crate::membership::Membership;

const FLEET: &str = "fleet.json";

/// Roles in the cloud, each with a key of its own. `operator` has all rights in the fleet's account, `system`
/// reloads the server and closes connections.
pub const ROLES: [Role; 5] = [Role::Verifier, Role::Aggregator, Role::Releaser, Role::Operator, Role::System];

/// Roles that sign instructions to sites.
const SIGNERS: [Role; 2] = [Role::Releaser, Role::Aggregator];
/// Validity of a root: a year.
const ROOT_VALID_MS: u64 = 365 * 24 * 3_600_000;

/// The role of this name that has a key of its own at the hub.
///
/// # Errors
/// An unknown role.
pub fn hub_role(name: &str) -> Result<Role, FleetError> {
    ROLES.into_iter().find(|role| role.as_str() == name).ok_or_else(|| no_role_of_hub(name))
}

fn no_role_of_hub(name: &str) -> FleetError {
    FleetError::Site(format!("{name} is not a role of the hub; use {}", ROLES.map(Role::as_str).join(", ")))
}

/// Address of the hub.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HubAddress {
    /// Host name or IP address at which sites reach it.
    pub host: String,
    /// Port for leaf servers.
    pub leaf_port: u16,
    /// Port for workers and operators.
    pub client_port: u16,
}

/// A site of the fleet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Public NKey of the site.
    pub nkey: String,
    /// Previous public NKey, still accepted until the site used the new one; absent otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_nkey: Option<String>,
    /// Public key that its updates are verified with.
    pub update_key: String,
    /// When it was added or its keys last changed, milliseconds since the epoch.
    pub since_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FleetState {
    version: u16,
    hub: HubAddress,
    authority_ends_at_ms: u64,
    certificate_ends_at_ms: u64,
    /// Public NKeys of the roles, by role.
    roles: BTreeMap<String, String>,
    sites: BTreeMap<SiteName, Member>,
    /// The root that sites trust.
    root: Root,
}

/// A key or certificate and its expiry.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CalendarEntry {
    /// What it is.
    pub what: String,
    /// When it expires, milliseconds since the epoch; absent if it never does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ends_at_ms: Option<u64>,
    /// Command that renews it.
    pub renewed_by: String,
}

/// An operator's folder.
pub struct FleetFolder {
    folder: PathBuf,
    state: FleetState,
}

impl FleetFolder {
    /// Creates a new fleet in a folder.
    ///
    /// # Errors
    /// The folder already holds a fleet, the host is invalid, or the disk is full.
    pub fn init(folder: &Path, hub: HubAddress) -> Result<Self, FleetError> {
        if folder.join(FLEET).exists() {
            return Err(FleetError::Exists { path: folder.into() });
        }
        let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':');
        if hub.host.is_empty() || !hub.host.chars().all(is_name) {
            return Err(FleetError::Site(format!(
                "{:?} is not a valid host; use a host name or an IP address",
                hub.host
            )));
        }
        let private = folder.join("hub");
        std::fs::create_dir_all(&private).map_err(FleetError::written(&private))?;
        for made in [folder, &private] {
            std::fs::set_permissions(made, std::fs::Permissions::from_mode(0o700))
                .map_err(FleetError::written(made))?;
        }
        let authority = make_authority()?;
        write(&folder.join("ca.pem"), &authority.certificate)?;
        write(&folder.join("ca.key"), &authority.key)?;
        let mut roles = BTreeMap::new();
        for role in ROLES {
            let key = UserKey::generate().map_err(|error| not_made("a key", &error))?;
            write(&private.join(format!("{role}.nk")), &(key.seed() + "\n"))?;
            roles.insert(role.to_string(), key.public_key());
        }
        let (authority_ends_at_ms, certificate_ends_at_ms) = (authority.ends_at_ms, 0);
        let sites = BTreeMap::new();
        let offline = make_key(&folder.join("root.key"))?;
        let [releaser, aggregator] =
            SIGNERS.map(|role| make_key(&private.join(format!("{role}.sign"))).map(|key| vec![key.public()]));
        let mut root = Root {
            number: 1,
            expires_at_ms: clock::now_ms().saturating_add(ROOT_VALID_MS),
            keys: vec![offline.public()],
            releaser: releaser?,
            aggregator: aggregator?,
            never: Vec::new(),
            signatures: BTreeMap::new(),
        };
        sign_root(&mut root, &offline).map_err(|error| not_made("the root", &error))?;
        let state = FleetState { version: 1, hub, authority_ends_at_ms, certificate_ends_at_ms, roles, sites, root };
        let mut fleet = Self { folder: folder.into(), state };
        fleet.renew()?;
        Ok(fleet)
    }

    /// Opens the fleet in a folder.
    pub fn open(folder: &Path) -> Result<Self, FleetError> {
        let path = folder.join(FLEET);
        if !path.is_file() {
            return Err(FleetError::NoFleet { path: folder.into() });
        }
        let text = std::fs::read_to_string(&path).map_err(FleetError::read(&path))?;
        let state: FleetState = serde_json::from_str(&text)
            .map_err(|error| FleetError::Unreadable { path: path.clone(), why: error.to_string() })?;
        if state.version != 1 {
            let why = format!("it has version {}, but this program reads version 1", state.version);
            return Err(FleetError::Unreadable { path, why });
        }
        Ok(Self { folder: folder.into(), state })
    }

    /// Issues a new certificate for the hub. The server uses it after a reload.
    pub fn renew(&mut self) -> Result<(), FleetError> {
        let (authority, key) = (self.folder.join("ca.pem"), self.folder.join("ca.key"));
        let read = |path: &Path| std::fs::read_to_string(path).map_err(FleetError::read(path));
        let mut names = vec![self.state.hub.host.clone(), "localhost".into(), "127.0.0.1".into()];
        names.dedup();
        let IssuedCertificate { certificate, key, ends_at_ms } = issue_hub(&read(&authority)?, &read(&key)?, &names)?;
        // The key first: a certificate with the wrong key would stop the server.
        write(&self.key_file(), &key)?;
        write(&self.certificate_file(), &certificate)?;
        self.state.certificate_ends_at_ms = ends_at_ms;
        self.save()
    }

    /// Makes the next root, valid for another year, and adds these releases to the forbidden ones. `key`: file of the
    /// offline key, `root.key` in the folder if absent.
    pub fn make_root(&mut self, key: Option<&Path>, never: &[ReleaseId]) -> Result<&Root, FleetError> {
        let own = self.folder.join("root.key");
        let path = key.unwrap_or(&own);
        let offline = SiteKey::read(path).map_err(|error| not_made("the root", &error))?;
        if !self.state.root.keys.contains(&offline.public()) {
            let path = path.display();
            return Err(FleetError::Site(format!(
                "{path} is not the key of this fleet's root, so sites would not follow it; name the file of the offline key"
            )));
        }
        let mut next = Root {
            number: self.state.root.number.saturating_add(1),
            expires_at_ms: clock::now_ms().saturating_add(ROOT_VALID_MS),
            signatures: BTreeMap::new(),
            ..self.state.root.clone()
        };
        next.never.extend(never.iter().filter(|release| !self.state.root.never.contains(release)).cloned());
        sign_root(&mut next, &offline).map_err(|error| not_made("the root", &error))?;
        self.state.root = next;
        self.save()?;
        Ok(&self.state.root)
    }

    /// Gives a role in the cloud a new key at the hub and, if it signs instructions to sites, a new signing key, which
    /// a new root lists. `key`: file of the offline key, `root.key` in the folder if absent; `is_stolen`: signatures of
    /// the old key are no longer valid; otherwise they are until the next rotation.
    ///
    /// # Errors
    /// A role that has no key at the hub, or an offline key that is missing or wrong.
    pub fn rotate_role(&mut self, role: Role, key: Option<&Path>, is_stolen: bool) -> Result<(), FleetError> {
        if !ROLES.contains(&role) {
            return Err(no_role_of_hub(role.as_str()));
        }
        if SIGNERS.contains(&role) {
            let path = self.signing_file(role);
            let before = self.state.root.clone();
            // Kept in a second file until the root lists it.
            let new_path = path.with_extension("sign.new");
            let _absent = std::fs::remove_file(&new_path);
            let new = make_key(&new_path)?.public();
            let keys = match role {
                Role::Releaser => &mut self.state.root.releaser,
                _ => &mut self.state.root.aggregator,
            };
            keys.truncate(usize::from(!is_stolen));
            keys.insert(0, new);
            if let Err(error) = self.make_root(key, &[]) {
                self.state.root = before;
                let _left = std::fs::remove_file(&new_path);
                return Err(error);
            }
            std::fs::rename(&new_path, &path).map_err(FleetError::written(&path))?;
        }
        let pair = UserKey::generate().map_err(|error| not_made("a key", &error))?;
        write(&self.role_file(role), &(pair.seed() + "\n"))?;
        self.state.roles.insert(role.to_string(), pair.public_key());
        self.save()
    }

    /// The root that its sites trust.
    pub fn root(&self) -> &Root {
        &self.state.root
    }

    /// The key that a role signs with: `releaser` orders, `aggregator` rounds.
    pub fn signing_file(&self, role: Role) -> PathBuf {
        self.folder.join(format!("hub/{role}.sign"))
    }

    /// Adds a site; the result is for that site alone, and its secrets are not kept here.
    pub fn add_site(&mut self, site: &SiteName) -> Result<Membership, FleetError> {
        if self.state.sites.contains_key(site) {
            return Err(FleetError::Site(format!(
                "site {site} already belongs to the fleet; give it new keys with `tributary site rotate {site}`"
            )));
        }
        if *site == SiteName::cloud() || *site == SiteName::unknown() {
            return Err(FleetError::Site(format!("a site cannot be named {site}, which is reserved")));
        }
        self.give_keys(site, None)
    }

    /// Gives a site new keys; the old one is accepted until [`FleetFolder::settle_rotation`].
    pub fn rotate_site(&mut self, site: &SiteName) -> Result<Membership, FleetError> {
        let known = self.member(site)?.nkey.clone();
        self.give_keys(site, Some(known))
    }

    /// Stops accepting a site's old key; false if there was none.
    pub fn settle_rotation(&mut self, site: &SiteName) -> Result<bool, FleetError> {
        self.member(site)?;
        let member = self.state.sites.get_mut(site);
        let had = member.is_some_and(|member| member.previous_nkey.take().is_some());
        self.save()?;
        Ok(had)
    }

    /// Removes a site from the fleet. Returns the keys it had.
    pub fn revoke_site(&mut self, site: &SiteName) -> Result<Member, FleetError> {
        let member = self.member(site)?.clone();
        self.state.sites.remove(site);
        self.save()?;
        Ok(member)
    }

    fn member(&self, site: &SiteName) -> Result<&Member, FleetError> {
        self.state.sites.get(site).ok_or_else(|| {
            let known: Vec<&str> = self.state.sites.keys().map(SiteName::as_str).collect();
            let known = if known.is_empty() { "it has no sites".into() } else { known.join(", ") };
            FleetError::Site(format!("site {site} does not belong to the fleet (sites: {known})"))
        })
    }

    fn give_keys(&mut self, site: &SiteName, previous_nkey: Option<String>) -> Result<Membership, FleetError> {
        let leaf = UserKey::generate().map_err(|error| not_made("a key", &error))?;
        let update_key = SiteKey::make_secret()
            .map_err(|error| FleetError::NotMade { what: "the key for updates", why: error.to_string() })?;
        let public = SiteKey::of_secret(&update_key).map(|key| key.public());
        let public =
            public.ok_or_else(|| FleetError::NotMade { what: "the key for updates", why: "it is invalid".into() })?;
        let authority = self.folder.join("ca.pem");
        let member = Member { nkey: leaf.public_key(), previous_nkey, update_key: public, since_ms: clock::now_ms() };
        let membership = Membership {
            version: Membership::VERSION,
            site: site.clone(),
            hub: format!("tls://{}:{}", self.state.hub.host, self.state.hub.leaf_port),
            domain: CLOUD_DOMAIN.into(),
            authority: std::fs::read_to_string(&authority).map_err(FleetError::read(&authority))?,
            authority_ends_at_ms: self.state.authority_ends_at_ms,
            root: self.state.root.clone(),
            leaf_seed: leaf.seed(),
            update_key,
        };
        self.state.sites.insert(site.clone(), member);
        self.save()?;
        Ok(membership)
    }

    /// The sites of the fleet.
    pub fn sites(&self) -> &BTreeMap<SiteName, Member> {
        &self.state.sites
    }

    /// Address of the hub.
    pub fn hub(&self) -> &HubAddress {
        &self.state.hub
    }

    /// File of the authority's certificate.
    pub fn authority_file(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }

    /// File of the hub's certificate.
    pub fn certificate_file(&self) -> PathBuf {
        self.folder.join("hub/hub.pem")
    }

    /// File of the hub's key.
    pub fn key_file(&self) -> PathBuf {
        self.folder.join("hub/hub.key")
    }

    /// File of the accounts and users of the hub's nats-server.
    pub fn accounts_file(&self) -> PathBuf {
        self.folder.join("hub/accounts.conf")
    }

    /// File of the seed of a role's NKey.
    pub fn role_file(&self, role: Role) -> PathBuf {
        self.folder.join(format!("hub/{role}.nk"))
    }

    /// Everything that expires or can be renewed, earliest expiry first.
    pub fn calendar(&self) -> Vec<CalendarEntry> {
        let FleetState { authority_ends_at_ms, certificate_ends_at_ms, .. } = self.state;
        let mut all = vec![
            CalendarEntry {
                what: "certificate of the hub".into(),
                ends_at_ms: Some(certificate_ends_at_ms),
                renewed_by: "tributary fleet renew".into(),
            },
            CalendarEntry {
                what: "certificate authority".into(),
                ends_at_ms: Some(authority_ends_at_ms),
                renewed_by: "tributary fleet init (a new fleet, to which each site must be added again)".into(),
            },
        ];
        all.push(CalendarEntry {
            what: "root that sites trust".into(),
            ends_at_ms: Some(self.state.root.expires_at_ms),
            renewed_by: "tributary fleet root".into(),
        });
        all.sort_by_key(|entry| entry.ends_at_ms);
        all.extend(self.state.sites.keys().map(|site| CalendarEntry {
            what: format!("keys of site {site}"),
            ends_at_ms: None,
            renewed_by: format!("tributary site rotate {site}"),
        }));
        all.extend(self.state.roles.keys().map(|role| CalendarEntry {
            what: format!("key of role {role}"),
            ends_at_ms: None,
            renewed_by: format!("tributary fleet rotate {role}"),
        }));
        all
    }

    /// Writes the members, and the configuration for the server.
    fn save(&self) -> Result<(), FleetError> {
        write(&self.accounts_file(), &self.accounts())?;
        let path = self.folder.join(FLEET);
        let text = serde_json::to_string_pretty(&self.state)
            .map_err(|error| FleetError::Unreadable { path: path.clone(), why: error.to_string() })?;
        // Atomically: without this file nobody knows who belongs to the fleet.
        let temporary = path.with_extension("new");
        write(&temporary, &(text + "\n"))?;
        std::fs::rename(&temporary, &path).map_err(FleetError::written(&path))
    }

    fn accounts(&self) -> String {
        let mut users = Vec::new();
        for (role, nkey) in self.state.roles.iter().filter(|(role, _)| *role != Role::System.as_str()) {
            let rights = match Role::from_word(role).and_then(SubjectPermissions::of_role_in_cloud) {
                Some(rights) => format!(", permissions: {}", rights.configuration()),
                None => String::new(),
            };
            users.push(format!("{{ nkey: {nkey}{rights} }} # {role}"));
        }
        let site = |(site, member): (&SiteName, &Member)| {
            let keys = std::iter::once(&member.nkey).chain(&member.previous_nkey);
            let users = keys.map(|nkey| format!("{{ nkey: {nkey}, allowed_connection_types: [\"LEAFNODE\"] }}"));
            (site.clone(), users.collect())
        };
        let sites: Vec<(SiteName, Vec<String>)> = self.state.sites.iter().map(site).collect();
        let system = self.state.roles.get(Role::System.as_str()).map(String::as_str).unwrap_or_default();
        format!(
            "# Written by tributary; changes are lost.\naccounts {{\n{}  SYS: {{ users: [ {{ nkey: {system} }} ] }}\n}}\nsystem_account: SYS\n",
            hub_accounts(&users, &sites, CLOUD_DOMAIN)
        )
    }
}

impl HubAddress {
    /// Whether the host is this machine itself, where others cannot reach it.
    pub fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    }
}

fn not_made(what: &'static str, error: &dyn std::fmt::Display) -> FleetError {
    FleetError::NotMade { what, why: error.to_string() }
}

fn make_key(path: &Path) -> Result<SiteKey, FleetError> {
    SiteKey::create(path).map_err(|error| not_made("a signing key", &error))
}

fn write(path: &Path, text: &str) -> Result<(), FleetError> {
    write_private(path, text).map_err(FleetError::written(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address() -> HubAddress {
        HubAddress { host: "hub.example".into(), leaf_port: 7422, client_port: 4222 }
    }

    #[test]
    fn a_site_is_added_rotated_and_revoked() {
        let folder = tempfile::tempdir().unwrap();
        let mut fleet = FleetFolder::init(folder.path(), address()).unwrap();
        assert!(matches!(FleetFolder::init(folder.path(), address()), Err(FleetError::Exists { .. })));
        let reef: SiteName = "reef".parse().unwrap();
        let file = fleet.add_site(&reef).unwrap();
        assert!(fleet.add_site(&reef).is_err() && fleet.add_site(&SiteName::cloud()).is_err());
        let accounts = || std::fs::read_to_string(folder.path().join("hub/accounts.conf")).unwrap();
        let public = |file: &Membership| UserKey::from_seed(&file.leaf_seed).unwrap().public_key();
        assert!(accounts().contains(&public(&file)));
        let new = FleetFolder::open(folder.path()).unwrap().rotate_site(&reef).unwrap();
        assert!(
            accounts().contains(&public(&file)) && accounts().contains(&public(&new)),
            "both until the new key was used"
        );
        let mut fleet = FleetFolder::open(folder.path()).unwrap();
        assert!(fleet.settle_rotation(&reef).unwrap() && !fleet.settle_rotation(&reef).unwrap());
        assert!(!accounts().contains(&public(&file)) && accounts().contains(&public(&new)));
        fleet.revoke_site(&reef).unwrap();
        assert!(!accounts().contains(&public(&new)) && fleet.revoke_site(&reef).is_err());
    }

    #[test]
    fn a_rotated_role_is_listed_in_the_root_beside_its_old_key_or_alone() {
        let folder = tempfile::tempdir().unwrap();
        let mut fleet = FleetFolder::init(folder.path(), address()).unwrap();
        let signed_by = |fleet: &FleetFolder| SiteKey::read(&fleet.signing_file(Role::Releaser)).unwrap().public();
        let (first, root) = (signed_by(&fleet), fleet.root().clone());
        fleet.rotate_role(Role::Releaser, None, false).unwrap();
        let second = signed_by(&fleet);
        assert_eq!(fleet.root().releaser, [second.clone(), first.clone()]);
        assert_eq!(runtime::trust::check_root(fleet.root(), &root, clock::now_ms()), Ok(()));
        fleet.rotate_role(Role::Releaser, None, true).unwrap();
        assert_eq!(fleet.root().releaser, [signed_by(&fleet)], "a stolen key is no longer valid");
        let accounts = || std::fs::read_to_string(folder.path().join("hub/accounts.conf")).unwrap();
        let before = accounts();
        fleet.rotate_role(Role::Verifier, None, true).unwrap();
        assert_ne!(accounts(), before);
        // Nothing changes without the offline key.
        std::fs::rename(folder.path().join("root.key"), folder.path().join("away")).unwrap();
        let (root, key, before) = (fleet.root().clone(), signed_by(&fleet), accounts());
        fleet.rotate_role(Role::Releaser, None, true).unwrap_err();
        assert_eq!((fleet.root(), signed_by(&fleet), accounts()), (&root, key, before));
        fleet.rotate_role(Role::Camera, None, false).unwrap_err();
    }

    #[test]
    fn secrets_are_private_and_absent_from_the_operators_folder() {
        let folder = tempfile::tempdir().unwrap();
        let mut fleet = FleetFolder::init(folder.path(), address()).unwrap();
        let file = fleet.add_site(&"reef".parse().unwrap()).unwrap();
        let out = folder.path().join("reef.site");
        file.write_new(&out, None).unwrap();
        assert!(file.write_new(&out, None).is_err(), "nothing is overwritten");
        let mut files = 0;
        for below in [folder.path().to_owned(), folder.path().join("hub")] {
            for entry in std::fs::read_dir(below).unwrap().map(Result::unwrap).filter(|entry| entry.path().is_file()) {
                let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
                assert_eq!(mode, 0o600, "{}", entry.path().display());
                let text = std::fs::read_to_string(entry.path()).unwrap();
                assert!(entry.path() == out || !text.contains(&file.leaf_seed) && !text.contains(&file.update_key));
                files += 1;
            }
        }
        assert!(files > 8);
        assert!(!format!("{file:?}").contains(&file.leaf_seed));
        std::fs::set_permissions(&out, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(Membership::read(&out), Err(FleetError::Open { mode: 0o644, .. })));
    }

    #[test]
    fn a_truncated_or_foreign_file_is_refused_without_quoting_it() {
        let folder = tempfile::tempdir().unwrap();
        let mut fleet = FleetFolder::init(&folder.path().join("fleet"), address()).unwrap();
        let file = fleet.add_site(&"reef".parse().unwrap()).unwrap();
        let path = folder.path().join("reef.site");
        file.write_new(&path, None).unwrap();
        let whole = std::fs::read_to_string(&path).unwrap();
        let (cut, other) = (&whole[..whole.len() - 40], whole.replace("tls://", "nats://"));
        for text in [cut, &other, "", "{}", "\u{0}", &whole.replace("\"version\": 1", "\"version\": 9")] {
            std::fs::write(&path, text).unwrap();
            let refused = Membership::read(&path).unwrap_err().to_string();
            assert!(!refused.contains(&file.leaf_seed) && !refused.contains(&file.update_key), "{refused}");
        }
        std::fs::write(&path, whole).unwrap();
        let store = folder.path().join("store");
        Membership::read(&path).unwrap().install(&store).unwrap();
        assert_eq!(Membership::find(&store).unwrap().unwrap().site.as_str(), "reef");
        assert!(SiteKey::read(&Membership::update_key_file(&store)).is_ok());
    }
}
