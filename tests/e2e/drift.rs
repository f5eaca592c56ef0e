//! Pictures of another kind: each goes up, and many are noticed.

use harness::pictures::{LIGHT, nth_picture};
use harness::program::{fixture, run};
use harness::{TestWorld, WorldPlan, until};
use schemas::{Reason, Route};

use crate::common::{PATIENCE, answered, publish};
use crate::deploy::{get, listens_at};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_strange_picture_goes_up_and_many_are_an_alarm_in_status_and_metrics() {
    let plan = WorldPlan::default()
        .set("recognizer.gate.max_novelty=0.99")
        .set("recognizer.drift.reference_answers=120")
        .set("recognizer.drift.recent_answers=60")
        .set("metrics.listen=\"127.0.0.1:0\"");
    let mut world = TestWorld::start(plan).await.unwrap();
    let model = world.folder().join("model");
    std::fs::create_dir(&model).unwrap();
    for entry in fixture(LIGHT).read_dir().unwrap().map(Result::unwrap) {
        std::fs::copy(entry.path(), model.join(entry.file_name())).unwrap();
    }
    let model = model.display().to_string();
    let refused = world.recognizer_of("without", 0, &model).unwrap();
    refused.wait_for_log("make a score with `tributary model novelty", PATIENCE).await.unwrap();
    let clothes = fixture("images/fashion").display().to_string();
    let made = run(world.folder(), &["model", "novelty", &model, "--images", &clothes]).await.unwrap();
    assert!(made.success && made.out.contains("4000 images by the features output"), "{}{}", made.out, made.err);
    world.workers.clear();
    world.recognizer_of("recognizer", 0, &model).unwrap();
    world.courier("courier", 0).unwrap();
    world.verifier("verifier").unwrap();
    world.all_started().await.unwrap();
    let (bus, site) = (world.bus(0).clone(), world.site(0).name.clone());

    let strange = vision::pictures(61, 5);
    let answer = answered(&world, publish(&bus, &site, &strange[60], &[]).await).await;
    assert_eq!((answer.route, answer.reason), (Route::Verified, Reason::HighNovelty), "{answer:?}");
    assert!(answer.edge.unwrap().novelty > Some(0.99));

    let status = async |world: &TestWorld| {
        let mut words = vec!["status".to_owned()];
        words.extend(world.at(0));
        anyhow::Ok(run(world.folder(), &words).await?.out)
    };
    let says = async |world: &TestWorld, text: &str| {
        let said = async || {
            let said = status(world).await?;
            anyhow::ensure!(said.contains(text), "{said}");
            Ok(Some(()))
        };
        until(text, 3 * PATIENCE, said).await.unwrap_or_else(|error| panic!("{error:#}"));
    };
    for number in 0..180 {
        publish(&bus, &site, &nth_picture(true, number).unwrap().bytes, &[]).await;
    }
    says(&world, "drift     steady; ").await;
    for picture in &strange[..60] {
        publish(&bus, &site, picture, &[]).await;
    }
    says(&world, "drift     alarm: ").await;
    let text = status(&world).await.unwrap();
    assert!(text.contains("images are more novel to the model") && text.contains("! Answers have drifted"), "{text}");
    let address = listens_at(&world.workers["recognizer"].log()).unwrap();
    let (_, told) = get(&address, "/metrics").await.unwrap();
    let level = format!("tributary_drift_level{{role=\"recognizer\",site=\"{site}\"}} 2.0");
    assert!(told.contains(&level), "{told}");

    let mut words = vec!["drift".to_owned(), "--accept".into()];
    words.extend(world.at(0));
    assert!(run(world.folder(), &words).await.unwrap().success);
    says(&world, "collecting the reference").await;
}
