//! The benches run to their end and write what they promise. What they measure is nobody's test.

use std::time::Duration;

use harness::program::run_bench;

/// A quick bench may take a minute of its own, more on a machine that tests something else meanwhile.
const PATIENCE: Duration = Duration::from_secs(480);

/// Runs a quick bench and returns its headline, all of it finite numbers.
async fn headline(bench: &str) -> serde_json::Map<String, serde_json::Value> {
    headline_with(bench, &[]).await
}

async fn headline_with(bench: &str, more: &[&str]) -> serde_json::Map<String, serde_json::Value> {
    try_headline(bench, more).await.unwrap_or_else(|said| panic!("{said}"))
}

/// The same; what the bench said, if it failed.
async fn try_headline(bench: &str, more: &[&str]) -> Result<serde_json::Map<String, serde_json::Value>, String> {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("report.json");
    let arguments = [&[bench, "--quick", "--json", json.to_str().unwrap()], more].concat();
    let ended = run_bench(&arguments, PATIENCE).await.unwrap();
    if !ended.success {
        return Err(format!("{}\n{}", ended.out, ended.err));
    }
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    assert!(report["rows"].as_array().is_some_and(|rows| !rows.is_empty()), "{report:#}");
    assert!(report["machine"].is_object(), "{report:#}");
    let headline = report["headline"].as_object().unwrap().clone();
    for (name, value) in &headline {
        assert!(value.as_f64().is_some_and(f64::is_finite), "{name} is {value}");
    }
    Ok(headline)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_quick_bench_of_recognizing_writes_its_headline() {
    let headline = headline("recognize").await;
    for name in [
        "throughput_over_bare",
        "throughput_over_bare_power_safe",
        "images_per_s",
        "cpu_ms_per_image",
        "p50_over_bare_ms",
        "p99_ms_at_16",
        "recognizer_rss_mb",
    ] {
        assert!(headline.contains_key(name), "{name} is missing in {headline:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_quick_bench_of_policies_writes_its_headline() {
    let headline = headline("policy").await;
    for name in [
        "completion_over_hard_example_batch",
        "offload_completion_over_best_fixed",
        "cloud_down_p99_over_edge_only",
        "deadline_avoidable_late_percent",
    ] {
        assert!(headline.contains_key(name), "{name} is missing in {headline:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_quick_bench_of_training_writes_its_headline() {
    let headline = headline("train").await;
    for name in ["step_over_forward_small", "step_over_forward_mobilenetv2", "step_over_forward_resnet18"] {
        assert!(headline.contains_key(name), "{name} is missing in {headline:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_quick_bench_of_rules_writes_its_headline() {
    let headline = headline_with("federated", &["--rule", "fedavg", "--rule", "paper literal"]).await;
    for name in ["worst_scheme", "mean", "weakest_recall"] {
        let name = format!("paper_literal_minus_fedavg_{name}_points");
        assert!(headline.contains_key(&name), "{name} is missing in {headline:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_quick_bench_of_rounds_writes_its_headline() {
    let headline = headline_with("rounds", &["--start", "random"]).await;
    for name in ["worst_release_minus_start_points", "mean_gain_points_shifted", "shown_minus_true_points"] {
        assert!(headline.contains_key(name), "{name} is missing in {headline:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_quick_bench_of_merging_writes_its_headline() {
    let headline = headline("aggregate").await;
    for name in ["sum_over_read_10x25", "median_over_read_10x25", "trimmed_over_read_10x25", "peak_over_one_model"] {
        assert!(headline.contains_key(name), "{name} is missing in {headline:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_quick_bench_of_swaps_writes_its_headline_and_loses_no_image() {
    let headline = headline("swap").await;
    for name in ["added_p99_ms", "added_worst_ms", "memory_growth_ratio"] {
        assert!(headline.contains_key(name), "{name} is missing in {headline:?}");
    }
    assert_eq!(headline["images_lost"], 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_quick_bench_of_cameras_writes_its_headline_or_names_what_it_needs() {
    let headline = match try_headline("cameras", &[]).await {
        Ok(headline) => headline,
        Err(said) => {
            assert!(said.contains("deploy/fetch-cameras.sh"), "{said}");
            assert_ne!(std::env::var("TRIBUTARY_CAMERA_TESTS").as_deref(), Ok("required"), "{said}");
            return eprintln!("SKIPPED the quick bench of cameras: {said}");
        }
    };
    for name in [
        "cpu_over_ffmpeg",
        "published_cpu_ms_640",
        "skipped_cpu_ms_640",
        "first_answer_s",
        "frames_got_ratio_32",
        "reuse_skipped_ratio",
        "reuse_wrong_ratio",
    ] {
        assert!(headline.contains_key(name), "{name} is missing in {headline:?}");
    }
}
