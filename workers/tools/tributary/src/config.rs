//! `tributary config`: every setting, its value and its origin.

use runtime::settings::{self, ResolvedSetting};
use serde_json::Value;
use streams::connect::without_credentials;

use crate::settings::{Settings, load};
use crate::{CommonArgs, format, stdout};

const EXAMPLES: &str = "\
Settings come from, in rising order of precedence: defaults, the settings file, the environment, flags. One setting, in each:
  recognizer.gate.min_confidence_ratio                in tributary.toml
  TRIBUTARY_RECOGNIZER__GATE__MIN_CONFIDENCE_RATIO    in the environment
  --set recognizer.gate.min_confidence_ratio=0.8      as a flag
Passwords are never shown.

Examples:
  tributary config --show
  tributary config --show --settings site.toml --set publisher.retry_timeout_s=60
  tributary config --show --json | jq '.[] | select(.origin != \"default\")'";

/// Show every setting, its value and its origin, and check them.
///
/// Shows the settings that any other command would use with the same file, environment and flags.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ConfigArgs {
    /// Show the settings (the default).
    #[arg(long)]
    show: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Shows and checks the settings; shows the defaults where they cannot be read.
pub(crate) fn command(common: &CommonArgs, args: &ConfigArgs) -> anyhow::Result<()> {
    let _shown_in_any_case = args.show;
    match load(common, &[]) {
        Ok(loaded) => {
            print(loaded.list(), args.json)?;
            loaded.settings.check()
        }
        Err(error) => {
            print(settings::defaults::<Settings>(), args.json)?;
            Err(error.context("settings cannot be read; the list above shows the defaults"))
        }
    }
}

fn print(mut list: Vec<ResolvedSetting>, json: bool) -> anyhow::Result<()> {
    for setting in &mut list {
        setting.value = presentable(&setting.value);
    }
    if json {
        return stdout::json(&list);
    }
    // Values come last: a long one then widens no column.
    let rows: Vec<Vec<String>> = list
        .into_iter()
        .map(|ResolvedSetting { key, value, origin }| vec![key, origin.to_string(), shown(&value)])
        .collect();
    stdout::print_line(format::table(&["setting", "from", "value"], &rows))
}

/// Without credentials, and numbers as they were written: JSON holds an f32 as the nearest f64.
fn presentable(value: &Value) -> Value {
    match value {
        Value::String(text) if text.contains('@') => without_credentials(text).into(),
        Value::Number(number) => {
            let single = number.as_f64().filter(|_| number.is_f64()).map(|number| number as f32);
            let same = single.filter(|single| number.as_f64() == Some(f64::from(*single)));
            same.and_then(|single| single.to_string().parse::<f64>().ok()).map_or_else(|| value.clone(), Value::from)
        }
        value => value.clone(),
    }
}

/// A value as it is written in a settings file.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => "(not set)".into(),
        Value::Object(fields) if fields.is_empty() => "(none)".into(),
        value => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_looks_as_it_was_written() {
        for (kept, shown) in [(f64::from(0.8f32), "0.8"), (0.7, "0.7"), (1.5, "1.5")] {
            assert_eq!(presentable(&kept.into()).to_string(), shown);
        }
        assert_eq!(presentable(&4096.into()).to_string(), "4096");
    }

    #[test]
    fn an_address_is_shown_without_its_password() {
        assert_eq!(presentable(&"nats://a:hunter2@host:1".into()), "nats://host:1");
    }
}
