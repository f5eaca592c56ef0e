//! `tributary scale`: shows or sets the replicas of a role's workers.

use std::str::FromStr;
use std::time::Duration;

use anyhow::bail;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use operations::scale::{self, ScaleReport};
use runtime::settings::LoadedSettings;
use schemas::{Role, SiteName};
use serving::scale::ReplicaRequest;

use crate::settings::Settings;
use crate::{format, site_target, stdout};

/// How long it waits for the workers to follow: opening a session may take seconds.
const FOLLOW_TIMEOUT: Duration = Duration::from_secs(30);

const EXAMPLES: &str = "\
A replica is a copy of the model with a thread of its own; all replicas of a role share one queue. The number applies \
to each worker of the role, at once and after restarts. A range follows the backlog in seconds of work, up to one \
replica per processor, within the cooldowns and gains of [recognizer.scale] and [verifier.scale]. A replica finishes \
its batch before it stops; one that does not fit in memory is not started.

For more processes, start `tributary recognizer` or `tributary verifier` again; on Kubernetes, verifiers scale by \
tributary_queue_work_seconds (deploy/k8s).

Examples:
  tributary scale recognizer                      how many run, and why
  tributary scale recognizer 3
  tributary scale recognizer 1-4                  at least 1; more while work queues up and more help
  tributary scale verifier 2
  tributary scale recognizer --clear              return to the settings";

/// Show or set the number of replicas in a role's workers.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ScaleArgs {
    /// Role to scale.
    #[arg(value_name = "ROLE", value_parser = scaled_role())]
    role: Role,
    /// Number of replicas, or a range such as 1-4.
    #[arg(value_name = "N", value_parser = <ReplicaRequest as FromStr>::from_str, allow_hyphen_values = true)]
    replicas: Option<ReplicaRequest>,
    /// Clear the override; return to the settings.
    #[arg(long, conflicts_with = "replicas")]
    clear: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Roles whose workers run replicas.
fn scaled_role() -> impl TypedValueParser<Value = Role> {
    let roles = [Role::Recognizer, Role::Verifier];
    let words = PossibleValuesParser::new(roles.map(Role::as_str));
    words.map(move |word| if word == Role::Verifier.as_str() { Role::Verifier } else { Role::Recognizer })
}

/// Shows or sets the replicas.
pub(crate) async fn command(loaded: &LoadedSettings<Settings>, args: &ScaleArgs) -> anyhow::Result<()> {
    let here = site_target::open(loaded, "scale").await?;
    let (bus, at, place) = match args.role {
        Role::Verifier => (here.whole_cloud()?.clone(), SiteName::cloud(), "the cloud".to_owned()),
        _ => (here.bus.clone(), here.name.clone(), format!("site {}", here.name)),
    };
    if args.replicas.is_some() || args.clear {
        scale::request_replicas(&bus, &at, args.role, args.replicas).await?;
    }
    let report = match args.replicas {
        Some(asked) => scale::wait_for_replicas(&bus, args.role, asked, FOLLOW_TIMEOUT).await?,
        None => scale::read_scale(&bus, args.role).await?,
    };
    if args.json {
        stdout::json(&report)?
    } else {
        print(&report, &place)?
    }
    match (&report.workers[..], args.replicas) {
        ([], Some(_)) => bail!("no {} is running: the number applies once one starts", args.role),
        ([], None) => stdout::print_line(format_args!("No {} is running.", args.role)),
        (workers, Some(asked)) if workers.iter().any(|worker| !worker.follows(asked)) => {
            bail!(
                "not every {} reached the requested number, for the reasons above: free what is missing, or request fewer",
                args.role
            )
        }
        _ => Ok(()),
    }
}

fn print(report: &ScaleReport, place: &str) -> anyhow::Result<()> {
    stdout::print_line(match report.asked {
        Some(asked) => format!("{}s at {place}: {asked} requested", report.role),
        None => format!("{}s at {place}: no override; the settings of each apply", report.role),
    })?;
    for worker in &report.workers {
        let why = worker.why.as_deref().map(|why| format!("; {}", format::plain_text(why))).unwrap_or_default();
        let replicas = format::count(worker.replicas.into(), "replica");
        stdout::print_line(format_args!("  {}: {replicas}{why}", format::plain_text(&worker.worker)))?;
    }
    Ok(())
}
