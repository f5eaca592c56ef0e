//! `tributary camera`: find cameras, check them, and manage logins of those that publish by themselves.

mod check;
mod find;
mod list;
mod login_options;
mod logins;
mod run;

use runtime::Shutdown;
use runtime::settings::LoadedSettings;

use crate::settings::Settings;

const EXAMPLES: &str = "\
A camera with an address is found and checked here, and its pictures are then taken by `tributary up`. A program that \
publishes by itself from another machine (up.listen, up.mqtt_listen) needs a login instead: it may publish images under \
its own name and read their acknowledgements, nothing else. Clients on this machine need none.

Examples:
  tributary camera find                           cameras of the network, and the addresses of their streams
  tributary camera find --host 192.168.1.20 --user admin --password-file cam.txt
  tributary camera check rtsp://192.168.1.20/main --user admin --password-file cam.txt
                                                  what it sends, a picture of what it sees, and advice
  tributary camera rtsp://192.168.1.20/main --name gate --user admin --password-file cam.txt
                                                  takes its pictures, beside a running `tributary up`
  tributary camera list                           how all cameras of the site are
  tributary camera add gate-1                     prints a login; `camera show` repeats it
  tributary camera add frigate --also-camera yard --also-camera door
                                                  one login for a program with several cameras
  tributary camera remove gate-1                  also closes its connection";

/// Take pictures from a camera, find and check cameras, and manage the logins of those that publish by themselves.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES, args_conflicts_with_subcommands = true, arg_required_else_help = true)]
pub(crate) struct CameraArgs {
    #[command(subcommand)]
    command: Option<CameraCommand>,
    #[command(flatten)]
    run: run::RunArgs,
}

#[derive(clap::Subcommand)]
enum CameraCommand {
    Find(find::FindArgs),
    Check(check::CameraCheckArgs),
    List(list::ListArgs),
    #[command(flatten)]
    Login(logins::LoginCommand),
}

impl CameraArgs {
    /// Whether it concerns cameras alone, not a site and its server.
    pub(crate) fn needs_no_settings(&self) -> bool {
        matches!(self.command, Some(CameraCommand::Find(_) | CameraCommand::Check(_)))
    }
}

/// Finds or checks cameras.
pub(crate) async fn look(args: &CameraArgs) -> anyhow::Result<()> {
    match &args.command {
        Some(CameraCommand::Find(args)) => find::command(args).await,
        Some(CameraCommand::Check(args)) => check::command(args).await,
        _ => Ok(()),
    }
}

/// Takes pictures, lists cameras or manages logins.
pub(crate) async fn command(loaded: &LoadedSettings<Settings>, args: &CameraArgs) -> anyhow::Result<()> {
    match &args.command {
        None => run::command(loaded, &args.run, Shutdown::on_signals()?).await,
        Some(CameraCommand::List(args)) => list::command(loaded, args).await,
        Some(CameraCommand::Login(command)) => logins::command(loaded, command).await,
        Some(CameraCommand::Find(_) | CameraCommand::Check(_)) => look(args).await,
    }
}

/// How far a camera's clock is ahead or behind, for people.
fn clock_text(ahead_ms: i64) -> String {
    let span = crate::format::format_span(ahead_ms.unsigned_abs() as f64);
    match ahead_ms {
        _ if ahead_ms.unsigned_abs() <= CLOCK_EXACT_MS.unsigned_abs() => "right to the second".into(),
        0.. => format!("{span} ahead"),
        _ => format!("{span} behind"),
    }
}

/// Difference of clocks below which nothing is said, milliseconds: cameras tell whole seconds.
const CLOCK_EXACT_MS: i64 = 1500;

/// A text as one word of a shell's command line: what a camera sends may be pasted there.
fn shell_word(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@%+,=".contains(c);
    match !text.is_empty() && text.chars().all(is_plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', "'\\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_from_a_camera_stays_one_word_in_a_shell() {
        assert_eq!(shell_word("rtsp://10.0.0.5:554/main"), "rtsp://10.0.0.5:554/main");
        assert_eq!(shell_word("rtsp://c/?a=1&b=2"), "'rtsp://c/?a=1&b=2'");
        assert_eq!(shell_word("rtsp://c/';reboot;'"), "'rtsp://c/'\\'';reboot;'\\'''");
        assert_eq!([shell_word(""), shell_word("$(id)")], ["''", "'$(id)'"]);
    }

    #[test]
    fn a_clock_is_ahead_behind_or_right() {
        assert_eq!([0, 900, -1400].map(clock_text), ["right to the second"; 3]);
        assert_eq!([7_200_000, -86_400_000].map(clock_text), ["2.0 h ahead", "1.0 days behind"]);
    }
}
