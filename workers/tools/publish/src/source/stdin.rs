//! Standard input: one image, or one path per line.

use std::io::{BufRead, Read};
use std::path::Path;

use schemas::limits::MAX_IMAGE_BYTES;
use tokio::sync::mpsc::Sender;

use crate::report::RefusedFile;
use crate::source::filter::FileFilter;
use crate::source::{ItemBuilder, SourceError, SourceEvent, SourceItem, folder};

/// Name of an image from standard input.
const NAME: &str = "standard input";

/// Sends the whole input as one image.
pub(crate) fn send_single_image(input: impl Read, mut builder: ItemBuilder, items: &Sender<SourceEvent>) {
    let mut bytes = Vec::new();
    let path = Path::new(NAME);
    // One more byte distinguishes an image that is too large from one that just fits.
    let item = match input.take(MAX_IMAGE_BYTES + 1).read_to_end(&mut bytes) {
        Ok(_) => match builder.cameras.name(path) {
            Ok((camera, _)) => SourceEvent::Found(SourceItem {
                path: path.into(),
                name: NAME.into(),
                file: None,
                camera,
                label: None,
                captured_at_ms: None,
                due: None,
                bytes: Some(bytes.into()),
            }),
            Err(reason) => SourceEvent::Refused(RefusedFile::new(path, reason)),
        },
        Err(error) => SourceEvent::Broken(SourceError::Stdin(error)),
    };
    let _nobody_listens = items.blocking_send(item);
}

/// Sends the files, and those in the folders, that the lines name.
pub(crate) fn send_listed_paths(
    input: impl BufRead,
    mut builder: ItemBuilder,
    filter: &FileFilter,
    items: &Sender<SourceEvent>,
) {
    for line in input.lines() {
        match line {
            Ok(line) if line.is_empty() => {}
            Ok(line) => {
                if folder::send_images(Path::new(&line), &mut builder, filter, items).is_break() {
                    return;
                }
            }
            Err(error) => {
                let _nobody_listens = items.blocking_send(SourceEvent::Broken(SourceError::Stdin(error)));
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::PublisherSettings;
    use crate::source::CameraNaming;
    use tokio::sync::mpsc;

    fn builder() -> ItemBuilder {
        ItemBuilder::new(CameraNaming::One("cam".parse().unwrap()), &PublisherSettings::default())
    }

    #[test]
    fn all_of_standard_input_is_one_image() {
        let (items, mut found) = mpsc::channel(1);
        send_single_image(&b"raw bytes"[..], builder(), &items);
        let Some(SourceEvent::Found(found)) = found.blocking_recv() else { panic!("no image") };
        assert_eq!(found.bytes.as_deref(), Some(&b"raw bytes"[..]));
    }

    #[test]
    fn each_line_is_a_path() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a.png", "b.raw"] {
            std::fs::write(folder.path().join(name), name).unwrap();
        }
        let at = |name: &str| folder.path().join(name).display().to_string();
        let lines = format!("{}\n\n{}\n{}\n", at("b.raw"), at("a.png"), at("c.png"));
        let (items, mut found) = mpsc::channel(8);
        send_listed_paths(lines.as_bytes(), builder(), &FileFilter::new(&PublisherSettings::default()), &items);
        drop(items);
        let mut names = Vec::new();
        while let Some(item) = found.blocking_recv() {
            names.push(match item {
                SourceEvent::Found(found) => found.path.display().to_string(),
                SourceEvent::Refused(refused) => format!("refused {}", refused.file),
                other => format!("{other:?}"),
            });
        }
        assert_eq!(names, [at("b.raw"), at("a.png"), format!("refused {}", at("c.png"))]);
    }
}
