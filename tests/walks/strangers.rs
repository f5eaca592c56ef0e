//! What nobody does for another: who may write to a subject is who speaks there, whatever the message says.

use harness::pictures::one;
use harness::{Plan, World, until};
use schemas::{DeadLetter, Route, SiteName, VerifyReason, decode};
use streams::read::{self, Stretch};
use streams::{Publication, Publisher, subject, topology};

use crate::common::{PATIENCE, answered, publish};

#[tokio::test]
async fn a_request_that_speaks_for_another_site_is_a_dead_letter() {
    let mut world = World::start(Plan::leaves(1)).await.unwrap();
    world.recognizer("recognizer", 0).unwrap();
    world.courier("courier", 0).unwrap();
    let site = world.site(0).name.clone();
    let task = publish(world.bus(0), &site, &one(false).unwrap().bytes, &[]).await;
    let asked = until("a request of the site", PATIENCE, async || {
        Ok(read::last(&world.cloud, topology::VERIFY, &subject::verifications(&site)).await?)
    });
    let asked = asked.await.unwrap();
    // The same again, by a site that may write to its own subjects alone.
    let stranger: SiteName = "farm".parse().unwrap();
    let to = subject::verify(VerifyReason::Doubtful, &stranger, &"cam-1".parse().unwrap());
    let forged = Publication::with_id(to, asked.payload.to_vec(), "forged");
    Publisher::new(world.cloud.clone(), PATIENCE).publish(&forged).await.unwrap();
    world.verifier("verifier").unwrap();
    assert_eq!(answered(&world, task).await.route, Route::Verified);
    let mut letters: Vec<DeadLetter> = Vec::new();
    let buried = until("a dead letter", PATIENCE, async || {
        let level = read::level(&world.cloud, topology::DEAD).await?;
        letters.clear();
        let all = read::stretch(&world.cloud, topology::DEAD, Stretch::default(), level.last_sequence, |record| {
            letters.extend(decode::<DeadLetter>(&record.payload));
        });
        all.await?;
        Ok((!letters.is_empty()).then_some(()))
    });
    buried.await.unwrap();
    let [letter] = &letters[..] else { panic!("{letters:?}") };
    assert_eq!((letter.fault.name.as_str(), &letter.site), ("verify_misdirected", &stranger));
    for (stream, of_it) in [(topology::VERDICTS, "verdict"), (topology::HARDCASES, "hard case")] {
        let level = read::level(&world.cloud, stream).await.unwrap();
        assert_eq!(level.last_sequence, 1, "one {of_it}: the site's own");
    }
}
