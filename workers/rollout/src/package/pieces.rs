//! A package in pieces: in the release store for good, in a blob bucket for whoever fetches it next, and a file of them.
//! One piece is in memory at a time. A file that is put together can be cut off at any moment: what is in it and has the
//! right hash is not fetched again (invariant 4).
//!
//! ```text
//! models/<model>/packages/<sha256>   a piece, in the release store; releases that share pieces share them there too
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
/// Largest package, bytes: a file has a block before it and fills its last one.
const MAX_PACKAGE_BYTES: u64 = MAX_CONTENT_BYTES + MAX_FILES as u64 * 2 * BLOCK_BYTES + END_BYTES;

/// A file's pieces, in order: each of [`PIECE_BYTES`], the last of what is left. None of an empty file.
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

/// A file's piece of this number, from 0; empty past the last.
pub fn piece(file: &Path, index: usize) -> Result<Vec<u8>, PackageError> {
    let mut bytes = Vec::new();
    let read = File::open(file).and_then(|mut open| {
        open.seek(SeekFrom::Start(start(index)))?;
        open.take(WHOLE_BYTES).read_to_end(&mut bytes)
    });
    read.map_err(PackageError::at(file))?;
    Ok(bytes)
}

/// Puts a package's pieces into the release store, each once; what is there stays. Not if a piece is not what the file has
/// there. By way of a temporary file of one piece.
pub async fn keep(
    store: &ReleaseStore,
    model: &ModelName,
    file: &Path,
    pieces: &[BlobRef],
) -> Result<(), PackageError> {
    length(pieces)?;
    for (index, blob) in pieces.iter().enumerate() {
        let file = file.to_owned();
        let alone = off(move || {
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

/// Puts a package's pieces from the release store into a blob bucket, for those who fetch it there; those that are there
/// are not read. What is in a bucket goes with time: a release that is still wanted is offered again.
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

/// Puts a package together from the release store, as [`assemble`] does from a bucket.
pub async fn fetch(
    store: &ReleaseStore,
    model: &ModelName,
    pieces: &[BlobRef],
    into: &Path,
) -> Result<(), PackageError> {
    gather(PieceSource::Store(store, model), pieces, into).await
}

/// Puts a package together from a blob bucket. The file is whole, or not there; one that has these pieces already is left
/// as it is. What came is kept beside it when the rest does not come, and not fetched again. Pieces that are missing do not
/// keep others from coming. One at a time may do this for a file.
pub async fn assemble(blobs: &Blobs, pieces: &[BlobRef], into: &Path) -> Result<(), PackageError> {
    gather(PieceSource::Bucket(blobs), pieces, into).await
}

/// Where pieces come from. Nothing unhashed comes out of either.
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

async fn gather(source: PieceSource<'_>, pieces: &[BlobRef], into: &Path) -> Result<(), PackageError> {
    let size_bytes = length(pieces)?;
    let (wanted, whole) = (pieces.to_vec(), into.to_owned());
    let Some((file, held)) = off(move || open(&wanted, size_bytes, &whole)).await? else { return Ok(()) };
    let file = Arc::new(file);
    let partial = temporary_path(into, "partial");
    let (mut missing, mut first) = (0, None);
    for (index, piece) in pieces.iter().enumerate().filter(|(index, _)| !held[*index]) {
        match source.get(piece).await {
            Ok(bytes) => {
                let file = file.clone();
                let written = off(move || Ok(file.write_all_at(&bytes, start(index)))).await?;
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
    off(move || {
        // It may have been begun for a longer package.
        file.set_len(size_bytes).map_err(PackageError::at(&partial))?;
        rename_durably(&partial, &into)
    })
    .await
}

/// The unfinished file beside one, and which pieces are in it; nothing if the file itself is whole.
fn open(pieces: &[BlobRef], size_bytes: u64, into: &Path) -> Result<Option<(File, Vec<bool>)>, PackageError> {
    make_folder(parent(into))?;
    if let Ok(file) = File::open(into)
        && file.metadata().is_ok_and(|found| found.len() == size_bytes)
        && held(&file, pieces).map_err(PackageError::at(into))?.into_iter().all(|held| held)
    {
        return Ok(None);
    }
    let partial = temporary_path(into, "partial");
    let options = File::options().read(true).write(true).create(true).truncate(false).open(&partial);
    let file = options.map_err(PackageError::at(&partial))?;
    let held = held(&file, pieces).map_err(PackageError::at(&partial))?;
    Ok(Some((file, held)))
}

/// Which pieces a file has in their places.
fn held(file: &File, pieces: &[BlobRef]) -> io::Result<Vec<bool>> {
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

/// Length of the package that has these pieces, bytes; refuses what [`split`] does not make.
fn length(pieces: &[BlobRef]) -> Result<u64, PackageError> {
    let wrong = |why: String| Err(PackageError::Pieces { why });
    let Some((last, before)) = pieces.split_last() else { return wrong("there are none".into()) };
    let odd = before.iter().find(|piece| piece.size_bytes != WHOLE_BYTES);
    if let Some(odd) = odd.or(Some(last).filter(|last| !(1..=WHOLE_BYTES).contains(&last.size_bytes))) {
        return wrong(format!("one has {} bytes, each must have {WHOLE_BYTES} and the last no more", odd.size_bytes));
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

/// Work that blocks, off the async threads.
async fn off<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PackageError> + Send + 'static,
) -> Result<T, PackageError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| PackageError::Broke(error.to_string()))?
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file that three pieces make, no two alike.
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
    fn a_partial_file_has_the_pieces_that_are_whole_and_in_their_places() {
        let (_folder, file, bytes) = three();
        let pieces = split(&file).unwrap();
        let held_by = |bytes: &[u8]| {
            std::fs::write(&file, bytes).unwrap();
            held(&File::open(&file).unwrap(), &pieces).unwrap()
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
    fn a_file_that_is_whole_is_not_begun_again() {
        let (folder, file, bytes) = three();
        let pieces = split(&file).unwrap();
        assert!(open(&pieces, bytes.len() as u64, &file).unwrap().is_none());
        std::fs::write(&file, [&bytes[..], b"more"].concat()).unwrap();
        let (_, held) = open(&pieces, bytes.len() as u64, &file).unwrap().unwrap();
        assert_eq!(held, [false; 3]);
        assert!(folder.path().join(".package.partial").exists());
    }

    #[test]
    fn pieces_that_no_file_has_are_refused() {
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
