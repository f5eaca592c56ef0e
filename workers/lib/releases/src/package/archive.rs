//! The tar format of a package, as it is written and read here. Written with only names, sizes and contents; read
//! header by header, so that nothing passes that other readers would treat as more than a regular file: links, devices,
//! sparse files, and headers that change the next file's name or size.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::{Component, Path, PathBuf};

use schemas::BlobRef;
use sha2::{Digest, Sha256};
use tar::{Archive, Builder, EntryType, Header};

use super::{MAX_CONTENT_BYTES, MAX_FILES, PackageError};

/// Headers and contents are aligned to blocks of this many bytes.
pub(super) const BLOCK_BYTES: u64 = 512;
/// Two empty blocks mark the end.
pub(super) const END_BYTES: u64 = 2 * BLOCK_BYTES;

/// Content of a file in a package.
pub(super) enum TarContent<'a> {
    /// A file on disk.
    File(PathBuf),
    /// Bytes in memory.
    Bytes(&'a [u8]),
}

/// Position of a file in a package.
pub(super) struct TarEntry {
    /// Plain and relative, with parts joined by `/`.
    pub name: String,
    /// Offset of its first byte.
    pub at: u64,
    /// Its length in bytes.
    pub size_bytes: u64,
}

/// The plain form of a name: parts joined by `/`, none of which goes up or to a root; `None` if there is none.
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
    // The plainest kind of header: a longer name would need a second one.
    let mut header = Header::new_ustar();
    header
        .set_path(name)
        .map_err(|_| PackageError::Entry { name: name.to_owned(), why: "has a name that is too long" })?;
    header.set_entry_type(EntryType::Regular);
    header.set_size(size_bytes);
    header.set_mode(0o644);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_cksum();
    Ok(header)
}

/// Lists a package's files, if it may be unpacked. Reads headers only.
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
            return refused("is not a regular file");
        }
        // Bytes that are not UTF-8 were replaced above.
        if plain_header(&name).as_deref() != Some(&name) || name.as_bytes() != &*path {
            return refused("has a name that is not plain");
        }
        if !names.insert(name.clone()) {
            return refused("appears twice");
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
        false => Err(damaged(format!("it has {found_bytes} bytes, its entries need {whole_bytes}"))),
    }
}

/// Hashes and counts the bytes written through it.
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
        self.hash.update(bytes.get(..written).unwrap_or(bytes));
        self.size_bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}
