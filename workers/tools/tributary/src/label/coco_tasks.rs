//! Finds the tasks of the images in COCO annotations: by the task that an export of ours names, by a file name that is a
//! task's id, or by the name of the file that was published.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context, bail};
use detection::CocoImage;
use operations::labels::{LabelContent, TaskLabel};
use schemas::{Answer, LabelSource, TaskId, decode};
use streams::reader::{self, StreamRange};
use streams::{subject, topology};

use crate::site_target::SiteTarget;

/// Labels of the images whose tasks were found, and the files of the others.
#[derive(Debug, Default)]
pub(super) struct FoundTasks {
    pub(super) labels: Vec<TaskLabel>,
    pub(super) unknown_files: Vec<String>,
}

/// Finds the task of each image.
///
/// # Errors
/// Two images are of one task, a file was published as several tasks, or the server failed.
pub(super) async fn find_tasks(site: &SiteTarget, images: Vec<CocoImage>) -> anyhow::Result<FoundTasks> {
    let named = images.iter().map(named_task).collect::<anyhow::Result<Vec<_>>>()?;
    let wanted = images.iter().zip(&named).filter(|(_, task)| task.is_none());
    let mut files = FileTasks::wanted(wanted.map(|(image, _)| image.file_name.as_str()));
    if !files.0.is_empty() {
        let last = reader::stream_level(&site.bus, topology::ANSWERS).await?;
        let subjects = vec![subject::final_answers(&site.name, None)];
        let range = StreamRange { subjects, ..StreamRange::default() };
        if last.messages > 0 {
            reader::read_range(&site.bus, topology::ANSWERS, range, last.last_sequence, |record| {
                if let Ok(answer) = decode::<Answer>(&record.payload) {
                    files.add(answer.file.as_deref(), answer.task);
                }
            })
            .await?;
        }
    }
    assign(images, &named, &files)
}

/// The task that an image names itself.
fn named_task(image: &CocoImage) -> anyhow::Result<Option<TaskId>> {
    if let Some(task) = &image.task {
        return Ok(Some(task.parse().with_context(|| format!("image {} names the task {task:?}", image.id))?));
    }
    let stem = base_name(&image.file_name).split('.').next().unwrap_or_default();
    Ok(stem.parse().ok())
}

fn base_name(file: &str) -> &str {
    file.rsplit(['/', '\\']).next().unwrap_or(file)
}

/// The tasks of wanted files: the first two of each, which suffice to see that there are several.
struct FileTasks(HashMap<String, Vec<TaskId>>);

impl FileTasks {
    fn wanted<'a>(files: impl Iterator<Item = &'a str>) -> Self {
        Self(files.map(|file| (file.to_owned(), Vec::new())).collect())
    }

    /// Adds the task of a file, under its whole name, and under its last part where that is another.
    fn add(&mut self, file: Option<&str>, task: TaskId) {
        let Some(file) = file else { return };
        let base = Some(base_name(file)).filter(|base| *base != file);
        for name in [Some(file), base].into_iter().flatten() {
            if let Some(tasks) = self.0.get_mut(name).filter(|tasks| tasks.len() < 2 && !tasks.contains(&task)) {
                tasks.push(task);
            }
        }
    }
}

fn assign(images: Vec<CocoImage>, named: &[Option<TaskId>], files: &FileTasks) -> anyhow::Result<FoundTasks> {
    let mut found = FoundTasks::default();
    let mut of_task: BTreeMap<TaskId, i64> = BTreeMap::new();
    for (image, named) in images.into_iter().zip(named) {
        let task = match (named, files.0.get(&image.file_name).map(Vec::as_slice)) {
            (Some(task), _) | (None, Some([task])) => *task,
            (None, None | Some([])) => {
                found.unknown_files.push(image.file_name);
                continue;
            }
            (None, Some([first, second, ..])) => bail!(
                "image {} ({:?}) was published several times, as the tasks {first} and {second} among others: name the \
                 file after the task that is meant",
                image.id,
                image.file_name
            ),
        };
        if let Some(other) = of_task.insert(task, image.id) {
            bail!("images {other} and {} are both of task {task}; keep one of them", image.id);
        }
        let CocoImage { objects, source, .. } = image;
        // What a person drew, and what went through a tool that keeps no source, is said by somebody.
        let is_export = source.is_some_and(|source| source != LabelSource::Person.as_str());
        let content = if is_export { LabelContent::Reviewed(objects) } else { LabelContent::Objects(objects) };
        found.labels.push(TaskLabel { task, content });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(id: i64, file_name: &str, source: Option<&str>) -> CocoImage {
        CocoImage {
            id,
            file_name: file_name.into(),
            width_px: 10.0,
            height_px: 10.0,
            task: None,
            source: source.map(str::to_owned),
            objects: Vec::new(),
            clipped: 0,
        }
    }

    fn found(images: Vec<CocoImage>, published: &[(&str, &str)]) -> anyhow::Result<FoundTasks> {
        let named: Vec<_> = images.iter().map(named_task).collect::<anyhow::Result<_>>()?;
        let mut files = FileTasks::wanted(images.iter().map(|image| image.file_name.as_str()));
        published.iter().for_each(|(file, task)| files.add(Some(file), TaskId::from_name(task)));
        assign(images, &named, &files)
    }

    #[test]
    fn an_image_is_known_by_its_task_its_name_or_the_published_file() {
        let (task, a) = (TaskId::from_name("a"), TaskId::from_name("b"));
        let mut by_key = image(1, "renamed.jpg", Some("edge"));
        by_key.task = Some(task.to_string());
        let by_name = image(2, &format!("images/{a}.jpg"), None);
        let by_file = image(3, "0042.jpg", Some("person"));
        let by_path = image(4, "dock/0043.jpg", None);
        let all = vec![by_key, by_name, by_file, by_path, image(5, "other.jpg", None)];
        let found = found(all, &[("dock/0042.jpg", "c"), ("dock/0043.jpg", "d"), ("0044.jpg", "e")]).unwrap();
        let tasks: Vec<TaskId> = found.labels.iter().map(|label| label.task).collect();
        assert_eq!(tasks, [task, a, TaskId::from_name("c"), TaskId::from_name("d")]);
        let reviewed = |label: &TaskLabel| matches!(label.content, LabelContent::Reviewed(_));
        assert_eq!(found.labels.iter().map(reviewed).collect::<Vec<_>>(), [true, false, false, false]);
        assert_eq!(found.unknown_files, ["other.jpg"]);
    }

    #[test]
    fn what_is_not_certain_is_refused() {
        let several = found(vec![image(3, "0042.jpg", None)], &[("a/0042.jpg", "c"), ("b/0042.jpg", "d")]);
        assert!(several.unwrap_err().to_string().starts_with("image 3 (\"0042.jpg\") was published several times"));
        let again = found(vec![image(3, "0042.jpg", None)], &[("0042.jpg", "c"), ("0042.jpg", "c")]).unwrap();
        assert_eq!(again.labels.len(), 1, "one task that is delivered twice is one task");
        let twice = found(vec![image(3, "0042.jpg", None), image(8, "a/0042.jpg", None)], &[("a/0042.jpg", "c")]);
        assert!(twice.unwrap_err().to_string().starts_with("images 3 and 8 are both of task"));
        let mut broken = image(3, "0042.jpg", None);
        broken.task = Some("none".into());
        assert!(found(vec![broken], &[]).unwrap_err().to_string().starts_with("image 3 names the task"));
    }
}
