//! The file that makes a machine a site of a fleet, and the operator's own.

use std::os::unix::fs::PermissionsExt;

use bend::{bend_all, turns};
use fleet::{FleetFolder, HubAddress, Membership};

use crate::models::shared_memory;

#[test]
fn a_sites_file_that_was_bent_is_read_or_refused() {
    bend::limit_memory();
    let place = tempfile::tempdir_in(shared_memory()).unwrap();
    let hub = HubAddress { host: "hub.example".into(), leaf_port: 7422, client_port: 4222 };
    let mut fleet = FleetFolder::init(&place.path().join("fleet"), hub).unwrap();
    let membership = fleet.add_site(&"reef".parse().unwrap()).unwrap();
    let path = place.path().join("reef.site");
    membership.write_new(&path, None).unwrap();
    let whole = std::fs::read(&path).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o077, 0);
    let trusted = membership.root.signed_bytes().unwrap();
    bend_all("sites' files", std::slice::from_ref(&whole), turns() / 20, |bytes| {
        std::fs::write(&path, bytes).unwrap();
        if let Ok(bent) = Membership::read(&path) {
            assert_eq!(bent.root.signed_bytes().unwrap(), trusted, "another root than the fleet's");
            assert!(bent.hub.starts_with("tls://"), "{}", bent.hub);
        }
        1
    });
    let path = place.path().join("fleet/fleet.json");
    let whole = std::fs::read(&path).unwrap();
    bend_all("a fleet's own file", std::slice::from_ref(&whole), turns() / 4, |bytes| {
        std::fs::write(&path, bytes).unwrap();
        if let Ok(fleet) = FleetFolder::open(&place.path().join("fleet")) {
            let _shown = (fleet.root().number, fleet.calendar().len());
        }
        1
    });
}
