//! Lists, digests and copies a folder's files without following links.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use ring::digest;

use crate::error::SignatureError;
use crate::statement::{FileList, OF_GIT};
use crate::{MAX_FILES, SIGNATURE_FILE};

/// SHA-256 of a file.
pub(crate) type FileDigest = [u8; digest::SHA256_OUTPUT_LEN];

const BUFFER_BYTES: usize = 128 << 10;

/// A folder that matched its signature when it was verified.
#[derive(Debug, Clone)]
pub struct SignedFolder {
    folder: PathBuf,
    fingerprint: String,
    files: BTreeMap<String, FileDigest>,
}

impl SignedFolder {
    pub(crate) fn new(folder: &Path, fingerprint: String, files: BTreeMap<String, FileDigest>) -> Self {
        Self { folder: folder.to_owned(), fingerprint, files }
    }

    /// Fingerprint of the key that signed it ([`crate::EcPublicKey::fingerprint`]).
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// The signed files, relative to the folder.
    pub fn files(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str)
    }

    /// Copies some of its files and checks the very bytes that are written against the signature: whoever uses the copy
    /// uses what was signed, even if the folder changes meanwhile.
    ///
    /// # Errors
    /// A file is not in the signature, was changed, or cannot be copied.
    pub fn copy_files(&self, files: &[String], into: &Path) -> Result<(), SignatureError> {
        for file in files {
            let unlisted = || SignatureError::Unlisted { file: file.clone() };
            let wanted = self.files.get(file).ok_or_else(unlisted)?;
            let to = into.join(file);
            let unwritable = |source| SignatureError::Unreadable { path: to.clone(), source };
            to.parent().map_or(Ok(()), fs::create_dir_all).map_err(unwritable)?;
            let mut copy = File::create_new(&to).map_err(unwritable)?;
            if digest_file(&self.folder, file, &mut copy)? != *wanted {
                return Err(SignatureError::Changed { file: file.clone() });
            }
        }
        Ok(())
    }
}

/// Checks a folder's files against a list.
pub(crate) fn check(folder: &Path, signature: &Path, list: &FileList) -> Result<(), SignatureError> {
    let mut left_out: Vec<String> = OF_GIT.into_iter().map(str::to_owned).chain(list.ignored.iter().cloned()).collect();
    left_out.extend(place_in(folder, signature));
    let found = list_files(folder, &|path| {
        let is_left_out = left_out.iter().any(|left_out| is_at_or_below(path, left_out));
        let is_listed = || list.files.contains_key(path) || has_below(&list.files, path);
        is_left_out && !is_listed()
    })?;
    if let Some(file) = found.iter().find(|file| !list.files.contains_key(*file)) {
        return Err(SignatureError::Unlisted { file: file.clone() });
    }
    if let Some(file) = list.files.keys().find(|file| !found.contains(*file)) {
        return Err(SignatureError::Missing { file: file.clone() });
    }
    for (file, wanted) in &list.files {
        if digest_file(folder, file, &mut io::sink())? != *wanted {
            return Err(SignatureError::Changed { file: file.clone() });
        }
    }
    Ok(())
}

/// The digest of every file that a signature made here covers.
pub(crate) fn digest_files(folder: &Path) -> Result<BTreeMap<String, FileDigest>, SignatureError> {
    let left_out: BTreeSet<&str> = OF_GIT.into_iter().chain([SIGNATURE_FILE]).collect();
    let found = list_files(folder, &|path| left_out.contains(path))?;
    found.into_iter().map(|file| Ok((file.clone(), digest_file(folder, &file, &mut io::sink())?))).collect()
}

/// The last component of a folder's path, as text; it is written into signatures for people only.
pub(crate) fn name_of(folder: &Path) -> String {
    let whole = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    whole.file_name().map_or_else(|| "model".into(), |name| name.to_string_lossy().into_owned())
}

/// Hexadecimal digits of bytes.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether a link to a file may be followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LinkPolicy {
    Followed,
    Refused,
}

/// Opens a regular file; a pipe does not block.
pub(crate) fn open_regular(path: &Path, links: LinkPolicy) -> io::Result<File> {
    let flags = if links == LinkPolicy::Refused { libc::O_NOFOLLOW } else { 0 };
    let file = OpenOptions::new().read(true).custom_flags(flags | libc::O_NONBLOCK).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file")),
    }
}

/// Every file of a folder except ignored ones, as relative paths.
fn list_files(folder: &Path, is_left_out: &dyn Fn(&str) -> bool) -> Result<BTreeSet<String>, SignatureError> {
    let (mut files, mut folders, mut seen) = (BTreeSet::new(), vec![String::new()], 0);
    while let Some(inside) = folders.pop() {
        let at = folder.join(&inside);
        let unreadable = |source| SignatureError::Unreadable { path: at.clone(), source };
        for entry in fs::read_dir(&at).map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?;
            seen += 1;
            if seen > MAX_FILES {
                return Err(SignatureError::TooMany);
            }
            let join = |name: &str| if inside.is_empty() { name.to_owned() } else { format!("{inside}/{name}") };
            let name = entry.file_name();
            let special = |kind| SignatureError::Special { file: join(&name.to_string_lossy()), kind };
            let path = join(name.to_str().ok_or_else(|| special("named in something other than UTF-8"))?);
            if is_left_out(&path) {
                continue;
            }
            let kind = entry.file_type().map_err(unreadable)?;
            match (kind.is_dir(), kind.is_file()) {
                (true, _) => folders.push(path),
                (_, true) => drop(files.insert(path)),
                _ if kind.is_symlink() => return Err(special("a symbolic link")),
                _ => return Err(special("neither a file nor a folder")),
            }
        }
    }
    Ok(files)
}

/// The digest of a file; its bytes are also written to `to`.
fn digest_file(folder: &Path, file: &str, to: &mut dyn Write) -> Result<FileDigest, SignatureError> {
    let path = folder.join(file);
    let unreadable = |source| SignatureError::Unreadable { path: path.clone(), source };
    let mut from = open_regular(&path, LinkPolicy::Refused).map_err(unreadable)?;
    let (mut digest, mut buffer) = (digest::Context::new(&digest::SHA256), vec![0; BUFFER_BYTES]);
    loop {
        let count = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(unreadable(error)),
        };
        let bytes = buffer.get(..count).unwrap_or_default();
        digest.update(bytes);
        to.write_all(bytes).map_err(unreadable)?;
    }
    let mut whole = FileDigest::default();
    whole.copy_from_slice(digest.finish().as_ref());
    Ok(whole)
}

/// A file's path relative to a folder; `None` if it is not inside.
fn place_in(folder: &Path, file: &Path) -> Option<String> {
    let (folder, file) = (folder.canonicalize().ok()?, file.canonicalize().ok()?);
    file.strip_prefix(folder).ok()?.to_str().map(str::to_owned)
}

fn is_at_or_below(path: &str, folder: &str) -> bool {
    path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn has_below(files: &BTreeMap<String, FileDigest>, folder: &str) -> bool {
    let beginning = format!("{folder}/");
    files.range(beginning.clone()..).next().is_some_and(|(file, _)| file.starts_with(&beginning))
}
