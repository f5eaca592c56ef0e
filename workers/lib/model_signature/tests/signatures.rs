//! Signatures made by OpenSSF's own tool (fixtures/model_signature) are accepted, and any change to them is refused by
//! name. That the tool accepts ours is an end-to-end test (tests/e2e/interop.rs), because it needs Python.

#![allow(clippy::indexing_slicing)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use model_signature::{
    EcPrivateKey, EcPublicKey, KeyFault, MAX_FILES, MAX_SIGNATURE_BYTES, SIGNATURE_FILE, SignatureError, SignedFolder,
    sign_folder, verify_folder,
};
use serde_json::Value;
use tempfile::TempDir;

const FILES: [&str; 5] = ["Zug nach Ø.txt", "config.json", "empty.bin", "sub-a/weights.bin", "sub/weights.bin"];

fn fixture(path: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../fixtures/model_signature")).join(path)
}

fn key_text(name: &str) -> String {
    fs::read_to_string(fixture("keys").join(format!("{name}.pem"))).unwrap()
}

fn public(name: &str) -> EcPublicKey {
    EcPublicKey::read(&fixture("keys").join(format!("{name}.pem"))).unwrap()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to),
            false => drop(fs::copy(entry.path(), to).unwrap()),
        }
    }
}

/// The signed model in a folder that may be changed, with a signature in it.
struct SignedCopy(TempDir);

impl SignedCopy {
    fn with(signature: &str) -> Self {
        let copied = Self(TempDir::new().unwrap());
        copy(&fixture("model"), copied.folder());
        fs::copy(fixture(signature), copied.signature()).unwrap();
        copied
    }

    fn folder(&self) -> &Path {
        self.0.path()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder().join(name)
    }

    fn signature(&self) -> PathBuf {
        self.file(SIGNATURE_FILE)
    }

    fn verify(&self) -> Result<SignedFolder, SignatureError> {
        verify_folder(self.folder(), &self.signature(), &[public("public")])
    }

    fn refusal(&self) -> String {
        self.verify().unwrap_err().to_string()
    }
}

fn payload_of(signature: &[u8]) -> Value {
    let bundle: Value = serde_json::from_slice(signature).unwrap();
    serde_json::from_slice(&STANDARD.decode(bundle["dsseEnvelope"]["payload"].as_str().unwrap()).unwrap()).unwrap()
}

#[test]
fn a_folder_signed_by_the_tool_verifies() {
    for signature in ["model.sig", "ignored.sig"] {
        let copied = SignedCopy::with(signature);
        let signed = copied.verify().unwrap();
        let wanted: Vec<&str> =
            FILES.into_iter().filter(|file| signature == "model.sig" || !file.starts_with("sub/")).collect();
        assert_eq!(signed.files().collect::<Vec<_>>(), wanted);
        assert_eq!(signed.fingerprint(), public("public").fingerprint());
    }
    // Beside the folder as well, and with another trusted key.
    let keys = [public("other-public"), public("public")];
    verify_folder(&fixture("model"), &fixture("model.sig"), &keys).unwrap();
}

/// Test vectors of the tool's own repository: its key is on P-384, and versions before 1.1 named it differently.
#[test]
fn signatures_of_the_tools_own_tests_are_read() {
    let key = [EcPublicKey::read(&fixture("official/public.pem")).unwrap()];
    let folder = TempDir::new().unwrap();
    for version in ["v1.0.1", "v1.1.0"] {
        let copied = folder.path().join(version);
        copy(&fixture("official").join(version), &copied);
        let verify = || verify_folder(&copied, &copied.join(SIGNATURE_FILE), &key);
        if version == "v1.0.1" {
            // It does not list what it ignored: the tool takes that as an option.
            let said = verify().unwrap_err().to_string();
            assert!(said.contains("\"ignore-me\" is not in the signature"), "{said}");
            fs::remove_file(copied.join("ignore-me")).unwrap();
        }
        assert_eq!(verify().unwrap().files().collect::<Vec<_>>(), ["signme-1", "signme-2"]);
        fs::write(copied.join("signme-2"), "signme-3").unwrap();
        assert!(matches!(verify(), Err(SignatureError::Changed { file }) if file == "signme-2"));
        let other = verify_folder(&copied, &copied.join(SIGNATURE_FILE), &[public("public")]).unwrap_err().to_string();
        assert!(other.contains("was not signed by this key"), "{other}");
    }
    let refusal =
        |signature: &str| verify_folder(&folder.path().join("v1.1.0"), &fixture(signature), &key).unwrap_err();
    assert!(matches!(refusal("official/single-file-v1.0.0.sig"), SignatureError::SingleFile));
    for other in ["official/certificate.sig", "official/sigstore.sig"] {
        assert!(matches!(refusal(other), SignatureError::OtherScheme { .. }), "{other}");
    }
}

#[test]
fn every_changed_byte_of_a_file_is_refused_with_the_files_name() {
    let copied = SignedCopy::with("model.sig");
    for name in FILES {
        let path = copied.file(name);
        let bytes = fs::read(&path).unwrap();
        for at in 0..=bytes.len() {
            let mut changed = bytes.clone();
            match changed.get_mut(at) {
                Some(byte) => *byte ^= 1,
                None => changed.push(0),
            }
            fs::write(&path, changed).unwrap();
            assert!(
                matches!(copied.verify(), Err(SignatureError::Changed { file }) if file == name),
                "{name}, byte {at}"
            );
        }
        fs::write(&path, bytes).unwrap();
    }
    copied.verify().unwrap();
}

#[test]
fn every_changed_byte_of_a_signature_is_refused() {
    let copied = SignedCopy::with("model.sig");
    let bytes = fs::read(copied.signature()).unwrap();
    let text = String::from_utf8(bytes.clone()).unwrap();
    // Fields that are neither signed nor read; and a signature without a hint is checked against every key.
    let unread = ["\"tlogEntries\":[]", "\"keyid\":\"\"", "\"hint\":"];
    let unread: Vec<_> = unread.iter().map(|part| text.find(part).map(|at| at..at + part.len()).unwrap()).collect();
    let mut refused = 0;
    for at in 0..bytes.len() {
        for bit in [1, 0x20] {
            let mut changed = bytes.clone();
            changed[at] ^= bit;
            fs::write(copied.signature(), changed).unwrap();
            match copied.verify() {
                Ok(_) => assert!(unread.iter().any(|part| part.contains(&at)), "byte {at}, bit {bit}: {text}"),
                Err(
                    SignatureError::NoBundle { .. }
                    | SignatureError::NotSigned { .. }
                    | SignatureError::OtherKey { .. }
                    | SignatureError::OtherScheme { .. }
                    | SignatureError::UnknownMethod { .. },
                ) => refused += 1,
                Err(other) => panic!("byte {at}, bit {bit}: {other}"),
            }
        }
    }
    let most: usize = unread.iter().map(|part| part.len()).sum();
    assert!(refused >= 2 * (bytes.len() - most), "{refused}");
}

#[test]
fn every_changed_byte_of_a_key_is_refused() {
    let text = key_text("public");
    let signed = |text: &str| {
        let key = EcPublicKey::from_pem(text).map_err(|fault| fault.to_string())?;
        verify_folder(&fixture("model"), &fixture("model.sig"), &[key]).map(drop).map_err(|error| error.to_string())
    };
    signed(&text).unwrap();
    for at in text.char_indices().filter(|(_, letter)| !letter.is_whitespace()).map(|(at, _)| at) {
        let mut changed = text.clone().into_bytes();
        changed[at] ^= 1;
        let said = signed(&String::from_utf8(changed).unwrap()).unwrap_err();
        let known =
            ["it has no public key", "it is damaged", "it is of the wrong kind", "it was not signed by this key"];
        assert!(known.iter().any(|known| said.starts_with(known)), "byte {at}: {said}");
    }
}

#[test]
fn a_folder_not_signed_by_the_key_is_refused_by_name() {
    let copied = SignedCopy::with("model.sig");
    let other = verify_folder(copied.folder(), &copied.signature(), &[public("other-public")]).unwrap_err().to_string();
    assert!(
        other.contains(public("public").fingerprint()) && other.contains(public("other-public").fingerprint()),
        "{other}"
    );
    // Another key's signature under this key's name: a signer's name is only a claim.
    let mut stolen: Value = serde_json::from_slice(&fs::read(copied.signature()).unwrap()).unwrap();
    stolen["verificationMaterial"]["publicKey"]["hint"] = public("other-public").fingerprint().into();
    fs::write(copied.signature(), stolen.to_string()).unwrap();
    let refused = verify_folder(copied.folder(), &copied.signature(), &[public("other-public")]).unwrap_err();
    assert!(matches!(refused, SignatureError::NotSigned { .. }), "{refused}");
    // No keys at all.
    assert!(matches!(verify_folder(copied.folder(), &fixture("model.sig"), &[]), Err(SignatureError::OtherKey { .. })));
}

#[test]
fn added_and_removed_files_are_named() {
    let copied = SignedCopy::with("model.sig");
    fs::write(copied.file("sub/more.bin"), "more").unwrap();
    assert!(copied.refusal().contains("\"sub/more.bin\" is not in the signature"), "{}", copied.refusal());
    fs::remove_file(copied.file("sub/more.bin")).unwrap();
    // Git's files are not part of the model; a name that only begins like them is.
    fs::create_dir_all(copied.file(".git/objects")).unwrap();
    fs::write(copied.file(".git/objects/pack"), "git's").unwrap();
    copied.verify().unwrap();
    fs::write(copied.file(".github.onnx"), "not git's").unwrap();
    assert!(copied.refusal().contains("\".github.onnx\" is not in the signature"), "{}", copied.refusal());
    fs::remove_file(copied.file(".github.onnx")).unwrap();
    fs::remove_file(copied.file("config.json")).unwrap();
    assert!(copied.refusal().contains("\"config.json\" is missing"), "{}", copied.refusal());
}

#[test]
fn links_are_not_followed_and_pipes_do_not_block() {
    let copied = SignedCopy::with("model.sig");
    let outside = TempDir::new().unwrap();
    fs::rename(copied.file("config.json"), outside.path().join("config.json")).unwrap();
    symlink(outside.path().join("config.json"), copied.file("config.json")).unwrap();
    assert!(copied.refusal().contains("\"config.json\" in the folder is a symbolic link"), "{}", copied.refusal());
    let copied = SignedCopy::with("model.sig");
    fs::rename(copied.file("sub"), outside.path().join("sub")).unwrap();
    symlink(outside.path().join("sub"), copied.file("sub")).unwrap();
    assert!(copied.refusal().contains("\"sub\" in the folder is a symbolic link"), "{}", copied.refusal());
    let copied = SignedCopy::with("model.sig");
    fs::remove_file(copied.file("config.json")).unwrap();
    let made = std::process::Command::new("mkfifo").arg(copied.file("config.json")).status().unwrap();
    assert!(made.success());
    assert!(copied.refusal().contains("is neither a file nor a folder"), "{}", copied.refusal());
    fs::remove_file(copied.signature()).unwrap();
    fs::rename(copied.file("config.json"), copied.signature()).unwrap();
    assert!(matches!(copied.verify(), Err(SignatureError::Unreadable { path, .. }) if path == copied.signature()));
}

#[test]
fn unsupported_ways_of_signing_are_refused_by_name() {
    for (signature, named) in [
        ("shards.sig", "method \"shards\""),
        ("blake2.sig", "hash \"blake2b\""),
        ("blake3.sig", "hash \"blake3\""),
        ("single-file.sig", "of a single file"),
    ] {
        let refused = SignedCopy::with(signature).refusal();
        assert!(refused.contains(named), "{signature}: {refused}");
    }
    let copied = SignedCopy::with("model.sig");
    for none in ["", "no JSON", "[]", "{}", "{\"mediaType\": 7}"] {
        fs::write(copied.signature(), none).unwrap();
        assert!(copied.refusal().contains("it is not a signature of a model"), "{none:?}: {}", copied.refusal());
    }
    fs::write(copied.signature(), "[".repeat(1 << 20)).unwrap();
    assert!(copied.refusal().contains("it is not a signature of a model"), "{}", copied.refusal());
}

#[test]
fn every_read_is_bounded() {
    let copied = SignedCopy::with("model.sig");
    let sparse = fs::File::create(copied.signature()).unwrap();
    sparse.set_len(1 << 40).unwrap();
    assert!(
        matches!(copied.verify(), Err(SignatureError::TooLarge { size_bytes, .. }) if size_bytes == MAX_SIGNATURE_BYTES + 1)
    );
    let copied = SignedCopy::with("model.sig");
    for number in 0..=MAX_FILES {
        fs::create_dir(copied.file(&format!("folder-{number}"))).unwrap();
    }
    assert!(matches!(copied.verify(), Err(SignatureError::TooMany)));
}

#[test]
fn only_signed_bytes_are_copied() {
    let copied = SignedCopy::with("ignored.sig");
    let signed = copied.verify().unwrap();
    let into = TempDir::new().unwrap();
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    // Ignored by the signer, so nothing is known about it.
    let refused = signed.copy_files(&names(&["config.json", "sub/weights.bin"]), into.path());
    assert!(matches!(refused, Err(SignatureError::Unlisted { file }) if file == "sub/weights.bin"));
    let into = TempDir::new().unwrap();
    signed.copy_files(&names(&["config.json", "sub-a/weights.bin"]), into.path()).unwrap();
    assert_eq!(fs::read(into.path().join("sub-a/weights.bin")).unwrap(), b"more\n");
    // Changed after it was verified.
    fs::write(copied.file("empty.bin"), "full").unwrap();
    let refused = signed.copy_files(&names(&["empty.bin"]), into.path());
    assert!(matches!(refused, Err(SignatureError::Changed { file }) if file == "empty.bin"));
}

#[test]
fn our_signatures_verify_and_list_what_the_tool_lists() {
    for (secret, public_key) in [("pkcs8", "public"), ("sec1", "public"), ("p384", "")] {
        let key = EcPrivateKey::from_pem(&key_text(secret)).unwrap();
        let own = EcPublicKey::from_pem(&key.public_pem()).unwrap();
        assert_eq!(own.fingerprint(), key.public().fingerprint());
        if !public_key.is_empty() {
            assert_eq!(key.public_pem(), key_text(public_key), "{secret}");
        }
        // An earlier signature and git's files are not included.
        let copied = SignedCopy::with("model.sig");
        fs::create_dir(copied.file(".git")).unwrap();
        fs::write(copied.file(".git/HEAD"), "git's").unwrap();
        let signature = sign_folder(copied.folder(), &key).unwrap();
        let (ours, theirs) = (payload_of(&signature), payload_of(&fs::read(fixture("model.sig")).unwrap()));
        assert_eq!(ours["subject"][0]["digest"], theirs["subject"][0]["digest"], "{secret}");
        assert_eq!(ours["predicate"]["resources"], theirs["predicate"]["resources"], "{secret}");
        fs::write(copied.signature(), &signature).unwrap();
        verify_folder(copied.folder(), &copied.signature(), &[own]).unwrap();
        fs::write(copied.file("empty.bin"), "full").unwrap();
        let refused = verify_folder(copied.folder(), &copied.signature(), &[key.public().clone()]);
        assert!(matches!(refused, Err(SignatureError::Changed { file }) if file == "empty.bin"));
    }
    let linked = SignedCopy::with("model.sig");
    symlink("config.json", linked.file("link")).unwrap();
    let refused = sign_folder(linked.folder(), &EcPrivateKey::from_pem(&key_text("pkcs8")).unwrap());
    assert!(matches!(refused, Err(SignatureError::Special { file, .. }) if file == "link"));
}

#[test]
fn keys_of_the_wrong_kind_are_refused_by_name() {
    let secret = |text: &str| EcPrivateKey::from_pem(text).err().unwrap();
    let everybodys = |text: &str| EcPublicKey::from_pem(text).err().unwrap();
    for other in ["p521-public", "rsa-public", "ed25519-public", "compressed-public"] {
        assert_eq!(everybodys(&key_text(other)), KeyFault::WrongKind, "{other}");
    }
    for (name, fault) in [
        ("encrypted-pkcs8", KeyFault::Encrypted),
        ("encrypted-sec1", KeyFault::Encrypted),
        ("half", KeyFault::Half),
        ("explicit", KeyFault::WrongKind),
    ] {
        assert_eq!(secret(&key_text(name)), fault, "{name}");
    }
    for name in ["pkcs8", "sec1"] {
        assert_eq!(everybodys(&key_text(name)), KeyFault::Private);
    }
    assert!(matches!(secret(&key_text("public")), KeyFault::Absent { wanted: "private", .. }));
    assert!(matches!(everybodys("a certificate"), KeyFault::Absent { wanted: "public", .. }));
    // The halves of two keys: the public one is at the end of a private key's DER.
    let mut der =
        STANDARD.decode(key_text("pkcs8").lines().filter(|line| !line.starts_with('-')).collect::<String>()).unwrap();
    *der.last_mut().unwrap() ^= 1;
    let mixed = format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", STANDARD.encode(der));
    assert!(matches!(secret(&mixed), KeyFault::Damaged { .. }));
}

#[test]
fn a_private_key_that_others_may_read_is_refused() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("key.pem");
    fs::write(&path, key_text("pkcs8")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let open = EcPrivateKey::read(&path).err().unwrap().to_string();
    assert!(open.contains("mode 644") && open.contains("chmod 600"), "{open}");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(EcPrivateKey::read(&path).unwrap().public().fingerprint(), public("public").fingerprint());
}

#[test]
fn no_byte_of_a_private_key_can_be_another() {
    for (name, label) in [("pkcs8", "PRIVATE KEY"), ("sec1", "EC PRIVATE KEY")] {
        let text = key_text(name);
        let body: String = text
            .split(&format!("-----BEGIN {label}-----"))
            .nth(1)
            .unwrap()
            .lines()
            .take_while(|line| !line.starts_with('-'))
            .collect();
        let der = STANDARD.decode(body).unwrap();
        let read = |der: &[u8]| {
            let text = format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode(der));
            EcPrivateKey::from_pem(&text)
        };
        let whole = read(&der).unwrap();
        for at in 0..der.len() {
            assert!(read(&der[..at]).is_err(), "{name}, the first {at} bytes");
            for bit in 0..8 {
                let mut bent = der.clone();
                bent[at] ^= 1 << bit;
                // PKCS#8 of version 1 is read like version 0; nothing else may differ.
                if let Ok(key) = read(&bent) {
                    assert_eq!((name, at), ("pkcs8", 5), "bit {bit}");
                    assert_eq!(key.public().fingerprint(), whole.public().fingerprint());
                }
            }
        }
    }
}
