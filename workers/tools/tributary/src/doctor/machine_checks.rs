//! Checks of this machine: programs, models and settings, without a server.

use std::path::Path;

use recognizer::RecognizerSettings;
use streams::server;
use vision::{Model, OnnxRuntime};

use super::DoctorCheck;
use crate::settings::Settings;

/// All checks of this machine; blocks.
pub(super) fn checks(settings: &Settings) -> Vec<DoctorCheck> {
    let mut checks = vec![
        checked_settings(settings),
        listening(settings),
        nats_server(settings),
        onnxruntime(settings),
        window(settings),
    ];
    checks.push(model("recognizer", Some(&settings.recognizer.model)));
    checks.push(model("verifier", settings.verifier.model.as_deref()));
    checks
}

fn checked_settings(settings: &Settings) -> DoctorCheck {
    match settings.check() {
        Ok(()) => DoctorCheck::ok("settings", "all in range"),
        Err(error) => DoctorCheck::bad(
            "settings",
            format!("{error:#}"),
            "change it at its origin, which `tributary config --show` names",
        ),
    }
}

/// What other machines can reach.
fn listening(settings: &Settings) -> DoctorCheck {
    const WHAT: &str = "listening";
    let (up, metrics) = (&settings.up, &settings.metrics);
    let mut open = Vec::new();
    if up.insecure && up.listens_beyond_loopback() {
        open.push("`tributary up` accepts clients from other machines unencrypted and without a login (up.insecure)");
    }
    if metrics.insecure && metrics.listen.is_some_and(|listen| !listen.ip().is_loopback()) {
        open.push("metrics are served unencrypted to anybody (metrics.insecure)");
    }
    match (&open[..], up.listens_beyond_loopback()) {
        ([], false) => DoctorCheck::ok(WHAT, "for this machine only, according to these settings"),
        ([], true) => DoctorCheck::ok(WHAT, "for other machines, encrypted and with a login"),
        (open, _) => DoctorCheck::warn(
            WHAT,
            open.join("; "),
            "unset insecure: certificates are then issued by themselves, and `tributary camera add` creates logins",
        ),
    }
}

fn nats_server(settings: &Settings) -> DoctorCheck {
    let found = server::find_program(settings.up.nats_server.as_deref());
    let found = found.and_then(|path| Ok((server::server_version(&path)?, path)));
    match found {
        Ok((release, path)) => DoctorCheck::ok("nats-server", format!("{release} at {}", path.display())),
        Err(error) => DoctorCheck::warn(
            "nats-server",
            error.to_string(),
            "only `tributary up` needs it; ignore this if you run your own servers",
        ),
    }
}

fn onnxruntime(settings: &Settings) -> DoctorCheck {
    match OnnxRuntime::find_and_load(settings.onnxruntime.as_deref()) {
        Ok(onnx) => DoctorCheck::ok("ONNX Runtime", format!("{} at {}", onnx.version(), onnx.library().display())),
        Err(error) => {
            DoctorCheck::bad("ONNX Runtime", error.to_string(), "run `make setup`; recognizers and verifiers need it")
        }
    }
}

/// A publisher that retries longer than the server remembers message ids can store an image twice.
fn window(settings: &Settings) -> DoctorCheck {
    let (window_s, retry_s) = (u64::from(settings.streams.duplicate_window_s), settings.publisher.retry_timeout_s);
    let found = format!("ids are remembered for {window_s} s, publishers retry for {retry_s} s");
    match window_s > retry_s {
        true => DoctorCheck::ok("repeated publishes", found),
        false => DoctorCheck::bad(
            "repeated publishes",
            found,
            "raise streams.duplicate_window_s above publisher.retry_timeout_s",
        )
        .breaks("an image that is published again is one task"),
    }
}

fn model(role: &str, folder: Option<&Path>) -> DoctorCheck {
    let what = format!("model of a {role}");
    let setting = format!("{role}.model");
    let unset = || DoctorCheck::ok(&what, format!("not set ({setting}); needed only where a {role} runs"));
    let Some(folder) = folder else { return unset() };
    if !folder.exists() && folder == RecognizerSettings::default().model {
        return unset();
    }
    match Model::load(folder) {
        Ok(model) => DoctorCheck::ok(
            &what,
            format!("{} {} in {}", model.description.name, model.release.short(), folder.display()),
        ),
        // No failure: not every machine runs every role.
        Err(error) if !folder.exists() => DoctorCheck::warn(
            what,
            error.to_string(),
            format!("if a {role} runs here, name its model with {setting} or --model"),
        ),
        Err(error) => DoctorCheck::bad(
            what,
            error.to_string(),
            format!("check it with `tributary model check {}`", folder.display()),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::CheckStatus;
    use super::*;

    #[test]
    fn a_window_shorter_than_a_publishers_retries_breaks_a_guarantee() {
        let mut settings = Settings::default();
        assert_eq!(window(&settings).state, CheckStatus::Ok);
        settings.streams.duplicate_window_s = 60;
        let check = window(&settings);
        assert_eq!(check.state, CheckStatus::Bad);
        assert!(check.breaks.is_some());
    }

    #[test]
    fn a_model_that_is_not_here_is_worth_knowing_and_a_broken_one_is_bad() {
        assert_eq!(model("recognizer", Some(Path::new("/no/such/folder"))).state, CheckStatus::Warn);
        assert_eq!(model("recognizer", Some(Path::new(env!("CARGO_MANIFEST_DIR")))).state, CheckStatus::Bad);
        assert_eq!(model("verifier", None).state, CheckStatus::Ok);
    }
}
