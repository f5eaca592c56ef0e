//! Settings of answers in JSON.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Settings of the notifier.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NotifierSettings {
    /// Address of the MQTT listener that receives the answers, `HOST:PORT`; absent: they are only published over NATS,
    /// where nothing is retained. Set by `tributary up`.
    pub mqtt: Option<String>,
    /// User at the MQTT listener.
    pub mqtt_user: Option<String>,
    /// File with the user's password.
    pub mqtt_password_file: Option<PathBuf>,
}

impl NotifierSettings {
    /// Checks the settings.
    pub fn check(&self) -> Result<(), String> {
        if let Some(Err(why)) = self.mqtt.as_deref().map(split_address) {
            return Err(format!("mqtt is {:?}; {why}", self.mqtt.as_deref().unwrap_or_default()));
        }
        match (&self.mqtt_user, &self.mqtt_password_file) {
            (None, Some(_)) => Err("mqtt_password_file is set, so mqtt_user must be set too".into()),
            _ => Ok(()),
        }
    }
}

/// Splits `HOST:PORT`.
pub(crate) fn split_address(address: &str) -> Result<(String, u16), String> {
    let (host, port) = address.rsplit_once(':').ok_or("it must be HOST:PORT, such as 127.0.0.1:1883")?;
    let port = port.parse().map_err(|_| format!("its port is {port:?}; it must be between 1 and 65535"))?;
    match host {
        "" => Err("it must be HOST:PORT, such as 127.0.0.1:1883".into()),
        host => Ok((host.trim_start_matches('[').trim_end_matches(']').to_owned(), port)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_host_and_a_port() {
        assert_eq!(split_address("127.0.0.1:1883"), Ok(("127.0.0.1".into(), 1883)));
        assert_eq!(split_address("[::1]:1883"), Ok(("::1".into(), 1883)));
        for wrong in ["broker", ":1883", "broker:x", "broker:70000", "mqtt://broker"] {
            let settings = NotifierSettings { mqtt: Some(wrong.into()), ..NotifierSettings::default() };
            assert!(settings.check().unwrap_err().starts_with("mqtt is"), "{wrong}");
        }
    }
}
