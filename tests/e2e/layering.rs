//! Who may know whom, read from the manifests; and where subjects are spelled out, from the sources.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use harness::program::root;
use streams::subject_table::SUBJECTS;

const ROLES: [&str; 9] =
    ["grabber", "recognizer", "courier", "verifier", "trainer", "aggregator", "releaser", "janitor", "notifier"];

/// Which of our own crates each crate may depend on.
fn allowed(package: &str) -> BTreeSet<&'static str> {
    let allowed: &[&str] = match package {
        "schemas" | "os" | "dataset" | "model_signature" => &[],
        "streams" => &["schemas", "os"],
        "vision" => &["schemas", "os"],
        "camera" => &["schemas", "vision"],
        // The vision only in its tests.
        "autograd" => &["vision"],
        "offload" => &["schemas", "vision"],
        "detection" => &["schemas"],
        "runtime" => &["schemas", "os", "streams"],
        "fleet" => &["schemas", "streams", "runtime"],
        "training" => &["schemas", "os", "vision", "autograd", "dataset"],
        "releases" => &["schemas", "os", "streams", "vision"],
        "serving" => &["schemas", "os", "streams", "runtime", "vision", "releases"],
        "courier" | "janitor" | "notifier" => &["schemas", "streams", "runtime"],
        "grabber" => &["schemas", "streams", "runtime", "vision", "camera"],
        "recognizer" => &["schemas", "streams", "runtime", "vision", "serving", "offload"],
        "verifier" => &["schemas", "streams", "runtime", "vision", "serving"],
        "trainer" => &["schemas", "streams", "runtime", "vision", "autograd", "training"],
        "aggregator" => &["schemas", "streams", "runtime", "vision", "autograd", "training", "releases"],
        "releaser" => &["schemas", "streams", "runtime", "releases"],
        "publish" => &["schemas", "streams", "runtime", "vision", "dataset"],
        "replay" => &["schemas", "streams", "runtime", "vision", "offload", "detection"],
        "operations" => &[
            "schemas",
            "streams",
            "runtime",
            "vision",
            "offload",
            "model_signature",
            "releases",
            "serving",
            "recognizer",
            "trainer",
            "janitor",
            "aggregator",
            "replay",
        ],
        BENCH | "tributary" => &[
            "schemas",
            "os",
            "streams",
            "runtime",
            "fleet",
            "vision",
            "camera",
            "autograd",
            "dataset",
            "training",
            "offload",
            "detection",
            "model_signature",
            "releases",
            "serving",
            "grabber",
            "recognizer",
            "courier",
            "trainer",
            "janitor",
            "notifier",
            "verifier",
            "aggregator",
            "releaser",
            "publish",
            "replay",
            "operations",
            "tributary",
        ],
        // A program as a stranger would write it.
        EXAMPLE => &[],
        // Bytes bent at random, for tests of any crate.
        "bend" => &[],
        "sim" => &[
            "schemas",
            "streams",
            "runtime",
            "offload",
            "releases",
            "serving",
            "releaser",
            "aggregator",
            "courier",
            "operations",
        ],
        "tributary-tests" => &[
            "schemas",
            "streams",
            "vision",
            "runtime",
            "releases",
            "serving",
            "autograd",
            "training",
            "trainer",
            "aggregator",
            "replay",
            "recognizer",
            "releaser",
            "courier",
            "offload",
            "operations",
            "janitor",
            "fleet",
            "model_signature",
        ],
        other => panic!("{other} has no place in the layering: give it one here and in docs/ARCHITECTURE.md"),
    };
    allowed.iter().copied().collect()
}

/// Which crates may name an outside library that has one home.
const HOMES: [(&str, &[&str]); 17] = [
    ("axum", &["runtime"]),
    ("prometheus-client", &["runtime"]),
    ("async-nats", &["streams", "tributary-tests", EXAMPLE]),
    ("object_store", &["streams"]),
    ("ort", &["vision"]),
    ("image", &["vision"]),
    ("zune-jpeg", &["vision"]),
    ("fast_image_resize", &["vision"]),
    ("rmp-serde", &["schemas", EXAMPLE]),
    ("figment", &["runtime"]),
    // Autograd rewrites graphs whole; vision reads what one says of itself, without its weights; runtime writes traces.
    ("prost", &["autograd", "vision", "runtime", "tributary-tests"]),
    ("tar", &["replay", "releases"]),
    ("rumqttc", &["notifier"]),
    ("retina", &["camera"]),
    ("openh264", &["camera"]),
    ("http-auth", &["camera"]),
    ("clap", &["tributary", BENCH]),
];

/// The Rust example: it speaks to a site as any client does, with its own NATS client and its own words.
const EXAMPLE: &str = "tributary-example";

/// The benches, a program of their own.
const BENCH: &str = "tributary-bench";

/// What bends bytes is for tests alone.
const BEND: &str = "bend";

/// Whether a package speaks as clients do, and so spells subjects out.
fn speaks_as_a_client(package: &str) -> bool {
    ["tributary-tests", "sim", EXAMPLE].contains(&package)
}

struct CargoManifest {
    package: String,
    folder: PathBuf,
    dependencies: BTreeSet<String>,
    /// Those that are not for its tests alone.
    shipped: BTreeSet<String>,
}

fn toml(path: &Path) -> toml::Table {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.parse().unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn manifests() -> BTreeMap<String, CargoManifest> {
    let workspace = toml(&root().join("Cargo.toml"));
    let members = workspace["workspace"]["members"].as_array().unwrap();
    let read = |member: &toml::Value| {
        let folder = root().join(member.as_str().unwrap());
        let manifest = toml(&folder.join("Cargo.toml"));
        let package = manifest["package"]["name"].as_str().unwrap().to_owned();
        let tables = ["dependencies", "dev-dependencies", "build-dependencies"];
        let named = |tables: &[&str]| -> BTreeSet<String> {
            let tables = tables.iter().filter_map(|table| manifest.get(*table)?.as_table());
            tables.flat_map(|table| table.keys()).cloned().collect()
        };
        let (dependencies, shipped) = (named(&tables), named(&["dependencies", "build-dependencies"]));
        (package.clone(), CargoManifest { package, folder, dependencies, shipped })
    };
    members.iter().map(read).collect()
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn a_crate_knows_only_what_lies_to_its_left() {
    let manifests = manifests();
    for CargoManifest { package, dependencies, .. } in manifests.values() {
        let ours = dependencies.iter().filter(|name| manifests.contains_key(*name)).map(String::as_str);
        let wrong: Vec<&str> = ours.filter(|name| *name != BEND && !allowed(package).contains(name)).collect();
        assert!(wrong.is_empty(), "{package} must not depend on {wrong:?}");
    }
}

#[test]
fn what_bends_bytes_is_in_nothing_that_is_shipped() {
    let manifests = manifests();
    let wrong: Vec<&String> = manifests
        .values()
        .filter(|manifest| manifest.shipped.contains(BEND))
        .map(|manifest| &manifest.package)
        .collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn what_simulates_is_turned_on_by_the_simulation_alone() {
    let workspace = toml(&root().join("Cargo.toml"));
    for member in workspace["workspace"]["members"].as_array().unwrap() {
        let manifest = toml(&root().join(member.as_str().unwrap()).join("Cargo.toml"));
        let package = manifest["package"]["name"].as_str().unwrap();
        let turned_on = |table: &str| {
            let named = manifest.get(table).and_then(toml::Value::as_table).into_iter().flatten();
            let features = named.filter_map(|(_, dependency)| dependency.get("features")?.as_array());
            features.flatten().any(|feature| matches!(feature.as_str(), Some("memory" | "simulation")))
        };
        assert!(!turned_on("dependencies"), "{package} would ship servers in memory");
        assert_eq!(turned_on("dev-dependencies"), package == "sim", "{package}");
        let default = manifest.get("features").and_then(|features| features.get("default"));
        assert!(default.is_none() || package != "streams" && package != "runtime", "{package} has features by default");
    }
}

#[test]
fn no_role_knows_another_role() {
    let manifests = manifests();
    for role in ROLES {
        let others = ROLES.iter().filter(|other| **other != role);
        let known: Vec<_> = others.filter(|other| manifests[role].dependencies.contains(**other)).collect();
        assert!(known.is_empty(), "{role} knows {known:?}");
    }
}

#[test]
fn an_outside_library_with_one_home_is_named_nowhere_else() {
    for CargoManifest { package, dependencies, .. } in manifests().values() {
        for (library, homes) in HOMES {
            assert!(
                !dependencies.contains(library) || homes.contains(&package.as_str()),
                "{package} depends on {library}, whose home is {homes:?}"
            );
        }
    }
}

#[test]
fn every_package_comes_from_the_registry_with_a_checksum_or_lies_in_this_repository() {
    const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";
    let (lock, workspace) = (toml(&root().join("Cargo.lock")), toml(&root().join("Cargo.toml")));
    let (members, patches) = (manifests(), workspace["patch"].as_table().unwrap());
    assert_eq!(patches.keys().collect::<Vec<_>>(), ["crates-io"], "a patch of another registry");
    let mut vendored = BTreeSet::new();
    for (name, patch) in patches["crates-io"].as_table().unwrap() {
        assert_eq!(patch["path"].as_str(), Some(&*format!("vendor/{name}")), "{name} is patched from elsewhere");
        vendored.insert(name.as_str());
    }
    let packages = lock["package"].as_array().unwrap();
    assert!(packages.len() > members.len() + vendored.len(), "only {} packages are locked", packages.len());
    for package in packages {
        let text = |key: &str| package.get(key).and_then(toml::Value::as_str);
        let name = text("name").unwrap();
        match text("source") {
            Some(source) => {
                assert_eq!(source, REGISTRY, "{name} comes from elsewhere");
                let checksum = text("checksum").unwrap_or_default();
                let is_sha256 = checksum.len() == 64 && checksum.bytes().all(|byte| byte.is_ascii_hexdigit());
                assert!(is_sha256, "{name} has no checksum");
            }
            None => assert!(
                members.contains_key(name) || vendored.contains(name),
                "{name} comes from a folder, and neither is a member nor lies in vendor/"
            ),
        }
    }
    // What could put another source in the registry's place without a trace in the lock file.
    for file in [".cargo/config.toml", ".cargo/config"] {
        assert!(!root().join(file).exists(), "{file} can redirect where packages come from");
    }
}

#[test]
fn subjects_are_spelled_out_in_one_place() {
    const HOME: [&str; 4] = [
        "streams/src/subject_table.rs",
        "streams/src/subject.rs",
        "streams/src/topology.rs",
        "streams/src/permissions.rs",
    ];
    let kinds: BTreeSet<&str> = SUBJECTS.iter().filter_map(|row| row.form.split('.').next()).collect();
    let mut found = Vec::new();
    for manifest in manifests().values().filter(|manifest| !speaks_as_a_client(&manifest.package)) {
        sources(&manifest.folder.join("src"), &mut found);
    }
    assert!(found.len() > 50, "only {} sources were found", found.len());
    for path in found {
        let text = fs::read_to_string(&path).unwrap();
        // What follows is for tests, where a subject may be written as a client would write it.
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        let at = path.strip_prefix(root()).unwrap().display().to_string();
        if HOME.contains(&at.as_str()) {
            continue;
        }
        for (number, line) in code.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//")) {
            let built = |kind: &&str| line.contains(&format!("\"{kind}.{{")) || line.contains(&format!("\"{kind}.*"));
            let spelled = kinds.iter().find(|kind| built(kind) || line.contains(&format!("\"{kind}.>")));
            assert!(spelled.is_none(), "{at}:{}: builds a subject of its own: {}", number + 1, line.trim());
        }
    }
}
