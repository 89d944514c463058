//! Reads that lag behind writes: a list may show what a table's entries were some time ago.
//!
//! The vendor promises no read of one's own writes. How long a table's lists lag is a setting, and what they show is exactly what was there
//! that long ago by the emulator's clock, so that a test knows what it gets. Changes themselves are always judged by what is there now.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};

use super::{Cloud, Entry, Table, milliseconds, state};

/// The entries of a table until a moment at which they changed.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Past {
    #[serde(with = "state::moment")]
    until: OffsetDateTime,
    entries: BTreeMap<u64, Entry>,
}

impl Cloud {
    fn read_lag(&self, table: &str) -> Duration {
        let own = self.settings.table_read_lag_ms.get(table);
        milliseconds(own.copied().unwrap_or(self.settings.read_lag_ms))
    }

    /// Keeps what the entries of a table are, before they change.
    pub(super) fn remember(&mut self, id: &str, now: OffsetDateTime) {
        let lag = self.read_lag(id);
        let Some(table) = self.tables.get_mut(id) else { return };
        let oldest = now.saturating_sub(lag);
        table.past.retain(|past| past.until > oldest);
        // Changes of one moment, such as a batch, are one.
        let known = table.past.last().is_some_and(|past| past.until >= now);
        if lag.is_positive() && !known {
            table.past.push(Past { until: now, entries: table.entries.clone() });
        }
    }

    /// The entries of a table as a list shows them.
    pub(super) fn shown<'a>(
        &self,
        id: &str,
        table: &'a Table,
        now: OffsetDateTime,
    ) -> &'a BTreeMap<u64, Entry> {
        let then = now.saturating_sub(self.read_lag(id));
        table.past.iter().find(|past| past.until > then).map_or(&table.entries, |past| &past.entries)
    }
}
