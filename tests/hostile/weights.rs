//! Weights that sites send, checkpoints, and the folders of pictures that are learned from.

use std::collections::BTreeMap;
use std::path::PathBuf;

use aggregator::ParameterLayout;
use aggregator::weights_file::{WeightRow, WeightsFile};
use bend::{bend_all, corpus, texts, turns};
use safetensors_corpus::{delta, floats, layout};
use schemas::WeightFormat;
use trainer::training_copy::TrainingCopy;
use training::{Examples, weights};

use crate::models::shared_memory;

mod safetensors_corpus {
    use super::*;

    fn tensors() -> weights::NamedTensors {
        let values = |count: usize| (0..count).map(|number| number as f32 / 8.0).collect::<Vec<f32>>();
        let one = |name: &str, shape: &[usize]| (name.to_owned(), (shape.to_vec(), values(shape.iter().product())));
        [one("dense.bias", &[4]), one("dense.weight", &[4, 6]), one("scale", &[])].into()
    }

    pub(super) fn layout() -> ParameterLayout {
        ParameterLayout::new(tensors().into_iter().map(|(name, (shape, _))| (name, shape)).collect())
    }

    pub(super) fn floats() -> Vec<u8> {
        let notes = [("mark".to_owned(), "a".to_owned()), ("progress".to_owned(), "{\"epoch\":3}".to_owned())];
        weights::encode(&tensors(), &BTreeMap::new(), WeightFormat::F32, Some(notes.into())).unwrap()
    }

    pub(super) fn delta() -> Vec<u8> {
        weights::encode(&tensors(), &BTreeMap::new(), WeightFormat::DeltaF16, None).unwrap()
    }
}

fn file(name: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir_in(shared_memory()).unwrap();
    let path = folder.path().join(name);
    (folder, path)
}

#[test]
fn weights_that_were_bent_are_read_or_refused() {
    bend::limit_memory();
    let mut all = corpus("fixtures/gradients", &[".safetensors"], 20_000);
    all.extend([floats(), delta()]);
    bend_all("weights", &all, turns(), |bytes| {
        if let Ok((tensors, _)) = weights::decode(bytes) {
            let held: usize = tensors.values().map(|(_, values)| values.len() * 4).sum();
            assert!(held <= bytes.len(), "{held} bytes of weights in {} bytes", bytes.len());
        }
        1
    });
    let (layout, (_folder, path)) = (layout(), file("update.safetensors"));
    bend_all("updates against a layout", &[floats(), delta()], turns() / 2, |bytes| {
        std::fs::write(&path, bytes).unwrap();
        let forms = [WeightFormat::F32, WeightFormat::F16, WeightFormat::DeltaF16];
        for form in forms {
            if let Ok(file) = WeightsFile::open(&path, form, &layout) {
                assert_eq!(WeightRow::File(&file).row(&layout).len(), layout.len());
            }
        }
        forms.len()
    });
}

#[test]
fn an_index_of_pictures_that_was_bent_is_read_or_refused() {
    bend::limit_memory();
    let indexes = texts([
        "path,class_name,split\na.png,cat,train\nb.png,dog,site\nc.png,cat,val\nd.png,dog,test\n",
        "file,label,split,hard\na.png,cat,,true\n./b.png,\"do\"\"g\",val,false\n",
        "file,label,source,hard\n0191d3c2-7f6e-7c3a-9c1b-2f60a1b4c5d6,cat,person,false\n",
    ]);
    let labels: Vec<String> = ["cat", "dog"].map(str::to_owned).into();
    let (folder, path) = file("index.csv");
    std::fs::write(folder.path().join("a.png"), b"").unwrap();
    bend_all("indexes of pictures", &indexes, turns() / 2, |bytes| {
        std::fs::write(&path, bytes).unwrap();
        if let Ok(examples) = Examples::read(folder.path(), &labels, 0.5) {
            for example in &examples.all {
                let climbs = example.path.components().any(|part| part == std::path::Component::ParentDir);
                assert!(example.path.starts_with(folder.path()) && !climbs, "{}", example.path.display());
            }
        }
        let _copied = TrainingCopy::read(folder.path()).is_ok();
        2
    });
}
