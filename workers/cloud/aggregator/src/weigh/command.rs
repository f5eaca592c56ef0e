//! `command`: your own program weighs the sites. It reads one JSON object on standard input and writes one on standard
//! output:
//!
//! ```text
//! {"round": 7, "sites": [{"site": "reef", "samples": 500, "hard": 40, "behind": 0, "agreement": 0.4,
//!                         "loss": 0.31, "accuracy": [0.9, null, 0.8]}]}
//! {"weights": {"reef": 1.5}}
//! ```
//!
//! `loss` and `accuracy` (by class) are present if there is a public set. The program must give every site a weight of
//! 0 or more; the resulting shares are checked as for every rule.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use schemas::SiteName;
use serde::{Deserialize, Serialize};

use super::SiteMeasures;

/// Time limit of the program.
const PATIENCE: Duration = Duration::from_secs(60);
/// Interval of checking whether it has ended.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Most bytes it may write on standard output.
const ANSWER_MAX_BYTES: u64 = 4 << 20;

/// One site's measurements, as the program reads them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SiteScores {
    /// The site that sent the update.
    pub site: SiteName,
    /// Releases between its start and the base.
    pub behind: u32,
    /// Its measurements.
    #[serde(flatten)]
    pub scored: SiteMeasures,
}

#[derive(Serialize)]
struct RuleCommandInput<'a> {
    round: u64,
    sites: &'a [SiteScores],
}

#[derive(Deserialize)]
struct RuleCommandOutput {
    weights: BTreeMap<SiteName, f64>,
}

/// Why a program's weights are not used.
#[derive(Debug, thiserror::Error)]
pub enum RuleCommandError {
    /// It cannot be started.
    #[error("could not start the weighing program {program}", program = program.display())]
    NotRun {
        /// Path of the program.
        program: PathBuf,
        /// Error of the operating system.
        #[source]
        source: std::io::Error,
    },
    /// It ran too long.
    #[error("{program} did not finish within {} s", PATIENCE.as_secs(), program = program.display())]
    Slow {
        /// Path of the program.
        program: PathBuf,
    },
    /// It failed.
    #[error("{program} ended with {status}: {stderr_line}", program = program.display())]
    Failed {
        /// Path of the program.
        program: PathBuf,
        /// Its exit status.
        status: std::process::ExitStatus,
        /// Last line of its standard error.
        stderr_line: String,
    },
    /// Its output is not valid.
    #[error("{program} wrote no valid weights: {why}", program = program.display())]
    Unusable {
        /// Path of the program.
        program: PathBuf,
        /// Reason.
        why: String,
    },
}

/// Runs the program and returns a weight for each site, in their order. Blocks.
#[allow(clippy::disallowed_methods)]
pub fn run_rule_command(program: &Path, round: u64, sites: &[SiteScores]) -> Result<Vec<f64>, RuleCommandError> {
    let unusable = |why: String| RuleCommandError::Unusable { program: program.to_owned(), why };
    let not_run = |source| RuleCommandError::NotRun { program: program.to_owned(), source };
    let question =
        serde_json::to_vec(&RuleCommandInput { round, sites }).map_err(|error| unusable(error.to_string()))?;
    let mut child = Command::new(program)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(not_run)?;
    let (stdin, out, err) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    // Separate threads, so that a program that reads nothing, or writes before it has read, cannot deadlock.
    let write = std::thread::spawn(move || stdin.map(|mut stdin| stdin.write_all(&question)));
    let read = |from: Option<Box<dyn Read + Send>>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let _what_came = from.map(|from| from.take(ANSWER_MAX_BYTES + 1).read_to_end(&mut bytes));
            bytes
        })
    };
    let out = read(out.map(|out| Box::new(out) as Box<dyn Read + Send>));
    let err = read(err.map(|err| Box::new(err) as Box<dyn Read + Send>));
    let begun = Instant::now();
    let status = loop {
        match child.try_wait().map_err(not_run)? {
            Some(status) => break status,
            None if begun.elapsed() > PATIENCE => {
                let _it_ended_just_now = child.kill();
                let _reaped = child.wait();
                return Err(RuleCommandError::Slow { program: program.to_owned() });
            }
            None => std::thread::sleep(LOOK_EVERY),
        }
    };
    let _ended_without_reading = write.join();
    let (out, err) = (out.join().unwrap_or_default(), err.join().unwrap_or_default());
    // Checked first: a program whose output nobody reads any more fails because of that.
    if out.len() as u64 > ANSWER_MAX_BYTES {
        return Err(unusable(format!("more than {} MiB", ANSWER_MAX_BYTES >> 20)));
    }
    if !status.success() {
        let stderr_line = String::from_utf8_lossy(&err);
        let stderr_line =
            stderr_line.trim().lines().last().unwrap_or("no output on standard error").chars().take(300).collect();
        return Err(RuleCommandError::Failed { program: program.to_owned(), status, stderr_line });
    }
    let RuleCommandOutput { weights } = serde_json::from_slice(&out)
        .map_err(|error| unusable(format!("{error}; it should write {{\"weights\": {{\"SITE\": NUMBER}}}}")))?;
    let of = |scores: &SiteScores| match weights.get(&scores.site) {
        Some(weight) if *weight >= 0.0 && weight.is_finite() => Ok(*weight),
        Some(weight) => Err(unusable(format!("the weight of site {} is {weight}; it must be 0 or more", scores.site))),
        None => Err(unusable(format!("site {} has no weight", scores.site))),
    };
    sites.iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn asked(script: &str) -> Result<Vec<f64>, String> {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("rule");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let site = |name: &str, samples| SiteScores {
            site: name.parse().unwrap(),
            behind: 0,
            scored: SiteMeasures { samples, accuracy: vec![Some(0.5), None], ..SiteMeasures::default() },
        };
        run_rule_command(&program, 7, &[site("reef", 500), site("farm", 20)]).map_err(|error| error.to_string())
    }

    #[test]
    fn a_program_reads_scores_and_writes_weights() {
        assert_eq!(
            asked(r#"cat > /dev/null; echo '{"weights": {"farm": 2, "reef": 0.5, "other": 9}}'"#).unwrap(),
            [0.5, 2.0]
        );
        // The input is as the module documentation says.
        let read = r#"grep -q '"round":7,"sites":\[{"site":"reef","behind":0,"accuracy":\[0.5,null\],"samples":500,"hard":0}' && echo '{"weights": {"farm": 0, "reef": 1}}'"#;
        assert_eq!(asked(read).unwrap(), [1.0, 0.0]);
        assert_eq!(
            asked(r#"echo '{"weights": {"farm": 1, "reef": 1}}'"#).unwrap(),
            [1.0, 1.0],
            "reading the input is optional"
        );
    }

    #[test]
    fn invalid_weights_are_refused_with_the_reason() {
        let refused = |script: &str| asked(script).unwrap_err();
        assert!(refused("echo no").contains("wrote no valid weights"));
        assert!(refused(r#"echo '{"weights": {"farm": 1}}'"#).contains("site reef has no weight"));
        assert!(refused(r#"echo '{"weights": {"farm": 1, "reef": -1}}'"#).contains("0 or more"));
        assert!(refused("echo 'no such table' >&2; exit 3").contains("no such table"));
        assert!(refused("head -c 5000000 /dev/zero").contains("more than 4 MiB"));
        let absent = run_rule_command(Path::new("/no/such/rule"), 1, &[]).unwrap_err();
        assert!(matches!(absent, RuleCommandError::NotRun { .. }));
    }
}
