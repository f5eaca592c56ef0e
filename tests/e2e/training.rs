//! `tributary train` and what `tributary model check` says of training, with the built binary.

use std::time::Duration;

use harness::program::{fixture, root, run_for};

const PATIENCE: Duration = Duration::from_secs(120);

#[tokio::test]
async fn a_folder_of_images_makes_a_new_model_that_is_fit_for_use() {
    let place = tempfile::tempdir().unwrap();
    let new = place.path().join("new");
    let (model, data) = (fixture("models/fashion-light"), fixture("images/fashion"));
    let mut arguments = vec!["train", "--model", model.to_str().unwrap(), "--data", data.to_str().unwrap()];
    arguments.extend([
        "--out",
        new.to_str().unwrap(),
        "--epochs",
        "1",
        "--learning-rate",
        "0.0005",
        "--json",
        "--keep-without-gain",
    ]);
    let trained = run_for(root(), &arguments, PATIENCE).await.unwrap();
    assert!(trained.success, "{}\n{}", trained.out, trained.err);
    assert!(trained.err.contains("epoch 1/1"), "{}", trained.err);
    let found: serde_json::Value = serde_json::from_str(&trained.out).unwrap();
    assert!(found["test"]["after"]["accuracy_ratio"].as_f64().unwrap() > 0.8, "{found:#}");
    let checked = run_for(root(), &["model", "check", new.to_str().unwrap(), "--json"], PATIENCE).await.unwrap();
    assert!(checked.success, "{}", checked.err);
    let report: serde_json::Value = serde_json::from_str(&checked.out).unwrap();
    assert_eq!(report["release"], found["release"]);
    assert_eq!(report["training"]["layers"], report["training"]["trainable_layers"], "{report:#}");
    let again = run_for(root(), &arguments, PATIENCE).await.unwrap();
    assert!(!again.success && again.err.contains("name a folder that does not exist yet"), "{}", again.err);
}

#[tokio::test]
async fn a_model_that_cannot_be_bettered_is_left_as_it_is_in_one_line() {
    let place = tempfile::tempdir().unwrap();
    let new = place.path().join("new");
    let (model, data) = (fixture("models/fashion-light"), fixture("images/fashion"));
    let mut arguments = vec!["train", "--model", model.to_str().unwrap(), "--data", data.to_str().unwrap()];
    arguments.extend(["--out", new.to_str().unwrap(), "--epochs", "1", "--learning-rate", "0.05"]);
    let ended = run_for(root(), &arguments, PATIENCE).await.unwrap();
    assert!(ended.success && ended.err.contains("no gain: ") && !new.exists(), "{}\n{}", ended.out, ended.err);
}
