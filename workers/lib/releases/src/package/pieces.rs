//! A package in pieces: permanently in the release store, temporarily in a blob bucket for whoever fetches it next, and
//! assembled into a file. One piece is in memory at a time. Assembling may be interrupted at any moment: pieces already
//! in the file with the right hash are not fetched again (invariant 4).
//!
//! ```text
//! models/<model>/packages/<sha256>   a piece in the release store, shared by all releases that contain it
//! ```

use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use schemas::limits::PIECE_BYTES;
use schemas::{BlobRef, ModelName};
use sha2::{Digest, Sha256};
use streams::{Blobs, CarryError, ReleaseStore};
use tempfile::NamedTempFile;

use super::archive::{BLOCK_BYTES, END_BYTES};
use super::{MAX_CONTENT_BYTES, MAX_FILES, PackageError, make_folder, parent, rename_durably, temporary_path};

const WHOLE_BYTES: u64 = PIECE_BYTES as u64;
/// Most bytes of a package: each file has a header block and is padded to a full block.
const MAX_PACKAGE_BYTES: u64 = MAX_CONTENT_BYTES + MAX_FILES as u64 * 2 * BLOCK_BYTES + END_BYTES;

/// The pieces of a file, in order: each of [`PIECE_BYTES`], the last one shorter. None for an empty file.
pub fn split(file: &Path) -> Result<Vec<BlobRef>, PackageError> {
    let mut pieces = Vec::new();
    loop {
        let bytes = piece(file, pieces.len())?;
        if bytes.is_empty() {
            return Ok(pieces);
        }
        pieces.push(blob_of(&bytes));
    }
}

/// The piece of a file with this index, from 0; empty past the end.
pub fn piece(file: &Path, index: usize) -> Result<Vec<u8>, PackageError> {
    let mut bytes = Vec::new();
    let read = File::open(file).and_then(|mut open| {
        open.seek(SeekFrom::Start(start(index)))?;
        open.take(WHOLE_BYTES).read_to_end(&mut bytes)
    });
    read.map_err(PackageError::at(file))?;
    Ok(bytes)
}

/// Stores a package's pieces in the release store, each once; existing ones stay. Fails if the file no longer matches
/// its pieces. Uses a temporary file of one piece.
pub async fn keep(
    store: &ReleaseStore,
    model: &ModelName,
    file: &Path,
    pieces: &[BlobRef],
) -> Result<(), PackageError> {
    length(pieces)?;
    for (index, blob) in pieces.iter().enumerate() {
        let file = file.to_owned();
        let alone = spawn_blocking(move || {
            let bytes = piece(&file, index)?;
            let written = NamedTempFile::new().and_then(|mut alone| {
                alone.write_all(&bytes)?;
                Ok(alone)
            });
            written.map_err(PackageError::at(std::env::temp_dir()))
        });
        store.put_file(&path(model, blob), blob, alone.await?.path()).await?;
    }
    Ok(())
}

/// Copies a package's pieces from the release store into a blob bucket, for those who fetch it there; pieces already
/// there are not read. Objects in a bucket expire, so a release that is still needed is offered again.
pub async fn offer(
    store: &ReleaseStore,
    model: &ModelName,
    blobs: &Blobs,
    pieces: &[BlobRef],
) -> Result<(), PackageError> {
    length(pieces)?;
    for piece in pieces {
        if !blobs.has_blob(piece).await? {
            blobs.store_blob(&PieceSource::Store(store, model).get(piece).await?).await?;
        }
    }
    Ok(())
}

/// Assembles a package from the release store, as [`assemble`] does from a bucket.
pub async fn fetch(
    store: &ReleaseStore,
    model: &ModelName,
    pieces: &[BlobRef],
    into: &Path,
) -> Result<(), PackageError> {
    assemble_from(PieceSource::Store(store, model), pieces, into).await
}

/// Assembles a package from a blob bucket. The file ends up complete, or is not created; one that already has these
/// pieces is left alone. Pieces that arrived are kept in a file beside it if others are missing, and are not fetched
/// again; a missing piece does not stop the others. Only one call per file at a time.
pub async fn assemble(blobs: &Blobs, pieces: &[BlobRef], into: &Path) -> Result<(), PackageError> {
    assemble_from(PieceSource::Bucket(blobs), pieces, into).await
}

/// Source of pieces. Both check hashes.
#[derive(Clone, Copy)]
enum PieceSource<'a> {
    Store(&'a ReleaseStore, &'a ModelName),
    Bucket(&'a Blobs),
}

impl PieceSource<'_> {
    async fn get(self, piece: &BlobRef) -> Result<Bytes, CarryError> {
        match self {
            Self::Bucket(blobs) => blobs.fetch_blob(piece, WHOLE_BYTES).await,
            Self::Store(store, model) => {
                let at = |source| CarryError::File { path: std::env::temp_dir(), source };
                let folder = tempfile::tempdir().map_err(at)?;
                let alone = folder.path().join("piece");
                store.fetch(&path(model, piece), piece, WHOLE_BYTES, &alone).await?;
                Ok(tokio::fs::read(&alone).await.map_err(at)?.into())
            }
        }
    }
}

async fn assemble_from(source: PieceSource<'_>, pieces: &[BlobRef], into: &Path) -> Result<(), PackageError> {
    let size_bytes = length(pieces)?;
    let (wanted, whole) = (pieces.to_vec(), into.to_owned());
    let Some((file, present)) = spawn_blocking(move || open(&wanted, size_bytes, &whole)).await? else { return Ok(()) };
    let file = Arc::new(file);
    let partial = temporary_path(into, "partial");
    let (mut missing, mut first) = (0, None);
    for (index, piece) in pieces.iter().enumerate().filter(|(index, _)| present.get(*index) != Some(&true)) {
        match source.get(piece).await {
            Ok(bytes) => {
                let file = file.clone();
                let written = spawn_blocking(move || Ok(file.write_all_at(&bytes, start(index)))).await?;
                written.map_err(PackageError::at(&partial))?;
            }
            Err(error @ (CarryError::BadBlob { .. } | CarryError::BadObject { .. })) => {
                missing += 1;
                first.get_or_insert(error);
            }
            Err(error) => return Err(error.into()),
        }
    }
    if let Some(first) = first {
        return Err(PackageError::Missing { missing, pieces: pieces.len(), first });
    }
    let into = into.to_owned();
    spawn_blocking(move || {
        // The partial file may be from a longer package.
        file.set_len(size_bytes).map_err(PackageError::at(&partial))?;
        rename_durably(&partial, &into)
    })
    .await
}

/// The partial file and which pieces it has; `None` if the file itself is complete.
fn open(pieces: &[BlobRef], size_bytes: u64, into: &Path) -> Result<Option<(File, Vec<bool>)>, PackageError> {
    make_folder(parent(into))?;
    if let Ok(file) = File::open(into)
        && file.metadata().is_ok_and(|found| found.len() == size_bytes)
        && present_pieces(&file, pieces).map_err(PackageError::at(into))?.into_iter().all(|present| present)
    {
        return Ok(None);
    }
    let partial = temporary_path(into, "partial");
    let options = File::options().read(true).write(true).create(true).truncate(false).open(&partial);
    let file = options.map_err(PackageError::at(&partial))?;
    let present = present_pieces(&file, pieces).map_err(PackageError::at(&partial))?;
    Ok(Some((file, present)))
}

/// Which pieces a file has at their positions.
fn present_pieces(file: &File, pieces: &[BlobRef]) -> io::Result<Vec<bool>> {
    let mut bytes = Vec::new();
    let is_held = |(index, piece): (usize, &BlobRef)| {
        bytes.resize(usize::try_from(piece.size_bytes).unwrap_or(PIECE_BYTES), 0);
        match file.read_exact_at(&mut bytes, start(index)) {
            Ok(()) => Ok(blob_of(&bytes).sha256 == piece.sha256),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(error),
        }
    };
    pieces.iter().enumerate().map(is_held).collect()
}

/// Length in bytes of the package with these pieces; refuses lists that [`split`] cannot produce.
fn length(pieces: &[BlobRef]) -> Result<u64, PackageError> {
    let wrong = |why: String| Err(PackageError::Pieces { why });
    let Some((last, before)) = pieces.split_last() else { return wrong("the list is empty".into()) };
    let odd = before.iter().find(|piece| piece.size_bytes != WHOLE_BYTES);
    if let Some(odd) = odd.or(Some(last).filter(|last| !(1..=WHOLE_BYTES).contains(&last.size_bytes))) {
        return wrong(format!(
            "one has {} bytes; each must have {WHOLE_BYTES}, and the last at most that",
            odd.size_bytes
        ));
    }
    let size_bytes = start(before.len()) + last.size_bytes;
    match size_bytes > MAX_PACKAGE_BYTES {
        true => Err(PackageError::TooLarge { size_bytes, limit_bytes: MAX_PACKAGE_BYTES }),
        false => Ok(size_bytes),
    }
}

fn start(index: usize) -> u64 {
    index as u64 * WHOLE_BYTES
}

fn path(model: &ModelName, piece: &BlobRef) -> String {
    format!("models/{model}/packages/{}", piece.sha256)
}

fn blob_of(bytes: &[u8]) -> BlobRef {
    BlobRef::new(Sha256::digest(bytes).into(), bytes.len() as u64)
}

/// Runs blocking work off the async threads.
async fn spawn_blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PackageError> + Send + 'static,
) -> Result<T, PackageError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| PackageError::Broke(error.to_string()))?
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of three pieces, no two alike.
    fn three() -> (tempfile::TempDir, std::path::PathBuf, Vec<u8>) {
        let folder = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = (0..2 * PIECE_BYTES + 1000).map(|at| (at / 1000 % 251) as u8).collect();
        let file = folder.path().join("package");
        std::fs::write(&file, &bytes).unwrap();
        (folder, file, bytes)
    }

    #[test]
    fn the_pieces_of_a_file_are_the_file() {
        let (folder, file, bytes) = three();
        let pieces = split(&file).unwrap();
        let sizes: Vec<u64> = pieces.iter().map(|piece| piece.size_bytes).collect();
        assert_eq!(sizes, [WHOLE_BYTES, WHOLE_BYTES, 1000]);
        let joined: Vec<u8> = (0..3).flat_map(|index| piece(&file, index).unwrap()).collect();
        assert!(joined == bytes && piece(&file, 3).unwrap().is_empty());
        assert_eq!(blob_of(&piece(&file, 1).unwrap()), pieces[1]);
        assert_eq!(length(&pieces).unwrap(), bytes.len() as u64);
        let empty = folder.path().join("empty");
        std::fs::write(&empty, "").unwrap();
        assert!(split(&empty).unwrap().is_empty());
    }

    #[test]
    fn a_partial_file_has_only_pieces_that_are_whole_and_in_place() {
        let (_folder, file, bytes) = three();
        let pieces = split(&file).unwrap();
        let held_by = |bytes: &[u8]| {
            std::fs::write(&file, bytes).unwrap();
            present_pieces(&File::open(&file).unwrap(), &pieces).unwrap()
        };
        assert_eq!(held_by(&[]), [false, false, false]);
        assert_eq!(held_by(&bytes[..PIECE_BYTES - 1]), [false, false, false]);
        assert_eq!(held_by(&bytes[..PIECE_BYTES]), [true, false, false]);
        assert_eq!(held_by(&bytes[..2 * PIECE_BYTES + 999]), [true, true, false]);
        assert_eq!(held_by(&[&bytes[..], b"more"].concat()), [true, true, true]);
        let mut hole = bytes.clone();
        hole[..PIECE_BYTES].fill(0);
        assert_eq!(held_by(&hole), [false, true, true]);
        hole[PIECE_BYTES] ^= 1;
        assert_eq!(held_by(&hole), [false, false, true]);
    }

    #[test]
    fn a_complete_file_is_not_fetched_again() {
        let (folder, file, bytes) = three();
        let pieces = split(&file).unwrap();
        assert!(open(&pieces, bytes.len() as u64, &file).unwrap().is_none());
        std::fs::write(&file, [&bytes[..], b"more"].concat()).unwrap();
        let (_, present) = open(&pieces, bytes.len() as u64, &file).unwrap().unwrap();
        assert_eq!(present, [false; 3]);
        assert!(folder.path().join(".package.partial").exists());
    }

    #[test]
    fn impossible_lists_of_pieces_are_refused() {
        let of = |sizes: &[u64]| length(&sizes.iter().map(|size| BlobRef::new([1; 32], *size)).collect::<Vec<_>>());
        for sizes in [&[][..], &[0], &[WHOLE_BYTES + 1], &[1, 1], &[WHOLE_BYTES, 0], &[u64::MAX, 1]] {
            let error = of(sizes).unwrap_err();
            assert!(matches!(error, PackageError::Pieces { .. }), "{sizes:?}: {error}");
        }
        assert!(matches!(of(&[WHOLE_BYTES; 100]), Err(PackageError::TooLarge { .. })));
        assert_eq!(of(&[WHOLE_BYTES, 5]).unwrap(), WHOLE_BYTES + 5);
    }

    #[test]
    fn pieces_that_were_bent_are_no_longer_than_a_package() {
        let piece = |size: u64| BlobRef::new([7; 32], size);
        let pieces = serde_json::to_vec(&[piece(WHOLE_BYTES), piece(WHOLE_BYTES), piece(700)]).unwrap();
        bend::bend_all("lists of pieces", &[pieces], bend::turns() / 2, |bytes| {
            if let Ok(pieces) = serde_json::from_slice::<Vec<BlobRef>>(bytes)
                && let Ok(size_bytes) = length(&pieces)
            {
                assert!(size_bytes <= MAX_PACKAGE_BYTES, "{size_bytes}");
            }
            1
        });
    }
}
