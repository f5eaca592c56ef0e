//! Finds a task by the start of its id, as releases and dead letters are found.

use anyhow::bail;
use schemas::TaskId;
use streams::reader::{self, StreamRange};
use streams::{subject, topology};

use crate::site_target::SiteTarget;

/// Fewest digits that name a task: fewer would be a slip of the hand.
const LEAST_DIGITS: usize = 4;

/// The task with this id, or the one answered task whose id begins like this.
///
/// # Errors
/// No answered task begins like this, or several do.
pub(crate) async fn find_task(site: &SiteTarget, text: &str) -> anyhow::Result<TaskId> {
    let wanted = match text.parse() {
        Ok(task) => return Ok(task),
        Err(_) if is_beginning(text) => text.to_ascii_lowercase(),
        Err(error) => bail!("{error}, or at least {LEAST_DIGITS} of its first digits"),
    };
    let subjects = vec![subject::final_answers(&site.name, None)];
    let range = StreamRange { subjects, headers_only: true, ..StreamRange::default() };
    let task = |subject: &str| subject.rsplit('.').next().unwrap_or_default().to_owned();
    // Two suffice to see that it is not the only one.
    let found = reader::newest_messages(&site.bus, topology::ANSWERS, range, 2, |record| {
        task(&record.subject).starts_with(&wanted)
    })
    .await?;
    match &found[..] {
        [only] => Ok(task(&only.subject).parse()?),
        [] => bail!(
            "no answered task at site {} begins with {wanted}: `tributary answers` lists them with their ids",
            site.name
        ),
        [first, second, ..] => bail!(
            "several tasks begin with {wanted}, such as {} and {}: add digits",
            task(&first.subject),
            task(&second.subject)
        ),
    }
}

/// Whether a text can be the start of a task's id.
fn is_beginning(text: &str) -> bool {
    text.len() >= LEAST_DIGITS && text.len() < 36 && text.chars().all(|c| c.is_ascii_hexdigit() || c == '-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_digits_can_be_the_start_of_an_id_and_other_texts_cannot() {
        assert!(is_beginning("0191") && is_beginning("0191d3c2-7f6e-7") && is_beginning("ABCD"));
        assert!(!is_beginning("019") && !is_beginning("coat") && !is_beginning("") && !is_beginning("fish"));
    }
}
