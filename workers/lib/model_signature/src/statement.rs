//! The inner layers of a signature: an in-toto statement with the digest of every file.

use std::collections::BTreeMap;

use ring::digest;
use serde::Deserialize;
use serde_json::json;

use crate::error::SignatureError;
use crate::folder::{FileDigest, hex};
use crate::{MAX_FILES, SIGNATURE_FILE};

const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
const PREDICATE_TYPE: &str = "https://model_signing/signature/v1.0";
const SHA256: &str = "sha256";
const WHOLE_FILES: &str = "files";
/// The tool's name for the file if the model is a single file.
const ITSELF: &str = ".";
/// Entries that the tool ignores in every folder.
pub(crate) const OF_GIT: [&str; 4] = [".git", ".gitattributes", ".github", ".gitignore"];

/// What a signature says about a folder.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct FileList {
    /// Digest of each file, by its path in the folder.
    pub(crate) files: BTreeMap<String, FileDigest>,
    /// What the signer ignored: files, or folders with everything in them.
    pub(crate) ignored: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct StatementHead {
    #[serde(rename = "_type")]
    kind: String,
    predicate_type: String,
}

#[derive(Deserialize)]
struct InTotoStatement {
    subject: Vec<SignedSubject>,
    predicate: FolderPredicate,
}

#[derive(Deserialize)]
struct SignedSubject {
    digest: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct FolderPredicate {
    serialization: FolderReading,
    resources: Vec<SignedResource>,
}

/// How the signer read the folder. Whether links were allowed does not matter for files without links.
#[derive(Deserialize)]
struct FolderReading {
    method: String,
    hash_type: String,
    #[serde(default)]
    ignore_paths: Vec<String>,
}

#[derive(Deserialize)]
struct SignedResource {
    name: String,
    algorithm: String,
    digest: String,
}

/// Parses signed bytes. Pure.
pub(crate) fn read(payload: &[u8]) -> Result<FileList, SignatureError> {
    let unknown = |part, value: &str| Err(SignatureError::UnknownMethod { part, value: value.to_owned() });
    let contradicts = |why: String| SignatureError::Inconsistent { why };
    let none = |error: serde_json::Error| SignatureError::NoBundle { why: format!("what was signed: {error}") };
    let head: StatementHead = serde_json::from_slice(payload).map_err(none)?;
    if head.kind != STATEMENT_TYPE {
        return unknown("statement type", &head.kind);
    }
    if head.predicate_type != PREDICATE_TYPE {
        return unknown("predicate type", &head.predicate_type);
    }
    let statement: InTotoStatement = serde_json::from_slice(payload).map_err(none)?;
    let FolderPredicate { serialization, resources } = statement.predicate;
    if serialization.method != WHOLE_FILES {
        return unknown("method", &serialization.method);
    }
    let mut algorithms = resources.iter().map(|resource| resource.algorithm.as_str());
    if let Some(other) =
        std::iter::once(serialization.hash_type.as_str()).chain(&mut algorithms).find(|of| *of != SHA256)
    {
        return unknown("hash", other);
    }
    if resources.len() > MAX_FILES {
        return Err(SignatureError::TooMany);
    }
    let (mut files, mut all) = (BTreeMap::new(), digest::Context::new(&digest::SHA256));
    for SignedResource { name, digest, .. } in resources {
        if name == ITSELF {
            return Err(SignatureError::SingleFile);
        }
        if !is_inside(&name) {
            return Err(contradicts(format!("{name:?} is not a path in a folder")));
        }
        let digest = of_hex(&digest).ok_or_else(|| contradicts(format!("the digest of {name:?} is invalid")))?;
        all.update(&digest);
        if files.insert(name.clone(), digest).is_some() {
            return Err(contradicts(format!("{name:?} is listed twice")));
        }
    }
    let [subject] = &statement.subject[..] else {
        return Err(contradicts(format!("it has {} subjects instead of one", statement.subject.len())));
    };
    if subject.digest.get(SHA256).map(String::as_str) != Some(hex(all.finish().as_ref()).as_str()) {
        return Err(contradicts("the digest of all files does not match the listed ones".into()));
    }
    Ok(FileList { files, ignored: serialization.ignore_paths.into_iter().filter(|path| is_inside(path)).collect() })
}

/// The bytes to sign for a folder with these file digests. Pure.
pub(crate) fn write(name: &str, files: &BTreeMap<String, FileDigest>) -> Result<Vec<u8>, SignatureError> {
    // The tool sorts paths component by component: `sub/x` is before `sub-a/x`.
    let mut sorted: Vec<(&String, &FileDigest)> = files.iter().collect();
    sorted.sort_by(|(one, _), (other, _)| one.split('/').cmp(other.split('/')));
    let mut all = digest::Context::new(&digest::SHA256);
    sorted.iter().for_each(|(_, digest)| all.update(*digest));
    let resources: Vec<_> = sorted
        .iter()
        .map(|(name, digest)| json!({ "name": name, "algorithm": SHA256, "digest": hex(*digest) }))
        .collect();
    let ignored: Vec<&str> = OF_GIT.into_iter().chain([SIGNATURE_FILE]).collect();
    let statement = json!({
        "_type": STATEMENT_TYPE,
        "subject": [{ "name": name, "digest": { SHA256: hex(all.finish().as_ref()) } }],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "serialization": {
                "method": WHOLE_FILES, "hash_type": SHA256, "allow_symlinks": false, "ignore_paths": ignored,
            },
            "resources": resources,
        },
    });
    serde_json::to_vec(&statement).map_err(|error| SignatureError::NotMade { why: error.to_string() })
}

/// Whether a path names something in a folder unambiguously.
fn is_inside(path: &str) -> bool {
    !path.contains('\0') && path.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

/// From 64 hexadecimal digits.
fn of_hex(text: &str) -> Option<FileDigest> {
    let text = text.as_bytes();
    let mut digest = FileDigest::default();
    if text.len() != digest.len() * 2 {
        return None;
    }
    for (byte, pair) in digest.iter_mut().zip(text.chunks_exact(2)) {
        let digits =
            std::str::from_utf8(pair).ok().filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
        *byte = u8::from_str_radix(digits?, 16).ok()?;
    }
    Some(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(names: &[&str]) -> BTreeMap<String, FileDigest> {
        names.iter().enumerate().map(|(number, name)| ((*name).to_owned(), [number as u8; 32])).collect()
    }

    fn changed(change: impl FnOnce(&mut serde_json::Value)) -> String {
        let mut value = serde_json::from_slice(&write("fish", &list(&["a", "b/c"])).unwrap()).unwrap();
        change(&mut value);
        read(&serde_json::to_vec(&value).unwrap()).unwrap_err().to_string()
    }

    #[test]
    fn what_is_written_is_read_again() {
        let files = list(&["a", "b/c", "Ж.bin"]);
        let read = read(&write("fish", &files).unwrap()).unwrap();
        assert_eq!(read.files, files);
        assert_eq!(read.ignored, [".git", ".gitattributes", ".github", ".gitignore", "model.sig"]);
    }

    #[test]
    fn files_are_in_order_of_the_parts_of_their_paths() {
        let written: serde_json::Value =
            serde_json::from_slice(&write("fish", &list(&["sub-a/x", "sub/x", "sub.b", "Z"])).unwrap()).unwrap();
        let names: Vec<&str> = written["predicate"]["resources"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| one["name"].as_str().unwrap())
            .collect();
        assert_eq!(names, ["Z", "sub/x", "sub-a/x", "sub.b"]);
    }

    #[test]
    fn unknown_methods_are_refused_by_name() {
        let refused = [
            ("method \"shards\"", changed(|value| value["predicate"]["serialization"]["method"] = "shards".into())),
            ("hash \"blake3\"", changed(|value| value["predicate"]["serialization"]["hash_type"] = "blake3".into())),
            ("hash \"md5\"", changed(|value| value["predicate"]["resources"][1]["algorithm"] = "md5".into())),
            ("predicate type", changed(|value| value["predicateType"] = "https://model_signing/Digests/v0.1".into())),
            ("statement type", changed(|value| value["_type"] = "https://in-toto.io/Statement/v0.1".into())),
            ("single file", changed(|value| value["predicate"]["resources"][0]["name"] = ".".into())),
            (
                "contradicts itself",
                changed(|value| value["predicate"]["resources"][0]["digest"] = "+0".repeat(32).into()),
            ),
            ("contradicts itself", changed(|value| value["subject"][0]["digest"]["sha256"] = "0".repeat(64).into())),
            (
                "2 subjects",
                changed(|value| {
                    let one = value["subject"][0].clone();
                    value["subject"].as_array_mut().unwrap().push(one)
                }),
            ),
            ("listed twice", changed(|value| value["predicate"]["resources"][1]["name"] = "a".into())),
            ("missing field", changed(|value| drop(value["predicate"].as_object_mut().unwrap().remove("resources")))),
        ];
        for (wanted, said) in refused {
            assert!(said.contains(wanted), "{wanted}: {said}");
        }
        for name in ["/etc/passwd", "../a", "b/../../a", "b//c", "./a", "b/", "", "a\0b"] {
            let said = changed(|value| value["predicate"]["resources"][0]["name"] = name.into());
            assert!(said.contains("is not a path in a folder"), "{name:?}: {said}");
        }
    }

    #[test]
    fn ten_thousand_files_are_enough() {
        let names: Vec<String> = (0..=MAX_FILES).map(|number| number.to_string()).collect();
        let files = names.iter().map(|name| (name.clone(), [0; 32])).collect();
        assert!(matches!(read(&write("fish", &files).unwrap()), Err(SignatureError::TooMany)));
    }

    /// A malicious signer can sign anything: the inside is parsed as strictly as the outside.
    #[test]
    fn whatever_was_signed_is_refused_or_names_files_of_the_folder() {
        let payload = write("fish", &list(&["a", "b/c"])).unwrap();
        let mut read_ones = 0;
        for at in 0..payload.len() {
            assert!(read(&payload[..at]).is_err(), "the first {at} bytes");
            for other in [0, b' ', b'"', b'.', b'/', b'0', b'[', b'{', b'}', 0x7f, 0x80, 0xff] {
                let mut bent = payload.clone();
                bent[at] = other;
                if let Ok(list) = read(&bent) {
                    read_ones += 1;
                    assert!(
                        list.files.len() == 2 && list.files.keys().all(|name| is_inside(name)),
                        "byte {at}: {list:?}"
                    );
                }
            }
        }
        assert!(read_ones > 0);
    }
}
