//! Graphs and model folders, read by whoever trains, tries or runs them.

use std::path::Path;

use autograd::onnx::OnnxDocument;
use autograd::report::report;
use autograd::training_step::PreparedModel;
use bend::{bend_all, corpus, files, root, turns};

fn graphs(most_bytes: usize) -> Vec<Vec<u8>> {
    let mut graphs = corpus("fixtures/forms", &[".onnx"], most_bytes);
    graphs.extend(corpus("fixtures/gradients", &[".onnx"], most_bytes));
    graphs.extend(corpus("fixtures/boxes", &[".onnx"], most_bytes));
    graphs
}

/// Everything that is asked of a graph before the runtime sees it.
fn look(bytes: &[u8]) -> usize {
    let Ok(onnx) = OnnxDocument::decode(bytes) else { return 1 };
    let _of_it = (onnx.opset(), onnx.inputs().is_ok(), onnx.check().is_ok(), onnx.fingerprint().is_ok());
    let floats = onnx.floats().unwrap_or_default();
    let weights = floats.iter().filter_map(|(name, _)| Some((name.clone(), onnx.weight(name).ok()?)));
    let _patched = onnx.clone().patch(&weights.collect());
    let output = onnx.output().unwrap_or_default().to_owned();
    let prepared = PreparedModel::new(&onnx, &output, &[1, 3, 8, 8]);
    if let Ok(prepared) = prepared
        && let Ok(known) = prepared.known()
    {
        let _written = (prepared.probe().is_ok(), report(&prepared, &known).is_ok());
    }
    1
}

#[test]
fn graphs_that_were_bent_are_read_or_refused() {
    bend::limit_memory();
    bend_all("small graphs", &graphs(5_000), turns() / 4, look);
    bend_all("graphs of all sizes", &graphs(200_000), turns() / 100, look);
}

#[test]
fn model_folders_that_were_bent_are_read_or_refused() {
    bend::limit_memory();
    let folder = tempfile::tempdir_in(shared_memory()).unwrap();
    let forms = ["logits", "hf-softmax-inside", "hf-overridden", "several-labels", "labels-json"];
    let forms = forms.map(|form| ("fixtures/forms", form));
    let detectors = ["yolov8", "hf-rt-detr"].map(|form| ("fixtures/boxes", form));
    for (folder_of_forms, form) in forms.into_iter().chain(detectors) {
        let from = root().join(folder_of_forms).join(form);
        let into = folder.path().join("model");
        let mut bent = Vec::new();
        for path in files(&from) {
            let name = path.strip_prefix(&from).unwrap().to_owned();
            std::fs::create_dir_all(into.join(&name).parent().unwrap()).unwrap();
            std::fs::copy(&path, into.join(&name)).unwrap();
            if name.as_os_str() != "expected.json" {
                bent.push((name, std::fs::read(&path).unwrap()));
            }
        }
        for (name, whole) in &bent {
            let called = format!("model folder {form}, {}", name.display());
            bend_all(&called, std::slice::from_ref(whole), turns() / 100, |bytes| {
                std::fs::write(into.join(name), bytes).unwrap();
                if let Ok(model) = vision::Model::load(&into) {
                    let _asked = (model.operators().is_ok(), model.size_bytes().is_ok());
                }
                1
            });
            std::fs::write(into.join(name), whole).unwrap();
        }
        assert!(vision::Model::load(&into).is_ok(), "{form}");
        std::fs::remove_dir_all(&into).unwrap();
    }
}

/// What is written a hundred thousand times need not reach the disk.
pub(crate) fn shared_memory() -> &'static Path {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { memory } else { Path::new("/tmp") }
}
