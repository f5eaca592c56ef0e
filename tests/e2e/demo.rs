//! `tributary-bench loop`, as somebody runs it who has just cloned the project.

use std::time::Duration;

use harness::program::run_bench;
use serde_json::Value;

/// The loop takes half a minute in a build with debug assertions, on a machine that has nothing else to do.
const LONG: Duration = Duration::from_secs(240);

#[tokio::test]
async fn the_loop_learns_from_the_clouds_verdicts_and_ends_well() {
    let folder = tempfile::tempdir().unwrap();
    let (chart, numbers) = (folder.path().join("loop.svg"), folder.path().join("loop.json"));
    let (chart, numbers) = (chart.display().to_string(), numbers.display().to_string());
    let began = std::time::Instant::now();
    let words = ["loop", "--rounds", "1", "--out", &chart, "--json", &numbers];
    let ended = run_bench(&words, LONG).await.unwrap();
    assert!(ended.success, "{}\n{}", ended.out, ended.err);
    println!("{}\nafter {:?}", ended.out, began.elapsed());
    assert!(std::fs::read_to_string(&chart).unwrap().starts_with("<svg"));
    let found: Value = serde_json::from_slice(&std::fs::read(&numbers).unwrap()).unwrap();
    let turns = found["turns"].as_array().unwrap();
    assert_eq!(turns.len(), 2, "one round, and what came of it");
    let of = |turn: &Value, number: &str| turn[number].as_f64().unwrap();
    let (before, after) = (of(&turns[0], "accuracy_test_ratio"), of(&turns[1], "accuracy_test_ratio"));
    assert!(before > 0.0 && after >= before, "{before} right before, {after} after\n{}", ended.out);
    assert!(found["images_acknowledged"].as_u64().unwrap() >= 300, "{found}");
}

#[tokio::test]
async fn what_the_loop_is_asked_for_is_understood_or_refused_by_name() {
    let refused = async |words: &[&str]| {
        let ended = run_bench(words, LONG).await.unwrap();
        assert!(!ended.success, "{words:?}: {}", ended.out);
        ended.err
    };
    assert!(refused(&["loop", "--rounds", "0"]).await.contains("--rounds"));
    // Understood: what is missing is the pictures.
    for more in [&[][..], &["--dark-cameras"]] {
        let words = [&["loop", "--rounds", "1", "--data", "/nowhere/at/all"], more].concat();
        assert!(refused(&words).await.contains("/nowhere/at/all"), "{more:?}");
    }
}
