//! What stands on the tape: a tar as it is written and read here. Written with nothing but names, sizes and contents; read
//! entry by entry as they stand, so that nothing which other readers take for more than a regular file gets through: links,
//! devices, sparse files, and headers that give the next file another name or size.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::{Component, Path, PathBuf};

use schemas::BlobRef;
use sha2::{Digest, Sha256};
use tar::{Archive, Builder, EntryType, Header};

use super::{MAX_CONTENT_BYTES, MAX_FILES, PackageError};

/// Headers stand and contents end on blocks of this size, bytes.
pub(super) const BLOCK_BYTES: u64 = 512;
/// Two empty blocks say that nothing follows.
pub(super) const END_BYTES: u64 = 2 * BLOCK_BYTES;

/// What a file of a package is made of.
pub(super) enum TarContent<'a> {
    /// A file.
    File(PathBuf),
    /// Bytes at hand.
    Bytes(&'a [u8]),
}

/// Where a file lies in a package.
pub(super) struct TarEntry {
    /// Plain, relative, parts joined by `/`.
    pub name: String,
    /// Its first byte.
    pub at: u64,
    /// Its length.
    pub size_bytes: u64,
}

/// A name as a package has it, if it is one: parts joined by `/`, none of which leads up or to a root.
pub(super) fn plain_header(name: &str) -> Option<String> {
    let mut parts = Vec::new();
    for part in Path::new(name).components() {
        match part {
            Component::Normal(part) => parts.push(part.to_str()?),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(parts.join("/")).filter(|name| !name.is_empty())
}

/// Writes contents under their names.
pub(super) fn write<W: Write>(contents: &[(String, TarContent<'_>)], to: W, into: &Path) -> Result<W, PackageError> {
    let mut tape = Builder::new(to);
    for (name, content) in contents {
        match content {
            TarContent::Bytes(bytes) => {
                let header = header(name, bytes.len() as u64)?;
                tape.append(&header, *bytes).map_err(PackageError::at(into))?;
            }
            TarContent::File(path) => {
                let mut file = File::open(path).map_err(PackageError::at(path))?;
                let size_bytes = file.metadata().map_err(PackageError::at(path))?.len();
                let header = header(name, size_bytes)?;
                tape.append(&header, (&mut file).take(size_bytes)).map_err(PackageError::at(into))?;
                if file.stream_position().map_err(PackageError::at(path))? != size_bytes {
                    return Err(PackageError::Changed { path: path.clone() });
                }
            }
        }
    }
    tape.into_inner().map_err(PackageError::at(into))
}

fn header(name: &str, size_bytes: u64) -> Result<Header, PackageError> {
    // The plainest kind: a longer name would need a second header.
    let mut header = Header::new_ustar();
    header.set_path(name).map_err(|_| PackageError::Entry { name: name.to_owned(), why: "has too long a name" })?;
    header.set_entry_type(EntryType::Regular);
    header.set_size(size_bytes);
    header.set_mode(0o644);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_cksum();
    Ok(header)
}

/// What is in a package, if it may be unpacked. Reads headers only.
pub(super) fn read_entries(package: &Path) -> Result<Vec<TarEntry>, PackageError> {
    let damaged = |why: String| PackageError::Damaged { path: package.to_owned(), why };
    let file = File::open(package).map_err(PackageError::at(package))?;
    let found_bytes = file.metadata().map_err(PackageError::at(package))?.len();
    let mut archive = Archive::new(file);
    let (mut entries, mut names) = (Vec::new(), HashSet::new());
    let (mut content_bytes, mut whole_bytes) = (0_u64, END_BYTES);
    for entry in archive.entries_with_seek().map_err(|error| damaged(error.to_string()))?.raw(true) {
        let entry = entry.map_err(|error| damaged(error.to_string()))?;
        let path = entry.header().path_bytes();
        let name = String::from_utf8_lossy(&path).into_owned();
        let refused = |why| Err(PackageError::Entry { name: name.clone(), why });
        if !entry.header().entry_type().is_file() {
            return refused("is no regular file");
        }
        // Bytes that are no text were replaced above.
        if plain_header(&name).as_deref() != Some(&name) || name.as_bytes() != &*path {
            return refused("has no plain name");
        }
        if !names.insert(name.clone()) {
            return refused("is there twice");
        }
        content_bytes = content_bytes.saturating_add(entry.size());
        if content_bytes > MAX_CONTENT_BYTES {
            return Err(PackageError::TooLarge { size_bytes: content_bytes, limit_bytes: MAX_CONTENT_BYTES });
        }
        if entries.len() == MAX_FILES {
            return Err(PackageError::TooMany);
        }
        whole_bytes += BLOCK_BYTES + entry.size().next_multiple_of(BLOCK_BYTES);
        entries.push(TarEntry { name, at: entry.raw_file_position(), size_bytes: entry.size() });
    }
    match whole_bytes == found_bytes {
        true => Ok(entries),
        false => Err(damaged(format!("it has {found_bytes} bytes, what is in it makes {whole_bytes}"))),
    }
}

/// Hashes and counts what passes through it.
pub(super) struct HashingWriter<W> {
    to: W,
    hash: Sha256,
    size_bytes: u64,
}

impl<W> HashingWriter<W> {
    pub(super) fn new(to: W) -> Self {
        Self { to, hash: Sha256::new(), size_bytes: 0 }
    }

    pub(super) fn finish(self) -> (BlobRef, W) {
        (BlobRef::new(self.hash.finalize().into(), self.size_bytes), self.to)
    }
}

impl<W: Write> Write for HashingWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.to.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.size_bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}
