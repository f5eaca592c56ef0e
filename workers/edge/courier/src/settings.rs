//! Settings of the courier.

use std::path::PathBuf;

use runtime::settings::check_section;
use serde::{Deserialize, Serialize};

use crate::budget::BudgetSettings;
use crate::link::LinkSettings;
use crate::outbox_index::BacklogOrder;

/// Settings of the courier.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CourierSettings {
    /// Most uploads at a time, 1 to 256; fewer if they are large for the link.
    pub uploads: usize,
    /// Order in which a backlog is sent once the link returns: `oldest_first` or
    /// `newest_first`. New messages are not delayed by it.
    pub backlog_order: BacklogOrder,
    /// File with the root that the site trusts, JSON (written by `tributary join`); absent: orders and rounds are
    /// followed whoever gives them.
    pub root: Option<PathBuf>,
    /// Limits on what is sent up.
    pub budget: BudgetSettings,
    /// When the link counts as slow, and as down.
    pub link: LinkSettings,
}

impl Default for CourierSettings {
    fn default() -> Self {
        Self {
            uploads: 32,
            backlog_order: BacklogOrder::default(),
            root: None,
            budget: BudgetSettings::default(),
            link: LinkSettings::default(),
        }
    }
}

impl CourierSettings {
    /// Checks the settings.
    pub fn check(&self) -> Result<(), String> {
        check_section("budget", self.budget.check())?;
        check_section("link", self.link.check())?;
        match self.uploads {
            uploads @ (0 | 257..) => Err(format!("uploads is {uploads}; it must be between 1 and 256")),
            _ => Ok(()),
        }
    }
}
