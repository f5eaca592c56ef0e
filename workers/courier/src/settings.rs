//! What an operator may choose about the link.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::budget::BudgetSettings;
use crate::link::LinkSettings;
use crate::outbox_index::BacklogOrder;

/// What an operator may choose about the link.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CourierSettings {
    /// Messages on their way up at a time, 1 to 256; fewer when they are large for the link.
    pub uploads: usize,
    /// In which order what waited for the link is caught up with, once it returns: `oldest_first` or
    /// `newest_first`. What comes meanwhile is not held up by it.
    pub backlog_order: BacklogOrder,
    /// File with the root that says whom the site obeys, JSON (`tributary join` lays it out); absent: orders and rounds count
    /// whoever gives them.
    pub root: Option<PathBuf>,
    /// What may go up.
    pub budget: BudgetSettings,
    /// When the link counts as slow, and as gone.
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
    /// What is wrong with the settings, if something is.
    pub fn check(&self) -> Result<(), String> {
        self.budget.check()?;
        self.link.check()?;
        match self.uploads {
            0 | 257.. => Err("courier.uploads must be 1 to 256".into()),
            _ => Ok(()),
        }
    }
}
