//! `tributary scale`: shows or sets the replicas of a role's workers.

use std::str::FromStr;
use std::time::Duration;

use anyhow::bail;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use runtime::settings::LoadedSettings;
use schemas::{Heartbeat, Role, SiteName};
use serving::scale::{ReplicaRequest, falls_short, replica_note};
use streams::Bus;
use streams::fleet::{self, Ledger};
use tokio::time::Instant;

use crate::settings::Settings;
use crate::{audit, format, site_target, stdout};

/// How long it waits for the workers to follow: opening a session may take seconds.
const FOLLOW_TIMEOUT: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(250);

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
  tributary scale recognizer 1-4                  as many as the backlog needs
  tributary scale verifier 2
  tributary scale recognizer --clear              return to the settings";

/// Show or set the number of replicas in a role's workers.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct ScaleArgs {
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
pub async fn command(loaded: &LoadedSettings<Settings>, args: &ScaleArgs) -> anyhow::Result<()> {
    let here = site_target::open(loaded, "scale").await?;
    let (bus, place) = match args.role {
        Role::Verifier => (here.whole_cloud()?.clone(), "the cloud".to_owned()),
        _ => (here.bus.clone(), format!("site {}", here.name)),
    };
    let ledger = Ledger::open(&bus).await?;
    if let Some(asked) = args.replicas {
        ledger.write(&replica_note(args.role), serde_json::to_string(&Some(asked))?).await?;
    } else if args.clear {
        ledger.write(&replica_note(args.role), serde_json::to_string(&None::<ReplicaRequest>)?).await?;
    }
    if args.replicas.is_some() || args.clear {
        let at = if args.role == Role::Verifier { SiteName::cloud() } else { here.name.clone() };
        let wanted = args.replicas.map_or_else(|| "per settings".to_owned(), |replicas| replicas.to_string());
        audit::record_command(&bus, &at, "scale", format!("{}: {wanted}", args.role)).await;
    }
    let asked = ledger.read(&replica_note(args.role)).await?;
    let asked: Option<ReplicaRequest> = asked.and_then(|text| serde_json::from_str(&text).ok()).flatten();
    let workers = match args.replicas {
        Some(asked) => followed(&bus, args.role, asked).await?,
        None => workers(&bus, args.role).await?,
    };
    if args.json {
        let rows: Vec<_> = workers
            .iter()
            .map(|beat| serde_json::json!({"worker": beat.worker, "replicas": beat.replicas, "why": beat.scale}))
            .collect();
        stdout::json(
            &serde_json::json!({ "role": args.role.as_str(), "asked": asked.map(|asked| asked.to_string()), "workers": rows }),
        )?;
    } else {
        stdout::print_line(match asked {
            Some(asked) => format!("{}s at {place}: {asked} requested", args.role),
            None => format!("{}s at {place}: no override; the settings of each apply", args.role),
        })?;
        for beat in &workers {
            let why = beat.scale.as_deref().map(|why| format!("; {}", format::plain_text(why))).unwrap_or_default();
            let replicas = format::count(beat.replicas.into(), "replica");
            stdout::print_line(format_args!("  {}: {replicas}{why}", format::plain_text(&beat.worker)))?;
        }
    }
    match (&workers[..], args.replicas) {
        ([], Some(_)) => bail!("no {} is running: the number applies once one starts", args.role),
        ([], None) => stdout::print_line(format_args!("No {} is running.", args.role)),
        (workers, Some(asked)) if workers.iter().any(|beat| !follows(beat, asked)) => {
            bail!(
                "not every {} reached the requested number, for the reasons above: free what is missing, or request fewer",
                args.role
            )
        }
        _ => Ok(()),
    }
}

async fn workers(bus: &Bus, role: Role) -> anyhow::Result<Vec<Heartbeat>> {
    let beats = fleet::live_workers(bus).await?;
    Ok(beats.into_iter().filter(|beat| beat.role == role).collect())
}

fn follows(beat: &Heartbeat, asked: ReplicaRequest) -> bool {
    let replicas = beat.replicas as usize;
    match asked {
        ReplicaRequest::Fixed(wanted) => replicas == wanted,
        ReplicaRequest::Between(least, most) => (least..=most).contains(&replicas),
    }
}

/// Waits until all workers run the requested number, or report why not.
async fn followed(bus: &Bus, role: Role, asked: ReplicaRequest) -> anyhow::Result<Vec<Heartbeat>> {
    let until = Instant::now() + FOLLOW_TIMEOUT;
    loop {
        let workers = workers(bus, role).await?;
        let cannot = |beat: &Heartbeat| beat.scale.as_deref().is_some_and(falls_short);
        if workers.iter().all(|beat| follows(beat, asked) || cannot(beat)) || Instant::now() > until {
            return Ok(workers);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
